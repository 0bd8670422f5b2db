"""Which workers could run a request: the lane in which it waits.

Requests that the same workers could run wait in one lane. So a lane whose workers have no room is left out as a
whole, and hides no other: an order looks at lanes, however many requests wait in them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from policies.model import Placement, RequestView, WorkerFacts, WorkerId, WorkerView

LaneName = tuple[str, WorkerId | None, Placement | None, frozenset[WorkerId]]
"""The served name it asks for, where it is pinned to, which workers were named on arrival, where it has failed."""
Fifo = OrderedDict[str, RequestView]


def lane_of(request: RequestView) -> LaneName:
    """The lane of a request, by what decides who could run it."""
    return request.served_name, request.pinned, request.bound, request.excluded


def room_of(workers: Sequence[WorkerView]) -> dict[WorkerId, WorkerFacts]:
    """The workers with room for something, by name."""
    return {worker.id: worker.facts for worker in workers if worker.room.open}


def has_room(lane: LaneName, room: Mapping[WorkerId, WorkerFacts]) -> bool:
    """Whether a worker with room could run requests of the lane; of a pair that was named both need room."""
    served_name, pinned, bound, excluded = lane
    if bound is not None:
        return all(worker is None or worker in room for worker in bound)
    if pinned is not None:
        facts = room.get(pinned)
        return facts is not None and facts.usable and served_name in facts.served_names and pinned not in excluded
    for worker, facts in room.items():
        if facts.usable and served_name in facts.served_names and worker not in excluded:
            return True
    return False


class Lanes:
    """Waiting requests by lane, first in, first out within one; a request that returns stands where it stood."""

    __slots__ = ("_lanes", "_where")

    def __init__(self) -> None:
        self._lanes: dict[LaneName, Fifo] = {}
        self._where: dict[str, LaneName] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[RequestView]:
        return (request for lane in self._lanes.values() for request in lane.values())

    def push(self, request: RequestView, *, again: bool) -> None:
        """Add a request at the end of its lane; `again`: before those of the lane that arrived later."""
        name = self._where[request.id] = lane_of(request)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = OrderedDict()
        append(lane, request, again=again)

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        name = self._where.pop(request.id)
        lane = self._lanes[name]
        del lane[request.id]
        if not lane:
            del self._lanes[name]

    def with_room(self, workers: Sequence[WorkerView]) -> list[Fifo]:
        """The lanes that some worker with room could run."""
        if len(self._lanes) == 1:  # the matcher only asks while there is room
            return list(self._lanes.values())
        room = room_of(workers)
        return [lane for name, lane in self._lanes.items() if has_room(name, room)]


def append(lane: Fifo, request: RequestView, *, again: bool) -> None:
    """Add a request to a lane; `again`: to the place it had, by arrival."""
    lane[request.id] = request
    if again and len(lane) > 1:
        for younger in [other.id for other in lane.values() if other.arrived > request.arrived]:
            lane.move_to_end(younger)


def heads(lane: Fifo, depth: int) -> Iterator[RequestView]:
    """The oldest few of a lane."""
    return islice(lane.values(), depth)


def arrival(request: RequestView) -> tuple[float, str]:
    """Order of arrival, the same for every run."""
    return request.arrived, request.id
