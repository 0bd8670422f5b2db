"""Who matters most? Strict levels, lower first as in vLLM, and within a level order of arrival.

It ages: every `promote_s` of waiting counts as one level, so that the lowest level is only slow and never starved.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.queue.ageing import aged_first, arrival


@dataclass(frozen=True, slots=True)
class Settings:
    promote_s: float = 5.0
    """Waiting so long is worth one level."""
    patience_s: float = 60.0
    """From here on a request keeps everybody younger off the workers that it could use."""


class Priority:
    """A lane per level; the heads of the lanes compete. Levels are at most as many as requests wait."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._knowledge = knowledge
        self._levels: dict[int, OrderedDict[str, RequestView]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, request: RequestView, *, again: bool = False) -> None:
        level = self._levels.setdefault(request.priority, OrderedDict())
        level[request.id] = request
        if again:  # back to where it stood
            for younger in [other.id for other in level.values() if other.arrived > request.arrived]:
                level.move_to_end(younger)
        self._count += 1

    def remove(self, request: RequestView) -> None:
        level = self._levels[request.priority]
        del level[request.id]
        self._count -= 1
        if not level:
            del self._levels[request.priority]

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        heads = [next(iter(level.values())) for level in self._levels.values()]
        heads.sort(key=lambda r: (r.priority - (now - r.arrived) // self._settings.promote_s, *arrival(r)))
        return aged_first(heads, workers, now, self._settings.patience_s)

    def waiting(self) -> Iterator[RequestView]:
        return (request for level in self._levels.values() for request in level.values())

    def on(self, event: Event) -> None:
        """Levels come with the requests; there are no accounts."""
