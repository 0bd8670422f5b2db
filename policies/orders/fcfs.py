"""Who came first? First come, first served, except past a request that cannot start anywhere yet.

Source: first come, first served, vLLM's own default.

Requests for different lines, or pinned to one worker, wait in lanes of their own, so that a lane whose workers
are full does not stop the others. Within a lane nobody passes a request that has no room; but while the placement
would rather let it wait for a certain worker, those behind may have what it leaves. Overtaking is bounded: once a
request has waited `patience_s`, everybody younger keeps off the workers that could serve it.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from policies.events import NONE, Event
from policies.model import Candidate, RequestView, WorkerView

_Lane = tuple[str, str | None, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 1.0
    """How long a request may be overtaken by those that other workers can serve, or whose workers it leaves."""
    window: int = 64
    """Requests of a lane that may be looked at per step."""


class Fcfs:
    """A queue of lanes; the heads of the lanes are the candidates, oldest first, then who is behind them."""

    hears = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes: dict[_Lane, OrderedDict[str, RequestView]] = {}
        self._turns: dict[str, int] = {}
        """In which order requests were pushed: who came first among those that arrived at the same time."""
        self._serials = count()

    def __len__(self) -> int:
        return len(self._turns)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        lane = self._lanes.setdefault(_lane(request), OrderedDict())
        lane[request.id] = request
        if again:  # back to where it stood; those in its lane have all come back, in any order
            for younger in [other.id for other in lane.values() if other.arrived > request.arrived]:
                lane.move_to_end(younger)
        self._turns[request.id] = next(self._serials)

    def remove(self, request: RequestView) -> None:
        name = _lane(request)
        lane = self._lanes[name]
        del lane[request.id], self._turns[request.id]
        if not lane:
            del self._lanes[name]

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        kept: frozenset[str] = frozenset()
        lanes = (self._in_line(lane) for lane in self._lanes.values())
        for request, behind in heapq.merge(*lanes, key=lambda one: self._arrival(one[0])):
            yield Candidate(request, kept, behind=behind)
            if now - request.arrived > self._settings.patience_s:
                kept |= {worker.id for worker in workers if worker.facts.serves(request)}

    def waiting(self) -> Iterator[RequestView]:
        return (request for lane in self._lanes.values() for request in lane.values())

    def on(self, event: Event) -> None:
        """Order of arrival keeps no accounts."""

    def _in_line(self, lane: OrderedDict[str, RequestView]) -> Iterator[tuple[RequestView, RequestView | None]]:
        """The first few of a lane, each with the one before it."""
        behind = None
        for request in islice(lane.values(), self._settings.window):
            yield request, behind
            behind = request

    def _arrival(self, request: RequestView) -> tuple[float, int]:
        return request.arrived, self._turns[request.id]


def _lane(request: RequestView) -> _Lane:
    return request.served_name, request.pinned, request.excluded
