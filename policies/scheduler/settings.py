"""The bounds that one pool's scheduler keeps to, whatever its policies."""

from dataclasses import dataclass

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
    """Share of a worker's KV cache that is left free: lengths are estimates, and output is heard of late."""
    hold_s: float = 5.0
    """How long in all a placement may let a request wait beside workers with room for it; 0: never."""
    disaggregate: Disaggregate = "heatmap"
    """For requests whose placement policy has failed; the policy itself knows what it was built with."""
