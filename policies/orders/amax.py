"""Whose answer is the shortest even if every answer is as long as it may well be?

Source: A_max (arXiv 2508.14544).

MC-SF with the upper end of each length interval for the length: ascending upper bound, admitted while everything
fits to the end even so, stop at the first failure [paper]. Never an overflow while the intervals hold, at the
price of memory that stays unused: the ratio to the optimum grows with upper/lower [paper].

[ours] The upper end is the 95% quantile of the estimate (`policies/estimates/answer_length.py`). The scheduler
takes it as the request's expected length, so the test of memory reserves it; an answer that passes it is
estimated anew. Without an interval the mean is both ends. Several workers and ageing as in `mc_sf`.
"""

from dataclasses import dataclass

from policies.model import RequestView
from policies.orders.kit.sizes import SizedOrder


@dataclass(frozen=True, slots=True)
class Settings:
    halves_s: float = 120.0
    """An answer counts as half as long each time its request has waited this many seconds."""
    window: int = 64
    """Lanes of which the first request is offered per step."""


class AMax(SizedOrder):
    """MC-SF for the worst case."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(self.estimate, skips=False, halves_s=settings.halves_s, window=settings.window)

    def estimate(self, request: RequestView) -> int:
        """The upper end of its length interval."""
        return request.expected_output_tokens if request.length is None else request.length.upper
