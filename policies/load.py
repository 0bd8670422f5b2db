"""What one worker has in flight, counted by the scheduler itself: exact, immediate, and back at zero at the end.

Theory: load is what was sent there and has not come back. A leg takes twice, once for its prefill (until its
first token) and once for its sequences and KV (until it is settled), and gives each back exactly once. The
worker's own metrics only teach how many sequences its engine runs at once, where nobody has said so.

Invariants: no counter is negative; with no leg in flight all of them are zero.
"""

from dataclasses import dataclass

from policies.model import Placement, RequestView, WorkerFacts, WorkerView
from policies.profile import Profile, pairs
from policies.room import Room

_GAP_RATE = 0.2
_GAP_MOST_S = 5.0
"""A longer silence says that the worker was idle, not that it is slow."""
_PERIOD_S = 1.0
"""A busy period of prefilling that has lasted this long is learned from without waiting for its end."""


@dataclass(slots=True, eq=False)
class Leg:
    """One attempt of one request on its worker or pair of workers."""

    request: RequestView
    placement: Placement
    extend_tokens: int
    reserved: int
    """KV tokens set aside for the answers."""
    dispatched_at: float
    context: int
    """Tokens of context per sequence so far: the prompt, then the answer as it grows."""
    first_token_at: float | None = None
    output_tokens: int = 0
    prefilling: bool = True


