"""Where is the product of prefill work and queue length smallest?

Source: LMetric (arXiv 2603.15202).

    cost = (uncached tokens of the request on w + prefill tokens owed on w) * requests on w

It has no parameters, and trades locality against load by itself. The many ties at zero requests go to the least
prefill work.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, WorkerView
from policies.placements.kit.ranking import by_cost
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """LMetric has nothing to set."""


class LMetric(PlacementPolicy):
    """The product as printed."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        prompt = question.request.input_tokens

        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            prefill = prompt - matched + worker.prefill_owed
            return prefill * worker.requests, prefill

        return by_cost(question, cost)
