"""Who waits: by whose turn it is, and by which workers could serve them.

A request stands in a lane with those that the same workers can serve, and lanes stand in groups (one per client,
per level). Within a lane it is first in, first out. A lane whose workers are full does not hide the others: orders
choose among the lanes that some worker with room could serve.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

from policies.model import RequestView, WorkerView
from policies.orders.kit.ageing import arrival

Group = TypeVar("Group", str, int)
_Name = tuple[str, str | None, frozenset[str]]
Lane = OrderedDict[str, RequestView]
Lanes = Mapping[_Name, Lane]
"""By what decides who could serve a request: its line, where it is pinned to, which workers have failed it."""


class Backlog(Generic[Group]):
    """Lanes by group; a request that comes back stands where it stood."""

    def __init__(self) -> None:
        self.groups: dict[Group, dict[_Name, Lane]] = {}
        self._kinds: dict[_Name, dict[Group, None]] = {}
        """Which groups have such a lane."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RequestView]:
        return (one for lanes in self.groups.values() for lane in lanes.values() for one in lane.values())

    def push(self, group: Group, request: RequestView, *, again: bool) -> None:
        name = _name(request)
        lane = self.groups.setdefault(group, {}).setdefault(name, OrderedDict())
        self._kinds.setdefault(name, {})[group] = None
        lane[request.id] = request
        if again:  # back to where it stood
            for younger in [other.id for other in lane.values() if other.arrived > request.arrived]:
                lane.move_to_end(younger)
        self._count += 1

    def remove(self, group: Group, request: RequestView) -> None:
        name, lanes = _name(request), self.groups[group]
        del lanes[name][request.id]
        self._count -= 1
        if lanes[name]:
            return
        del lanes[name], self._kinds[name][group]
        if not lanes:
            del self.groups[group]
        if not self._kinds[name]:
            del self._kinds[name]

    def servable(self, workers: Sequence[WorkerView]) -> Mapping[Group, Lanes]:
        """The lanes that some worker with room could serve; where there is no such lane, all."""
        room = [worker.facts for worker in workers if worker.room.open]
        served = {
            name
            for name, groups in self._kinds.items()
            if any(worker.serves(oldest(self.groups[next(iter(groups))][name])) for worker in room)
        }
        if not served or len(served) == len(self._kinds):
            return self.groups
        return {
            group: {name: lane for name, lane in lanes.items() if name in served}
            for group, lanes in self.groups.items()
            if not served.isdisjoint(lanes)
        }


def oldest(lane: Lane) -> RequestView:
    """The head of a lane; lanes are never empty."""
    return next(iter(lane.values()))


def heads(lanes: Lanes, depth: int) -> list[RequestView]:
    """The oldest few of each lane, in order of arrival."""
    first = [request for lane in lanes.values() for request in islice(lane.values(), depth)]
    return sorted(first, key=arrival) if len(lanes) > 1 else first


def _name(request: RequestView) -> _Name:
    return request.served_name, request.pinned, request.excluded
