"""Mean and percentiles of measured values."""

from collections.abc import Iterable, Sequence
from statistics import fmean

NAMES = ("mean", "p50", "p90", "p99")
Spread = dict[str, float | None]


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and percentiles of the values that are there; None everywhere where there are none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return dict.fromkeys(NAMES)
    return {
        "mean": fmean(ordered),
        "p50": percentile(ordered, 0.5),
        "p90": percentile(ordered, 0.9),
        "p99": percentile(ordered, 0.99),
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one value, in rising order; linear between the two nearest ranks."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