class Load:
    """Counters of one worker, and the view that policies get of them."""

    def __init__(self, facts: WorkerFacts, *, window_s: float, window_tokens: int | None) -> None:
        self.facts = facts
        self.profile = Profile()
        self.requests = 0
        self.sequences = 0
        self.prefills = 0
        self.prefill_owed = 0
        self.decode_tokens = 0
        self.reserved = 0
        self.pinned = 0
        """KV tokens of the prompts in flight, shared prefixes counted once."""
        self.prefill_due = 0.0
        """When the prefill in flight should be done, by the profile."""
        self._released_at = 0.0
        self._release_gap_s = 0.0
        """When a sequence ended last, and how long it mostly takes until the next one does."""
        self._window_s = window_s
        self._window_tokens = window_tokens
        self._slots = _LearnedSlots()
        self._period_at = 0.0
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = True
        self._unseen = 0
        self._view: WorkerView | None = None

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
        self._unseen += not leg.request.streams
        self._period_seen = self._period_seen and leg.request.streams
        self._view = None

    def end_prefill(self, leg: Leg, now: float, *, finished: bool) -> None:
        """The prompt is computed (`finished`), or will never be."""
        self.prefills -= 1
        self.prefill_owed -= leg.extend_tokens
        self._unseen -= not leg.request.streams
        if finished:
            self._period_tokens += leg.extend_tokens
            self._period_pairs += pairs(leg.extend_tokens, leg.context - leg.extend_tokens)
        else:
            self._period_seen = False
        left_s = self.profile.prefill_s(self.prefill_owed) if self.prefills else 0.0
        self.prefill_due = min(self.prefill_due, now + left_s)
        if self.prefills == 0 or now - self._period_at > _PERIOD_S:
            if self._period_seen and self._period_tokens > 0:
                self.profile = self.profile.saw_prefill(
                    self._period_tokens, now - self._period_at, self._period_pairs
                )
            self._open_period(now)
        self._view = None

    def start_sequences(self, leg: Leg) -> None:
        self.requests += 1
        self.sequences += leg.request.sequences
        self.reserved += leg.reserved
        self._slots.peak = max(self._slots.peak, self.sequences)
        self._view = None

    def start_decode(self, leg: Leg) -> None:
        self.decode_tokens += leg.context * leg.request.sequences
        self._view = None

    def saw_output(self, leg: Leg, tokens: int) -> None:
        leg.output_tokens += tokens
        self.decode_tokens += tokens
        over = leg.output_tokens - leg.reserved
        if over > 0:  # longer than expected: what it holds now is the least it will hold
            leg.reserved += over
            self.reserved += over
        self._view = None

    def end_sequences(self, leg: Leg, now: float) -> None:
        self._release_gap_s += _GAP_RATE * (min(now - self._released_at, _GAP_MOST_S) - self._release_gap_s)
        self._released_at = now
        self.requests -= 1
        self.sequences -= leg.request.sequences
        self.reserved -= leg.reserved
        if leg.first_token_at is not None:
            self.decode_tokens -= leg.context * leg.request.sequences + leg.output_tokens
        self._view = None

    def pin(self, tokens: int) -> None:
        """The scheduler's tree says what the prompts in flight occupy."""
        self.pinned = tokens
        self._view = None

    @property
    def idle(self) -> bool:
        return self.requests == 0 and self.prefills == 0

    # -- learning

    def tell(self, facts: WorkerFacts) -> None:
        """The driver knows something new of this worker."""
        reading = facts.reading
        if reading is not None and (self.facts.reading is None or reading.at > self.facts.reading.at):
            self._slots.read(reading.running, reading.waiting, self.sequences)
        self.facts = facts
        self._view = None

    def saw_answer(self, leg: Leg, output_tokens: int, now: float) -> None:
        """Learn decode speed from a finished answer; without a seen first token, both speeds."""
        per_sequence = output_tokens // leg.request.sequences
        if not leg.request.streams:
            elapsed = now - leg.dispatched_at
            self.profile = self.profile.saw_whole(
                leg.extend_tokens, per_sequence, max(elapsed, 1e-6), self.sequences, self.decode_tokens
            )
        elif leg.first_token_at is not None and per_sequence >= 8 and now > leg.first_token_at:
            self.profile = self.profile.saw_decode(
                per_sequence - 1, now - leg.first_token_at, self.sequences, self.decode_tokens
            )

    # -- what policies see

    def view(self) -> WorkerView:
        """The worker as it is now; the same object until something changes."""
        if self._view is None:
            self._view = WorkerView(
                self.facts.id,
                self.facts,
                self.requests,
                self.sequences,
                self.prefill_owed,
                self.decode_tokens,
                self.pinned + self.reserved,
                self._room(),
                self.profile,
                self.profile.prefill_s(self.prefill_owed)
                + self.sequences * self.profile.step_s(self.sequences, self.decode_tokens),
            )
        return self._view

    def window(self) -> int:
        """Extend tokens that may be in flight at once: about one engine step."""
        if self._window_tokens is not None:
            return self._window_tokens
        step = self.profile.prefill_tokens(self._window_s)
        return step if self.facts.max_batched_tokens is None else min(step, self.facts.max_batched_tokens)

    def _room(self) -> Room:
        facts = self.facts
        slots = facts.slots if facts.slots is not None else self._slots.bound
        kv_tokens = facts.kv_tokens
        full = slots is not None and slots <= self.sequences
        return Room(
            idle=self.idle,
            prefill_idle=self.prefills == 0,
            prefill_free=self.window() - self.prefill_owed,
            slots_free=None if slots is None else slots - self.sequences,
            kv_free=None if kv_tokens is None else kv_tokens - self.pinned - self.reserved,
            expected_at=max(self.prefill_due, self._released_at + self._release_gap_s)
            if full
            else self.prefill_due,
        )

    def _open_period(self, now: float) -> None:
        self._period_at = now
        self._period_tokens = 0
        self._period_pairs = 0.0
        self._period_seen = self._unseen == 0


class _LearnedSlots:
    """How many sequences the engine runs at once, where neither the operator nor the launch has said so.

    No bound until two readings in a row show requests waiting inside the engine: then what was running is the
    bound (one reading may catch requests on their way in). Whenever the bound was reached and nothing waited,
    it is probed upwards by a quarter.
    """

    def __init__(self) -> None:
        self.bound: int | None = None
        self.peak = 0
        self._waited = 0

    def read(self, running: int, waiting: int, sequences: int) -> None:
        if waiting > 0:
            if self._waited:
                self.bound = max(running, self._waited)
            self._waited = max(1, running)
        else:
            if self.bound is not None and self.peak >= self.bound:
                self.bound += max(1, self.bound // 4)
            self._waited = 0
        self.peak = sequences
