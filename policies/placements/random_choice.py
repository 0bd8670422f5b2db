"""Any worker? A seeded choice: the baseline that knows nothing.

Source: random load balancing, as in nginx and Envoy.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.knowledge import Knowledge
from policies.model import Question, Ranked, Reason
from policies.placements.kit.draw import draw
from policies.placements.kit.ranking import in_order
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Chance has nothing to set."""


class RandomChoice(PlacementPolicy):
    """The draw follows from the request's id: asking twice gives the same worker, then the ones after it."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._seed = knowledge.rng.getrandbits(64)

    def rank(self, question: Question) -> list[Ranked]:
        workers = list(question.workers)
        first = draw(question.request, self._seed) % len(workers)
        return in_order(workers[first:] + workers[:first], Reason.CHANCE)
