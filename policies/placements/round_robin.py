"""Which worker's turn is it? One after the other.

Source: round robin, the default of most load balancers.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import Bound, Event
from policies.model import Question, Ranked, Reason
from policies.placements.kit.ranking import in_order
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Taking turns has nothing to set."""


class RoundRobin(PlacementPolicy):
    """The cursor is a count of placements, so workers may come and go without upsetting the turn."""

    hears: ClassVar[frozenset[type[Event]]] = frozenset({Bound})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = 0

    def rank(self, question: Question) -> list[Ranked]:
        workers = list(question.workers)
        first = self._turn % len(workers)
        return in_order(workers[first:] + workers[:first], Reason.TURN)

    def on(self, event: Event) -> None:
        if isinstance(event, Bound):
            self._turn += 1
