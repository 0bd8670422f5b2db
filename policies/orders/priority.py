"""Who matters most? Strict levels, lower first as in vLLM, and within a level order of arrival.

Source: the priority scheduling of vLLM (`--scheduling-policy priority`), with ageing.

It ages: every `promote_s` of waiting counts as one level, so that the lowest level is only slow and never starved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.ageing import aged_first, arrival
from policies.orders.kit.lanes import Backlog, oldest


@dataclass(frozen=True, slots=True)
class Settings:
    promote_s: float = 5.0
    """Waiting so long is worth one level."""
    patience_s: float = 60.0
    """From here on a request keeps everybody younger off the workers that it could use."""


class Priority:
    """Levels of lanes; the heads of the lanes compete."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._knowledge = knowledge
        self._levels: Backlog[int] = Backlog()

    def __len__(self) -> int:
        return len(self._levels)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        self._levels.push(request.priority, request, again=again)

    def remove(self, request: RequestView) -> None:
        self._levels.remove(request.priority, request)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        heads = [oldest(lane) for lanes in self._levels.servable(workers).values() for lane in lanes.values()]
        heads.sort(key=lambda r: (r.priority - (now - r.arrived) // self._settings.promote_s, *arrival(r)))
        return aged_first(heads, workers, now, self._settings.patience_s)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._levels)

    def on(self, event: Event) -> None:
        """Levels come with the requests; there are no accounts."""
