"""Exponential back-off: each failure in a row doubles the pause before the next attempt, up to a bound."""

from dataclasses import dataclass

_MOST_DOUBLINGS = 32
"""Bounds the exponent: what fails for days must not overflow a float."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds. Raises ValueError unless `0 < first_s <= longest_s` and `factor >= 1`."""

    first_s: float = 1.0
    longest_s: float = 60.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s:
            raise ValueError("a back-off needs 0 < first_s <= longest_s")
        if not self.factor >= 1:
            raise ValueError("a back-off needs factor >= 1")

    def delay_s(self, failures: int) -> float:
        """Return the pause after `failures` failures in a row (1, 2, ...)."""
        return min(self.longest_s, self.first_s * self.factor ** min(max(failures, 1) - 1, _MOST_DOUBLINGS))
