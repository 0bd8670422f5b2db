"""Where would the least KV have to be computed and held?

Source: the KV router of NVIDIA Dynamo.

`max(0, prefill in flight + prompt - overlap) + decode in flight`, in KV blocks there and in tokens here; the
lowest cost wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, RequestView, WorkerView
from policies.placements.kit.cheapest import cheapest


@dataclass(frozen=True, slots=True)
class Settings:
    overlap_weight: float = 1.0
    """How much a cached token counts against a token to hold."""


class KvCost:
    """Ties go to the worker with fewer requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - the cost does not depend on time
    ) -> Place | None:
        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            overlap = self._settings.overlap_weight * matched
            prefill = max(0.0, worker.prefill_owed + request.input_tokens - overlap)
            return prefill + worker.decode_tokens, worker.requests

        return cheapest(request, matches, workers, cost)

    def on(self, event: Event) -> None:
        """Matches and load are counted by the scheduler."""
