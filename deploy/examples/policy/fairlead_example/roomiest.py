"""Which worker has the most KV memory to spare?

Source: best fit turned around; an example of a placement in a package of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, WorkerView
from policies.placements.kit.ranking import by_cost
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration can set; the texts below the fields are printed by `fairlead policies roomiest`."""

    cached: float = 1.0
    """How many tokens of free KV memory a cached token of the prompt is worth."""


class Roomiest(PlacementPolicy):
    """Least KV reserved, less what the worker already holds of the prompt."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        """Every worker, best first; the cost is in tokens."""

        def cost(worker: WorkerView, matched: int) -> tuple[float, ...]:
            return (worker.kv_reserved - self._settings.cached * matched,)

        return by_cost(question, cost)
