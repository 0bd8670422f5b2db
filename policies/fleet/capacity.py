"""Does this request fit on that worker now?

A worker has room when the prefill it owes is at most about one engine step, the request's KV fits, and a
sequence slot is free. Prefill is the point: vLLM runs first come first served, so whatever the router sends
beyond the step in hand waits inside the engine, where no policy can reorder it any more.

KV fits if there is enough of it even with all answers in flight at their full expected length; and also if there
is not, as long as enough of them end in time (`fits.py`).

Of a prefill/decode pair one worker needs room for the prefill and the prompt, the other a slot and KV for prompt
and answer; the window is no matter of the latter, which has no prefill to do.

One request always fits a worker that has nothing in flight, however long its prompt: the worker itself knows
best what it cannot serve, and says so with a 4xx.
"""

from dataclasses import field

from policies.fleet.kv_fit import Batch, Member
from policies.value import value


@value
class Room:
    """What a worker can still take. None means that no bound is known."""

    idle: bool
    """Nothing in flight at all."""
    prefill_idle: bool
    """No prefill in flight: one prompt of any length may start."""
    prefill_free: int
    """Extend tokens that may be dispatched before the window is full."""
    slots_free: int | None
    kv_free: int | None
    """KV tokens left when everything in flight has its full expected length at once."""
    expected_at: float
    """When room is next expected: the past if there is some now."""
    kv_now: int | None = None
    """KV tokens that nothing holds at this moment."""
    batch: Batch | None = field(default=None, compare=False)
    """What is in flight, to ask when `kv_free` is too little; None: then it is too little."""
    prefills: bool = True
    """The worker is there for prompts; so with answers."""
    decodes: bool = True
    open: bool = field(init=False)
    """Whether any request, or any part of one that the worker is there for, could start now."""

    def __post_init__(self) -> None:
        window = self.prefill_idle or self.prefill_free > 0 or not self.prefills
        slot = self.slots_free is None or self.slots_free > 0 or not self.decodes
        free = self.kv_free if self.batch is None else self.kv_now
        is_open = self.idle or (window and slot and (free is None or free > 0))
        object.__setattr__(self, "open", is_open)

    def admits(self, prompt: int, extend: int, output: int, sequences: int) -> bool:
        """Whether a whole request fits: tokens of its prompt, of these to compute, of each expected answer."""
        return self.idle or (self._window(extend) and self._slots_and_kv(prompt, extend, output, sequences))

    def admits_prefill(self, prompt: int, extend: int) -> bool:
        """Whether the prompt fits that another worker will answer."""
        return self.idle or (self._window(extend) and self._kv(prompt, extend, 0, 1))

    def admits_decode(self, prompt: int, fresh: int, output: int, sequences: int) -> bool:
        """Whether a request fits whose prompt another worker computes; `fresh`: of it, not in the cache here."""
        return self.idle or self._slots_and_kv(prompt, fresh, output, sequences)

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
        # A prefix that is cached but that nobody is using becomes occupied by being used.
        fresh = max(fresh, prompt - batch.pinned)
        if fresh + output * sequences <= self.kv_free:
            return True
        if self.kv_now is not None and fresh > self.kv_now:
            return False
        return batch.fits(Member(prompt, 0, output, sequences), fresh)
