"""Whose turn is it? Workers with room, one after the other.

Source: round robin, the default of most load balancers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Bound, Event
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    """Taking turns has nothing to set."""


class RoundRobin:
    """The cursor is a count of placements, so workers may come and go without upsetting the turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = 0

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - turns do not depend on time
    ) -> Place | None:
        for step in range(len(workers)):
            worker = workers[(self._turn + step) % len(workers)]
            matched = matches.get(worker.id, 0)
            if worker.admits(request, matched):
                return Place(Placement(worker.id), Reason.TURN, matched)
        return None

    def on(self, event: Event) -> None:
        if isinstance(event, Bound):
            self._turn += 1
