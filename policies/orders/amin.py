"""Whose answer may be the shortest, and what do the answers that run turn out to be?

Source: A_min (arXiv 2508.14544).

Every estimate starts at the lower end of its length interval; ascending estimates, admitted while everything
fits by these estimates, stop at the first failure. An answer that reaches its estimate raises it [paper]. Bold
at first and corrected by what is seen: the ratio to the optimum is logarithmic in upper/lower [paper].

[ours] The paper evicts on overflow, in ascending estimate, and starts the evicted again with what they had
generated as their estimate. A router cannot evict inside a worker, which preempts by itself. The lower end is
the 10% quantile; the scheduler takes it as the request's expected length, so the test of memory reserves it. An
answer that reaches it is from then on expected to be as long as other answers that were so long already. Without
an interval the mean is both ends. Several workers and ageing as in `mc_sf`.
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


class AMin(SizedOrder):
    """MC-SF for the best case; the scheduler corrects it as answers grow."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(self.estimate, skips=False, halves_s=settings.halves_s, window=settings.window)

    def estimate(self, request: RequestView) -> int:
        """The lower end of its length interval."""
        return request.expected_output_tokens if request.length is None else request.length.lower
