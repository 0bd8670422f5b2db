"""The ledger of one worker: what it has in flight, counted by the scheduler itself.

Theory: load is what was sent to a worker and has not come back. An attempt is entered twice, once for its prefill
(until its first token) and once for its sequences and KV (until it is settled), and each entry is removed exactly
once. Of a prefill/decode pair the prefill worker has the first entry, and KV for the prompt as long; the decode
worker has the second. The worker's own metrics only teach how many sequences its engine runs at once, where that
is not configured.

A worker that owes a response (a first token, a finished prefill) and has sent nothing for much longer than its
profile predicts is *stalled*: it may pass its health checks and still serve no request.

Invariants: no counter is negative; with no attempt in flight all of them are zero.
"""

import math
from dataclasses import replace

from policies.fleet.capacity import OPEN_ROOM, LearnedSlots, Room
from policies.fleet.kv_fit import Member, Occupants
from policies.fleet.speed import PoolSpeed, WorkerSpeed, pairs
from policies.model import Matches, Placement, RequestView, Stage, WorkerFacts, WorkerView
from policies.prefixes.index import Pinned

_MIN_STEPS = 8
"""Answers shorter than this say little about the time of a decode step."""
_PERIOD_S = 1.0
"""A busy period of prefilling that has lasted this long is learned from without waiting for its end."""
_BURST_S = 0.005
"""First tokens of one engine step arrive within this time of each other, and belong to one period."""
_PREDICTED_TOKENS = 32
"""Output tokens per predicted event of an answer that is not streamed, all its sequences together."""
_MIN_PREDICTION_S = 1e-3
STALLED_S = 5.0
_STALLED = 10.0
"""A worker is stalled when a response is due and nothing has come for the longer of `STALLED_S` and `_STALLED`
times the predicted time of the prefill it owes."""


