"""What one worker has in flight, counted by the scheduler itself: exact, immediate, and back at zero at the end.

Theory: load is what was sent there and has not come back. A leg takes twice, once for its prefill (until its
first token) and once for its sequences and KV (until it is settled), and gives each back exactly once. Of a
pair the prefill worker gives the first, and KV for the prompt as long; the decode worker gives the second. The
worker's own metrics only teach how many sequences its engine runs at once, where nobody has said so.

A worker that owes a sign of life (a first token, a finished prefill) and has given none for much longer than its
profile says is *stalled*: it may be alive to its health check and still serve nobody.

Invariants: no counter is negative; with no leg in flight all of them are zero.
"""

import math

from policies.fleet.capacity import Room
from policies.fleet.kv_fit import Member, Occupants
from policies.fleet.leg import Leg
from policies.fleet.profile import pairs
from policies.fleet.slots import LearnedSlots
from policies.fleet.speed import Pace, Pool
from policies.model import Stage, WorkerFacts, WorkerView

_STEPS = 8
"""Answers shorter than that say little about the time of a step."""
_PERIOD_S = 1.0
"""A busy period of prefilling that has lasted this long is learned from without waiting for its end."""
_BURST_S = 0.005
"""First tokens of one engine step come within this time of each other, and belong to one period."""
STALLED_S = 5.0
_STALLED = 10.0
"""Silence, while something is due, that makes a worker stalled: the longer of this and so many times what the
profile says of the prefill it owes."""


