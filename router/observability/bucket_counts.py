"""A histogram that costs little to add to: prometheus_client's checks, locks and converts at every call."""

from bisect import bisect_left
from collections.abc import Sequence


class BucketCounts:
    """How many values lie up to each bound and above the one before; the last count is of those above all.

    To be counted from one thread only.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def copy(self) -> tuple[float, ...]:
        """The counts per bucket, then the sum of all values, as they are now."""
        return (*self.counts, self.sum)
