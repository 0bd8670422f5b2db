"""The bounds that one pool's scheduler keeps to, whatever its policies."""

from dataclasses import dataclass
from typing import Literal

from policies.scheduler.disaggregation import Disaggregate


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Bounds of one pool."""

    max_queued: int = 4096
    max_wait_s: float = 600.0
    attempts: int = 3
    prefill_window_s: float = 0.2
    """Prefill in flight per worker, in time by its profile: about one engine step, or the way there and back where
    that takes longer."""
    prefill_window_tokens: int | None = None
    """The same in uncached tokens; set, it replaces the time."""
    kv_margin: float = 0.02
    """Share of a worker's KV cache that is left free: lengths are estimates, and output is known with a delay."""
    binding: Literal["late", "early"] = "late"
    """late: a request gets its worker when that has room. early: it is named one on arrival and waits for it."""
    hold_s: float = 5.0
    """How long in all a request may wait for a better worker beside workers with room for it; 0: never."""
    hold_gain: float = 0.2
    """Seconds of prefill that each second of such a wait has to save, for rules whose costs are seconds."""
    disaggregate: Disaggregate = "heatmap"
    """Whether a request runs on one worker or on a prefill/decode pair."""