class Load:
    """Counters of one worker, and the view that policies get of them."""

    def __init__(
        self,
        facts: WorkerFacts,
        *,
        window_s: float,
        window_tokens: int | None,
        kv_margin: float = 0.0,
        pool: Pool | None = None,
    ) -> None:
        self._kv_share = 1.0 - kv_margin
        self._learn_of(facts)
        self._pace = Pace(pool or Pool(), self._follow)
        self.profile = self._pace.profile
        self.requests = 0
        self.sequences = 0
        self.prefills = 0
        self.prefill_owed = 0
        self.decode_tokens = 0
        self.reserved = 0
        self.pinned = 0
        """KV tokens of the prompts in flight, shared prefixes counted once."""
        self.awaited = 0
        """Signs of life that are due: streamed first tokens and prefills of pairs."""
        self.stalled = False
        self.prefill_due = 0.0
        """When the prefill in flight should be done, by the profile."""
        self._moved_at = 0.0
        """When the answers in flight were looked at last."""
        self._window_s = window_s
        self._window_tokens = window_tokens
        self._slots = LearnedSlots()
        self._occupants = Occupants()
        self._answers = 0
        """KV tokens of the answers in flight so far."""
        self._loose = 0
        """KV tokens of prompts in flight that no prefix tree knows."""
        self._silent_since = 0.0
        self._period_at = 0.0
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = True
        self._prefilled_at = 0.0
        self._unseen = 0
        self.seen: WorkerView | None = None
        """The view of it as it is now; None: something has changed since there was one."""
        self.taken = 0
        """How often a leg has come, whole or a part of one."""
        self.eased_at = 0
        """What `Roster.eased` was when this worker could admit more than before for the last time."""

    # -- taking and giving back

    def start_prefill(self, leg: Leg, now: float) -> None:
        if self.prefills == 0:
            self._open_period(now)
        self.prefills += 1
        self.prefill_owed += leg.extend_tokens
        in_line = max(self.prefill_due, now) + self.profile.prefill_s(
            leg.extend_tokens, leg.context - leg.extend_tokens
        )
        # Never later than if all that is owed began now: errors of the profile do not add up over a busy hour.
        self.prefill_due = min(in_line, now + self.profile.prefill_s(self.prefill_owed))
        if leg.prefill_seen:
            self.expect_sign(now)
        else:
            self._unseen += 1
            self._period_seen = False
        self.seen = None

    def end_prefill(self, leg: Leg, now: float, *, finished: bool) -> None:
        """The prompt is computed (`finished`); or will never be, or that was not seen."""
        if now - self._prefilled_at > _BURST_S and self._prefilled_at - self._period_at > _PERIOD_S:
            self._end_period(self._prefilled_at)
        self._prefilled_at = now
        self.prefills -= 1
        self.prefill_owed -= leg.extend_tokens
        if leg.prefill_seen:
            self.expect_no_sign()
        else:
            self._unseen -= 1
        if finished:
            self._period_tokens += leg.extend_tokens
            self._period_pairs += pairs(leg.extend_tokens, leg.context - leg.extend_tokens)
        else:
            self._period_seen = False
        left_s = self.profile.prefill_s(self.prefill_owed) if self.prefills else 0.0
        self.prefill_due = min(self.prefill_due, now + left_s)
        if self.prefills == 0:
            self._end_period(now)
        self.seen = None

    def start_prompt(self, leg: Leg) -> None:
        """The prompt of a pair is held here until its prefill is done."""
        self._occupy(leg, Member(leg.request.input_tokens, 0, 0, 0))

    def end_prompt(self, leg: Leg) -> None:
        self._vacate(leg)

    def start_sequences(self, leg: Leg) -> None:
        self._occupy(leg, Member(leg.request.input_tokens, 0, leg.remaining, leg.request.sequences))
        self.sequences += leg.request.sequences
        self.reserved += leg.reserved
        self._slots.peak = max(self._slots.peak, self.sequences)
        self.seen = None

    def start_decode(self, leg: Leg) -> None:
        self.decode_tokens += leg.context * leg.request.sequences
        self.seen = None

    def saw_output(self, leg: Leg, tokens: int) -> None:
        leg.output_tokens += tokens
        self.decode_tokens += tokens
        self._answers += tokens
        self.expect_output(leg, leg.reserved)

    def expect_output(self, leg: Leg, tokens: int) -> None:
        """So long will its answers be, all together; at least what they are already."""
        over = max(tokens, leg.output_tokens) - leg.reserved
        leg.reserved += over
        self.reserved += over
        self._occupants.grow(leg, leg.output_tokens, leg.remaining)
        self.seen = None

    def end_sequences(self, leg: Leg, now: float) -> None:
        self._moved_at = now
        self._vacate(leg)
        self.sequences -= leg.request.sequences
        self.reserved -= leg.reserved
        self._answers -= leg.output_tokens
        if leg.first_token_at is not None:
            self.decode_tokens -= leg.context * leg.request.sequences + leg.output_tokens
        self.seen = None

    def pin(self, tokens: int) -> None:
        """The scheduler's tree says what the prompts in flight occupy."""
        self.pinned = tokens
        self.seen = None

    @property
    def idle(self) -> bool:
        return self.requests == 0 and self.prefills == 0

    # -- signs of life

    def expect_sign(self, now: float) -> None:
        """Something that the driver will see is due from this worker."""
        if self.awaited == 0:
            self._silent_since = now
        self.awaited += 1

    def expect_no_sign(self) -> None:
        """It has come, or will not come any more."""
        self.awaited -= 1

    def heard(self, now: float) -> None:
        """The worker has given something back."""
        self._silent_since = self._moved_at = now

    def stalls_at(self) -> float:
        """From when on silence means that the worker is stalled."""
        if self.awaited == 0:
            return math.inf
        return self._silent_since + max(STALLED_S, _STALLED * self.profile.prefill_s(self.prefill_owed))

    def judge(self, now: float) -> bool:
        """Whether the worker is stalled; says if that has changed."""
        before, self.stalled = self.stalled, self.stalls_at() <= now
        if before != self.stalled:
            self.seen = None
        return before != self.stalled

    # -- learning

    def tell(self, facts: WorkerFacts) -> None:
        """The driver knows something new of this worker."""
        reading = facts.reading
        if reading is not None and (self.facts.reading is None or reading.at > self.facts.reading.at):
            self._slots.read(reading.running, reading.waiting, self.sequences)
        self._learn_of(facts)
        self.seen = None

    def saw_answer(self, leg: Leg, output_tokens: int, now: float) -> None:
        """Learn decode speed from a finished answer; without a seen first token, both speeds.

        Of a pair only the answer was computed here: without a seen first token, it began when the prefill ended.
        """
        per_sequence = output_tokens // leg.request.sequences
        if not leg.request.streams and leg.pair:
            if leg.prefilled_at is not None and per_sequence >= _STEPS and now > leg.prefilled_at:
                self._pace.saw_decode(per_sequence, now - leg.prefilled_at, self.sequences, self.decode_tokens)
        elif not leg.request.streams:
            elapsed = now - leg.dispatched_at
            self._pace.saw_whole(
                leg.extend_tokens, per_sequence, max(elapsed, 1e-6), self.sequences, self.decode_tokens
            )
        elif leg.first_token_at is not None and per_sequence >= _STEPS and now > leg.first_token_at:
            self._pace.saw_decode(per_sequence - 1, now - leg.first_token_at, self.sequences, self.decode_tokens)
        self._follow()

    def _follow(self) -> None:
        """More is known of its speed."""
        self.profile = self._pace.profile
        self.seen = None

    # -- what policies see

    def view(self) -> WorkerView:
        """The worker as it is now; the same object until something changes."""
        if self.seen is None:
            self.seen = WorkerView(
                self.facts.id,
                self.facts,
                self.requests,
                self.sequences,
                self.prefill_owed,
                self.decode_tokens,
                self.pinned + self._loose + self.reserved,
                self._room(),
                self.profile,
                self.profile.prefill_s(self.prefill_owed)
                + self.sequences * self.profile.step_s(self.sequences, self.decode_tokens),
                self.stalled,
            )
        return self.seen

    def window(self) -> int:
        """Extend tokens that may be in flight at once: about one step; one prompt while no speed is known."""
        if self._window_tokens is not None:
            return self._window_tokens
        if not self.profile.prefills:
            return 0
        step = self.profile.prefill_tokens(self._window_s)
        return step if self.facts.max_batched_tokens is None else min(step, self.facts.max_batched_tokens)

    def leave(self) -> None:
        """The worker is gone; what runs there still ends."""
        self.pin(0)  # the prefix trees forget it, with its pins
        self._pace.leave()

    def _learn_of(self, facts: WorkerFacts) -> None:
        """Take facts in, and what follows from them alone."""
        self.facts = facts
        self._kv_tokens = None if facts.kv_tokens is None else int(facts.kv_tokens * self._kv_share)
        self._stages = Stage.PREFILL in facts.stages, Stage.DECODE in facts.stages

    def _room(self) -> Room:
        facts, kv_tokens, idle = self.facts, self._kv_tokens, self.idle
        slots = facts.slots if facts.slots is not None else self._slots.bound
        slots_free = None if slots is None else slots - self.sequences
        full = slots_free is not None and slots_free <= 0
        due = max(self.prefill_due, self._slot_due()) if full else self.prefill_due
        kv_free = kv_now = batch = None
        if kv_tokens is not None:
            prompts = self.pinned + self._loose
            kv_free = kv_tokens - prompts - self.reserved
            kv_now = kv_tokens - prompts - self._answers
            if not idle:  # an idle worker takes anything
                batch = self._occupants.batch(kv_tokens, prompts)
        free = self.window() - self.prefill_owed
        return Room(idle, self.prefills == 0, free, slots_free, kv_free, due, kv_now, batch, *self._stages)

    def _slot_due(self) -> float:
        """When the first of the answers in flight is expected to end, by what they were when looked at last."""
        return self._moved_at + self._occupants.soonest() * self.profile.step_s(self.sequences, self.decode_tokens)

    def _occupy(self, leg: Leg, member: Member) -> None:
        self.requests += 1
        self.taken += 1
        self._occupants.add(leg, member)
        if not leg.request.key.data:
            self._loose += leg.request.input_tokens

    def _vacate(self, leg: Leg) -> None:
        self.requests -= 1
        self._occupants.remove(leg)
        if not leg.request.key.data:
            self._loose -= leg.request.input_tokens
        self.seen = None

    def _end_period(self, now: float) -> None:
        """Learn how long the prompts that were computed in a busy period took together; another one begins."""
        if self._period_seen and self._period_tokens > 0 and now > self._period_at:
            self._pace.saw_prefill(self._period_tokens, now - self._period_at, self._period_pairs)
            self._follow()
        self._open_period(now)

    def _open_period(self, now: float) -> None:
        self._period_at = now
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = self._unseen == 0
