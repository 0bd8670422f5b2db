"""Who waits, smallest first: for orders that prefer requests by a size that does not change while they wait.

Requests stand in lanes with those that the same workers can serve, as in `backlog`. Each lane is kept sorted
twice, by size and by arrival, so that a step looks at a few from either end, whatever the length of the queue:
the smallest, whose turn it is, and the oldest, who may have waited long enough to come before them.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice

from policies.model import RequestView, WorkerView

_Name = tuple[str, str | None, frozenset[str]]
_Rank = tuple[float, float, str]


class SizedBacklog:
    """Lanes by size. `size` is asked once, when a request comes in: ties go by arrival."""

    def __init__(self, size: Callable[[RequestView], float]) -> None:
        self._size = size
        self._lanes: dict[_Name, _Lane] = {}
        self._ranks: dict[str, _Rank] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[RequestView]:
        return (one for lane in self._lanes.values() for one in lane.requests.values())

    def push(self, request: RequestView) -> _Rank:
        """Take a request in; its rank says where it stands."""
        rank = self._ranks[request.id] = (self._size(request), request.arrived, request.id)
        lane = self._lanes.setdefault(_name(request), _Lane())
        lane.requests[request.id] = request
        insort(lane.by_size, rank)
        insort(lane.by_arrival, rank[1:])
        return rank

    def remove(self, request: RequestView) -> None:
        """Let a request go. Raises KeyError for one that is not here."""
        rank, name = self._ranks.pop(request.id), _name(request)
        lane = self._lanes[name]
        del lane.requests[request.id]
        del lane.by_size[bisect_left(lane.by_size, rank)]
        del lane.by_arrival[bisect_left(lane.by_arrival, rank[1:])]
        if not lane.requests:
            del self._lanes[name]

    def in_order(
        self, workers: Sequence[WorkerView], now: float, patience_s: float, window: int
    ) -> list[RequestView]:
        """The oldest of the impatient and the smallest of all, at most `window` of either, each once.

        Only those that some worker with room could serve; where there is none, all.
        """
        lanes = self._servable(workers)
        by_age = merge(*(lane.oldest() for lane in lanes), key=_arrival)
        impatient = [one for one in islice(by_age, window) if now - one.arrived > patience_s]
        taken = {one.id for one in impatient}
        smallest = merge(*(lane.smallest() for lane in lanes), key=lambda one: self._ranks[one.id])
        return impatient + [one for one in islice(smallest, window) if one.id not in taken]

    def smallest(self, count: int) -> list[RequestView]:
        """The first few of all by size, whoever could serve them."""
        ranked = merge(*(lane.smallest() for lane in self._lanes.values()), key=lambda one: self._ranks[one.id])
        return list(islice(ranked, count))

    def _servable(self, workers: Sequence[WorkerView]) -> "list[_Lane]":
        room = [worker.facts for worker in workers if worker.room.open]
        lanes = list(self._lanes.values())
        served = [lane for lane in lanes if any(facts.serves(next(lane.smallest())) for facts in room)]
        return served or lanes


class _Lane:
    """Requests that the same workers can serve, never none."""

    __slots__ = ("by_arrival", "by_size", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, RequestView] = {}
        self.by_size: list[_Rank] = []
        self.by_arrival: list[tuple[float, str]] = []

    def smallest(self) -> Iterator[RequestView]:
        return (self.requests[rank[2]] for rank in self.by_size)

    def oldest(self) -> Iterator[RequestView]:
        return (self.requests[rank[1]] for rank in self.by_arrival)


def _name(request: RequestView) -> _Name:
    """By what decides who could serve a request."""
    return request.served_name, request.pinned, request.excluded


def _arrival(request: RequestView) -> tuple[float, str]:
    return request.arrived, request.id