class Attempt:
    """One attempt of one request, from its dispatch to its end, and what it holds on its workers.

    The `Fleet` enters it into the ledgers of its workers and removes it from them; the fields are changed there.
    """

    __slots__ = (
        "context", "decoder", "dispatched_at", "expected_output", "extend_tokens", "first_token_at", "matches",
        "output_tokens", "pair", "pinned", "placement", "prefill_seen", "prefilled_at", "prefiller", "prefilling",
        "request",
        "reserved",
    )  # fmt: skip

    def __init__(
        self,
        request: RequestView,
        placement: Placement,
        extend_tokens: int,
        now: float,
        *,
        prefiller: "Worker",
        decoder: "Worker",
        matches: Matches,
    ) -> None:
        """`extend_tokens`: prompt tokens to compute; `matches`: tokens of the prompt in each worker's cache."""
        self.request = request
        self.placement = placement
        self.extend_tokens = extend_tokens
        self.dispatched_at = now
        self.prefiller = prefiller
        self.decoder = decoder
        self.matches = matches
        self.pair = placement.prefill is not None and placement.prefill != placement.decode
        """Whether another worker than the decode worker computes the prompt."""
        self.prefill_seen = self.pair or request.streams
        """Whether the driver sees the end of the prefill, or the scheduler has to predict it."""
        self.expected_output = request.expected_output_tokens * request.sequences
        """Output tokens expected at the start, of all sequences: of an answer that is not streamed, no more are
        predicted."""
        self.reserved = self.expected_output
        """KV tokens that the answers are expected to hold at their end; more once they outlive that."""
        self.context = request.input_tokens
        """Prompt tokens: the context that each sequence starts with."""
        self.output_tokens = 0
        """Of all sequences, so far."""
        self.prefilling = True
        self.prefilled_at: float | None = None
        """When the prefill worker of a pair was done."""
        self.first_token_at: float | None = None
        self.pinned: list[Pinned | None] = []
        """The prompt's path at the decode worker, then at the prefill worker of a pair while that holds it."""

    @property
    def remaining(self) -> int:
        """Decode steps until the answers have their expected length."""
        left = self.reserved - self.output_tokens
        return -(-left // self.request.sequences) if left > 0 else 0

    def prefilled_tokens(self, now: float) -> int:
        """Prompt tokens that are computed, or were cached: during the prefill, its predicted share."""
        prompt = self.request.input_tokens
        if not self.prefilling or self.first_token_at is not None or self.prefilled_at is not None:
            return prompt
        takes = self.prefiller.prefill_due - self.dispatched_at
        return prompt if takes <= 0 else min(prompt, round(prompt * (now - self.dispatched_at) / takes))

    @property
    def predictable(self) -> bool:
        """Whether a first token, or more of the expected answer, is still to come."""
        return self.first_token_at is None or self.output_tokens < self.expected_output

    def predicted_tokens(self) -> int:
        """Output tokens of the next predicted event."""
        return min(_PREDICTED_TOKENS, self.expected_output - self.output_tokens)

    def next_prediction(self, due: float, now: float) -> float:
        """When the event after the one that was `due` is expected.

        A driver that asks late gets one event for the time it missed, not all of them.
        """
        per_sequence = -(-_PREDICTED_TOKENS // self.request.sequences)
        decoder = self.decoder
        predicted_s = decoder.profile.decode_s(per_sequence, decoder.sequences, decoder.decode_tokens)
        step = max(predicted_s, _MIN_PREDICTION_S)
        return max(due, now - step) + step


class Worker:
    """The counters of one worker, and the view that policies get of them.

    `window_s` and `window_tokens` bound the prefill in flight (tokens, if set, replace the time); `kv_margin` is
    the share of the KV cache that is left free.
    """

    def __init__(
        self,
        facts: WorkerFacts,
        *,
        window_s: float,
        window_tokens: int | None,
        kv_margin: float = 0.0,
        pool: PoolSpeed | None = None,
    ) -> None:
        self._kv_share = 1.0 - kv_margin
        self._set_facts(facts)
        self._speed = WorkerSpeed(pool or PoolSpeed(), self._follow_speed)
        self.profile = self._speed.profile
        self.requests = 0
        self.sequences = 0
        self.prefills = 0
        self.prefill_owed = 0
        self.decode_tokens = 0
        self.reserved = 0
        self.pinned = 0
        """KV tokens of the prompts in flight, shared prefixes counted once."""
        self.responses_due = 0
        """Responses that the driver will see: streamed first tokens and prefills of pairs."""
        self.named_requests = 0
        """Waiting requests that are named to this worker: it is chosen for them, and they are not sent yet."""
        self.named_sequences = 0
        self.named_prefill_tokens = 0
        self.stalled = False
        self.prefill_due = 0.0
        """When the prefill in flight should be done, by the profile."""
        self._last_response_at = 0.0
        """When this worker last sent something."""
        self._window_s = window_s
        self._window_tokens = window_tokens
        self._slots = LearnedSlots()
        self._occupants = Occupants()
        self._answers = 0
        """KV tokens of the answers in flight so far."""
        self._unkeyed = 0
        """KV tokens of prompts in flight that no prefix tree counts: without a prefix key, or in `_unpinned`."""
        self._unpinned: set[Attempt] = set()
        """Attempts that were in flight when the worker left: should it come back, their pins are gone."""
        self._silent_since = 0.0
        self._period_at = 0.0
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = True
        self._prefilled_at = 0.0
        self._unseen_prefills = 0
        self.current_view: WorkerView | None = None
        """The view of the worker as it is now; None: something has changed since the last one was built."""

    # -- entries: each is made once and removed once

    def start_prefill(self, attempt: Attempt, now: float) -> None:
        if self.prefills == 0:
            self._begin_period(now)
        self.prefills += 1
        self.prefill_owed += attempt.extend_tokens
        queued = max(self.prefill_due, now) + self.profile.prefill_s(
            attempt.extend_tokens, attempt.context - attempt.extend_tokens
        )
        # Never later than if all owed prefill began now, so that errors of the profile do not add up over a busy
        # hour.
        self.prefill_due = min(queued, now + self.profile.prefill_s(self.prefill_owed))
        if attempt.prefill_seen:
            self.expect_response(now)
        else:
            self._unseen_prefills += 1
            self._period_seen = False
        self.current_view = None

    def end_prefill(self, attempt: Attempt, now: float, *, finished: bool) -> None:
        """The prompt is computed (`finished`); or will never be, or that was not seen."""
        if now - self._prefilled_at > _BURST_S and self._prefilled_at - self._period_at > _PERIOD_S:
            self._learn_from_period(self._prefilled_at)
            self._begin_period(self._prefilled_at)
        self._prefilled_at = now
        self.prefills -= 1
        self.prefill_owed -= attempt.extend_tokens
        if attempt.prefill_seen:
            self.responses_due -= 1
        else:
            self._unseen_prefills -= 1
        if finished:
            self._period_tokens += attempt.extend_tokens
            self._period_pairs += pairs(attempt.extend_tokens, attempt.context - attempt.extend_tokens)
        else:
            self._period_seen = False
        left_s = self.profile.prefill_s(self.prefill_owed) if self.prefills else 0.0
        self.prefill_due = min(self.prefill_due, now + left_s)
        if self.prefills == 0:
            self._learn_from_period(now)
        self.current_view = None

    def start_prompt(self, attempt: Attempt) -> None:
        """The prompt of a pair is held here until its prefill is done."""
        self._enter(attempt, Member(attempt.request.input_tokens, 0, 0, 0))

    def end_prompt(self, attempt: Attempt) -> None:
        self._remove(attempt)

    def start_sequences(self, attempt: Attempt) -> None:
        request = attempt.request
        member = Member(request.input_tokens, 0, request.expected_output_tokens, request.sequences)
        self._enter(attempt, member)
        self.sequences += request.sequences
        self.reserved += attempt.reserved
        self._slots.peak = max(self._slots.peak, self.sequences)
        self.current_view = None

    def start_decode(self, attempt: Attempt) -> None:
        self.decode_tokens += attempt.context * attempt.request.sequences
        self.current_view = None

    def record_output(self, attempt: Attempt, tokens: int) -> None:
        attempt.output_tokens += tokens
        self.decode_tokens += tokens
        self._answers += tokens
        self.expect_output_tokens(attempt, attempt.reserved)

    def expect_output_tokens(self, attempt: Attempt, tokens: int) -> None:
        """Expect `tokens` from all its answers together; at least what they have already."""
        over = max(tokens, attempt.output_tokens) - attempt.reserved
        attempt.reserved += over
        self.reserved += over
        self._occupants.grow(attempt, attempt.output_tokens, attempt.remaining)
        self.current_view = None

    def end_sequences(self, attempt: Attempt, now: float) -> None:
        self._last_response_at = now
        self._remove(attempt)
        self.sequences -= attempt.request.sequences
        self.reserved -= attempt.reserved
        self._answers -= attempt.output_tokens
        if attempt.first_token_at is not None:
            self.decode_tokens -= attempt.context * attempt.request.sequences + attempt.output_tokens
        self.current_view = None

    def set_pinned(self, tokens: int) -> None:
        """Set the KV tokens that the prompts in flight occupy, as the prefix trees count them."""
        self.pinned = tokens
        self.current_view = None

    @property
    def idle(self) -> bool:
        return self.requests == 0 and self.prefills == 0

    # -- named requests: each is named once and unnamed once, while it waits

    def name(self, request: RequestView, prefill_tokens: int) -> None:
        """A waiting request is meant for this worker, which would compute `prefill_tokens` of its prompt."""
        self.named_requests += 1
        self.named_sequences += request.sequences
        self.named_prefill_tokens += prefill_tokens
        self._renew_named()

    def unname(self, request: RequestView, prefill_tokens: int) -> None:
        """The request is sent, has left the queue, or is meant for another worker: undo `name`, same arguments."""
        self.named_requests -= 1
        self.named_sequences -= request.sequences
        self.named_prefill_tokens -= prefill_tokens
        self._renew_named()

    def _renew_named(self) -> None:
        """Keep the view, but for what is named: its room is the same, and the most expensive part."""
        view = self.current_view
        if view is not None:
            self.current_view = self._view_of(view.room)

    # -- responses

    def expect_response(self, now: float) -> None:
        """A response that the driver will see is due from this worker."""
        if self.responses_due == 0:
            self._silent_since = now
        self.responses_due += 1

    def expect_no_response(self) -> None:
        """A response that was due has come, or will not come any more."""
        self.responses_due -= 1

    def record_response(self, now: float) -> None:
        """The worker has sent something."""
        self._silent_since = self._last_response_at = now

    def stalls_at(self) -> float:
        """From when on the worker is stalled if nothing comes before; infinity if nothing is due."""
        if self.responses_due == 0:
            return math.inf
        return self._silent_since + max(STALLED_S, _STALLED * self.profile.prefill_s(self.prefill_owed))

    def update_stalled(self, now: float) -> bool:
        """Set `stalled`; returns whether that has changed."""
        before, self.stalled = self.stalled, self.stalls_at() <= now
        if before != self.stalled:
            self.current_view = None
        return before != self.stalled

    # -- learning

    def update_facts(self, facts: WorkerFacts) -> None:
        """Replace what the driver knows of this worker."""
        reading = facts.reading
        if reading is not None and (self.facts.reading is None or reading.at > self.facts.reading.at):
            self._slots.read(reading.running, reading.waiting, self.sequences)
        self._set_facts(facts)
        self.current_view = None

    def learn_from_answer(self, attempt: Attempt, output_tokens: int, now: float) -> None:
        """Learn decode speed from a finished answer; without a seen first token, both speeds.

        Of a pair only the answer was computed here: without a seen first token, it began when the prefill ended.
        """
        per_sequence = output_tokens // attempt.request.sequences
        if not attempt.request.streams and attempt.pair:
            if attempt.prefilled_at is not None and per_sequence >= _MIN_STEPS and now > attempt.prefilled_at:
                self._speed.learn_decode(
                    per_sequence, now - attempt.prefilled_at, self.sequences, self.decode_tokens
                )
        elif not attempt.request.streams:
            elapsed = now - attempt.dispatched_at
            self._speed.learn_whole_answer(
                attempt.extend_tokens, per_sequence, max(elapsed, 1e-6), self.sequences, self.decode_tokens
            )
        elif attempt.first_token_at is not None and per_sequence >= _MIN_STEPS and now > attempt.first_token_at:
            self._speed.learn_decode(
                per_sequence - 1, now - attempt.first_token_at, self.sequences, self.decode_tokens
            )
        self._follow_speed()

    def _follow_speed(self) -> None:
        """The speed of this worker has been learned anew."""
        self.profile = self._speed.profile
        self.current_view = None

    # -- what policies see

    def view(self) -> WorkerView:
        """The worker as policies see it now: the same object until something changes."""
        view = self.current_view
        if view is None:
            view = self.current_view = self._view_of(self._room())
        return view

    def view_with_named(self, now: float) -> WorkerView:
        """The worker as it will be for a request that comes after those named to it; its room is open.

        For ranking under early binding: requests, sequences, owed prefill and load include what is named, and room
        is expected once that is computed.
        """
        view = self.view()
        owed = self.prefill_owed + self.named_prefill_tokens
        sequences = self.sequences + self.named_sequences
        profile = self.profile
        ahead_s = profile.prefill_s(owed) - profile.prefill_s(self.prefill_owed)
        steps_s = self.named_sequences * profile.step_s(sequences, self.decode_tokens)
        return replace(
            view,
            requests=self.requests + self.named_requests,
            sequences=sequences,
            prefill_owed=owed,
            room=replace(OPEN_ROOM, prefill_due=max(view.room.expected_at, now) + ahead_s),
            load_s=view.load_s + ahead_s + steps_s,
            prefill_due=max(self.prefill_due, now) + ahead_s,
        )

    def _view_of(self, room: Room) -> WorkerView:
        profile, sequences = self.profile, self.sequences
        return WorkerView(
            self.facts.id,
            self.facts,
            self.requests,
            sequences,
            self.prefill_owed,
            self.decode_tokens,
            self.pinned + self._unkeyed + self.reserved,
            room,
            profile,
            profile.prefill_s(self.prefill_owed) + sequences * profile.step_s(sequences, self.decode_tokens),
            self.prefill_due,
            self.stalled,
            self.named_requests,
            self.named_sequences,
            self.named_prefill_tokens,
        )

    def prefill_window(self) -> int:
        """Uncached prompt tokens that may be in flight at once: about one engine step, by `window_s`.

        Never for less time than a prompt is on its way there and its first token on the way back: what the base of
        a prefill has beyond a step. On a slow way one prompt at a time would leave step after step without any.
        0, which means one prompt, while no speed is known.
        """
        if self._window_tokens is not None:
            return self._window_tokens
        profile = self.profile
        if not profile.prefills:
            return 0
        way_s = profile.base_s - profile.step_s(self.sequences, self.decode_tokens)
        step = profile.prefill_tokens(max(self._window_s - profile.base_s, way_s))
        return step if self.facts.max_batched_tokens is None else min(step, self.facts.max_batched_tokens)

    def leave(self) -> None:
        """The worker has left the pool; what is in flight there still ends."""
        self.set_pinned(
            0
        )  # the prefix trees forget it, pins included: from here its prompts are counted one by one
        for attempt in self._occupants:
            if isinstance(attempt, Attempt) and attempt.request.key.data and attempt not in self._unpinned:
                self._unpinned.add(attempt)
                self._unkeyed += attempt.request.input_tokens
        self._speed.leave()

    def _set_facts(self, facts: WorkerFacts) -> None:
        """Replace the facts and what follows from them alone."""
        self.facts = facts
        self._kv_tokens = None if facts.kv_tokens is None else int(facts.kv_tokens * self._kv_share)
        self._stages = Stage.PREFILL in facts.stages, Stage.DECODE in facts.stages

    def _room(self) -> Room:
        facts, kv_tokens = self.facts, self._kv_tokens
        idle = self.requests == 0 and self.prefills == 0
        slots = facts.slots if facts.slots is not None else self._slots.bound
        slots_free = None if slots is None else slots - self.sequences
        kv_free = kv_now = batch = None
        step_s = 0.0
        if not idle:
            step_s = self.profile.step_s(self.sequences, self.decode_tokens)
            if kv_tokens is not None or (slots_free is not None and slots_free <= 0):
                batch = self._occupants.batch(kv_tokens or 0, self.pinned + self._unkeyed)
        if kv_tokens is not None:
            prompts = self.pinned + self._unkeyed
            kv_free = kv_tokens - prompts - self.reserved
            kv_now = kv_tokens - prompts - self._answers
        free = self.prefill_window() - self.prefill_owed
        prefills, decodes = self._stages
        return Room(
            idle,
            self.prefills == 0,
            free,
            slots_free,
            kv_free,
            kv_now,
            batch,
            prefills,
            decodes,
            self.prefill_due,
            self._last_response_at,
            step_s,
        )

    def _enter(self, attempt: Attempt, member: Member) -> None:
        self.requests += 1
        self._occupants.add(attempt, member)
        if not attempt.request.key.data:
            self._unkeyed += attempt.request.input_tokens

    def _remove(self, attempt: Attempt) -> None:
        self.requests -= 1
        self._occupants.remove(attempt)
        if not attempt.request.key.data or attempt in self._unpinned:
            self._unkeyed -= attempt.request.input_tokens
            self._unpinned.discard(attempt)
        self.current_view = None

    def _learn_from_period(self, now: float) -> None:
        """Learn how long the prompts of a busy period took together."""
        if self._period_seen and self._period_tokens > 0 and now > self._period_at:
            self._speed.learn_prefill(self._period_tokens, now - self._period_at, self._period_pairs)
            self._follow_speed()

    def _begin_period(self, now: float) -> None:
        self._period_at = now
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = self._unseen_prefills == 0
