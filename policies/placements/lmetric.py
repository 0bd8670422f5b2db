"""Where is the product of prefill work and queue length smallest?

Source: LMetric (arXiv 2603.15202).

The argmin of (uncached tokens of the request on w + prefill tokens owed on w) times (requests on w). It has no
parameters, and trades locality against load by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, RequestView, WorkerView
from policies.placements.kit.cheapest import cheapest


@dataclass(frozen=True, slots=True)
class Settings:
    """LMetric has nothing to set."""


class LMetric:
    """The product as printed; the many ties at zero requests go to the least prefill work."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - the metric does not depend on time
    ) -> Place | None:
        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            prefill = request.input_tokens - matched + worker.prefill_owed
            return prefill * worker.requests, prefill

        return cheapest(request, matches, workers, cost)

    def on(self, event: Event) -> None:
        """Matches and load are counted by the scheduler."""
