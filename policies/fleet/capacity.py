"""Whether a request fits on a worker now, and when it will.

Under late binding a worker is sent only what it can run at once. It has room for a request when three things are
there: the prefill it owes is at most about one engine step (`Worker.prefill_window`), a sequence slot is free, and
the request's KV fits.
Prefill is the point: vLLM runs first come, first served, so whatever is sent beyond the next step waits inside the
engine, where no policy can reorder it.

KV fits if there is enough for all answers in flight at their full expected length; or, where there is not, if
enough of them end in time (`kv_fit.py`).

Of a prefill/decode pair one worker needs room for the prefill and the prompt's KV, the other a slot and KV for
prompt and answer; the prefill window does not concern the latter, which has no prefill to do.

One request always fits a worker that has nothing in flight, however long its prompt: the worker itself knows best
what it cannot serve, and says so with a 4xx.
"""

from dataclasses import field

from policies.fleet.kv_fit import Batch, Member
from policies.fleet.obstacle import Obstacle
from policies.value import value


@value
class Room:
    """What a worker can still take. None means that no bound is known."""

    idle: bool
    """Nothing is in flight."""
    prefill_idle: bool
    """No prefill is in flight: one prompt of any length may start."""
    prefill_free: int
    """Uncached prompt tokens that may be dispatched before the prefill window is full."""
    slots_free: int | None
    """Sequences that may be dispatched."""
    kv_free: int | None
    """KV tokens left if everything in flight had its full expected length at once."""
    kv_now: int | None = None
    """KV tokens that nothing in flight occupies at this moment."""
    batch: Batch | None = field(default=None, compare=False)
    """What is in flight, to ask when `kv_free` is too little (None: then it does not fit) and when it ends."""
    prefills: bool = True
    """The worker computes prompts."""
    decodes: bool = True
    """The worker generates answers."""
    prefill_due: float = 0.0
    """When all prefill in flight should be done."""
    last_response_at: float = 0.0
    """When the answers in flight were as they are in `batch`."""
    step_s: float = 0.0
    """Seconds of one decode step."""
    open: bool = field(init=False)
    """Whether any request, or the part of one that the worker is there for, could start now."""

    def __post_init__(self) -> None:
        window = self.prefill_idle or self.prefill_free > 0 or not self.prefills
        slot = self.slots_free is None or self.slots_free > 0 or not self.decodes
        free = self.kv_free if self.batch is None else self.kv_now
        is_open = self.idle or (window and slot and (free is None or free > 0))
        object.__setattr__(self, "open", is_open)

    @property
    def expected_at(self) -> float:
        """When room for some request is next expected, on the driver's clock: the past if there is some now.

        Slots or KV that nothing has left are expected with the first end of an answer, as of the last response.
        """
        due, batch = self.prefill_due, self.batch
        no_slots = self.slots_free is not None and self.slots_free <= 0
        if batch is not None and (no_slots or (self.kv_now is not None and self.kv_now <= 0)):
            due = max(due, self.last_response_at + batch.soonest() * self.step_s)
        return due

    def admits(self, prompt: int, extend: int, output: int, sequences: int) -> bool:
        """Whether a whole request fits.

        `prompt`: tokens of its prompt; `extend`: those of them that have to be computed; `output`: expected tokens
        of each answer; `sequences`: number of answers.
        """
        return self.idle or (self._window(extend) and self._slots_and_kv(prompt, extend, output, sequences))

    def admits_prefill(self, prompt: int, extend: int) -> bool:
        """Whether the prompt of a request fits that another worker will answer."""
        return self.idle or (self._window(extend) and self._kv(prompt, extend, 0, 1))

    def admits_decode(self, prompt: int, fresh: int, output: int, sequences: int) -> bool:
        """Whether a request fits whose prompt another worker computes; `fresh`: prompt tokens not cached here."""
        return self.idle or self._slots_and_kv(prompt, fresh, output, sequences)

    def obstacle(self, prompt: int, extend: int, output: int, sequences: int) -> Obstacle | None:
        """What is missing for the request, or for the part of it that the worker is there for; None: nothing.

        Of several things the one that takes longest to come: KV before a slot before prefill. Arguments as in
        `admits`. For explanations; to decide, `admits` is the cheaper question.
        """
        if self.idle:
            return None
        if not self.decodes:
            output, sequences = 0, 1
        if not self._kv(prompt, extend, output, sequences):
            return Obstacle.KV
        if self.decodes and not self.has_slots(sequences):
            return Obstacle.SLOT
        return Obstacle.PREFILL_WINDOW if self.prefills and not self._window(extend) else None

    def has_slots(self, sequences: int) -> bool:
        """Whether these could run at once with those in flight; an idle worker takes any number."""
        return self.idle or self.slots_free is None or sequences <= self.slots_free

    def expected_for(self, prompt: int, extend: int, output: int, sequences: int) -> float:
        """When a whole request is expected to fit, by what is missing for it; arguments as in `admits`.

        0, the past, if it fits now. Missing prefill is there when all prefill in flight is done; missing slots
        when enough sequences have ended; missing KV when enough answers have ended for the whole request beside
        the most that the others will hold from then on. A request larger than that fits the idle worker.
        """
        if self.idle:
            return 0.0
        due, batch = 0.0, self.batch
        if not self._window(extend):
            due = self.prefill_due
        if batch is None:
            return due if self._slots_and_kv(prompt, extend, output, sequences) else max(due, self.expected_at)
        if self.slots_free is not None and sequences > self.slots_free:
            steps = batch.steps_until_ended(sequences - self.slots_free)
            due = max(due, self.last_response_at + steps * self.step_s)
        if not self._kv(prompt, extend, output, sequences):
            steps = batch.steps_until_free(prompt, max(extend, prompt - batch.pinned), output * sequences)
            due = max(due, self.last_response_at + steps * self.step_s)
        return due

    def _window(self, extend: int) -> bool:
        return self.prefill_idle or extend <= self.prefill_free

    def _slots_and_kv(self, prompt: int, fresh: int, output: int, sequences: int) -> bool:
        if self.slots_free is not None and sequences > self.slots_free:
            return False
        return self._kv(prompt, fresh, output, sequences)

    def _kv(self, prompt: int, fresh: int, output: int, sequences: int) -> bool:
        if self.kv_free is None:
            return True
        batch = self.batch
        if batch is None:
            return fresh + output * sequences <= self.kv_free
        # A cached prefix that nothing in flight uses becomes occupied by being used.
        fresh = max(fresh, prompt - batch.pinned)
        if fresh + output * sequences <= self.kv_free:
            return True
        if self.kv_now is not None and fresh > self.kv_now:
            return False
        return batch.fits(Member(prompt, 0, output, sequences), fresh)


OPEN_ROOM = Room(idle=True, prefill_idle=True, prefill_free=0, slots_free=None, kv_free=None)
"""Admits any request."""


class LearnedSlots:
    """How many sequences an engine runs at once, where neither the operator nor the launch has said so.

    No bound until two readings in a row show requests waiting inside the engine: then the number that was running
    is the bound (one reading may catch requests on their way in). Whenever the bound was reached and nothing
    waited, it is raised by a quarter.
    """

    __slots__ = ("_waited", "bound", "peak")

    def __init__(self) -> None:
        self.bound: int | None = None
        self.peak = 0
        """Most sequences in flight at once since the last reading."""
        self._waited = 0
        """Sequences that ran at the last reading, if requests waited then; else 0."""

    def read(self, running: int, waiting: int, sequences: int) -> None:
        """Take in a reading of the worker's metrics; `sequences`: in flight there now, by our own count."""
        if waiting > 0:
            if self._waited:
                self.bound = max(running, self._waited)
            self._waited = max(1, running)
        else:
            if self.bound is not None and self.peak >= self.bound:
                self.bound += max(1, self.bound // 4)
            self._waited = 0
        self.peak = sequences
