"""Does this request fit on that worker now?

A worker has room when the prefill it owes is at most about one engine step, the request's KV fits, and a
sequence slot is free. Prefill is the point: vLLM runs first come first served, so whatever the router sends
beyond the step in hand waits inside the engine, where no policy can reorder it any more.

One request always fits a worker that has nothing in flight, however long its prompt: the worker itself knows
best what it cannot serve, and says so with a 4xx.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
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
    expected_at: float
    """When room is next expected: the past if there is some now."""
    open: bool = field(init=False)
    """Whether any request at all could start now."""

    def __post_init__(self) -> None:
        is_open = self.idle or (
            (self.prefill_idle or self.prefill_free > 0)
            and (self.slots_free is None or self.slots_free > 0)
            and (self.kv_free is None or self.kv_free > 0)
        )
        object.__setattr__(self, "open", is_open)

    def admits(self, extend_tokens: int, kv_tokens: int, sequences: int) -> bool:
        """Whether a request fits: tokens to compute, KV tokens it will occupy at its end, sequences."""
        if self.idle:
            return True
        if not self.prefill_idle and extend_tokens > self.prefill_free:
            return False
        if self.slots_free is not None and sequences > self.slots_free:
            return False
        return self.kv_free is None or kv_tokens <= self.kv_free
