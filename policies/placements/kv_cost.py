"""Where would the least KV have to be computed and held?

Source: the KV router of NVIDIA Dynamo.

    cost = max(0, prefill tokens in flight + prompt - overlap) + decode tokens in flight

In KV blocks there and in tokens here. Ties go to the worker with fewer requests.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, WorkerView
from policies.placements.kit.ranking import by_cost
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    overlap_weight: float = 1.0
    """How much a cached token counts against a token to hold."""


class KvCost(PlacementPolicy):
    """The lowest cost wins."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        prompt, weight = question.request.input_tokens, self._settings.overlap_weight

        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            prefill = max(0.0, worker.prefill_owed + prompt - weight * matched)
            return prefill + worker.decode_tokens, worker.requests

        return by_cost(question, cost)
