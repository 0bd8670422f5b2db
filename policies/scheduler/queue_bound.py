"""Which request is turned away when the queue is full: the newest of the party that holds most of it.

The bound of a queue says nothing of parties, so a flood that fills it would shut out a party that has never been
served. What is compared is the number of waiting requests divided by the weight, level by level from the top of
the party tree: first the organisations or keys, then the teams of the largest one, then its users.

Theory. Each level is a sorted list of its children by load, so adding, removing and the choice take O(log n) at
each level. Of equal loads the one to which a request was added last is first, so that among parties with a
request each the newcomer is turned away.

Invariants: the loads of a level's children sum up to its own requests; parties without requests are not kept.
"""

from bisect import bisect_left, insort

from policies.model import RequestView

_Seat = tuple[float, int, str]
"""Load, number of the last request that was added, name of the child."""
_Place = tuple[float, int, RequestView]
"""Arrival and number of a request; numbers differ, so requests are never compared."""


class _Level:
    """One party, or one level above parties."""

    __slots__ = ("children", "count", "last", "requests", "seats", "weight")

    def __init__(self) -> None:
        self.weight = 1.0
        self.count = 0
        """Waiting requests, those of its children included."""
        self.last = 0
        self.children: dict[str, _Level] = {}
        self.seats: list[_Seat] = []
        """Of its children, largest load last."""
        self.requests: list[_Place] = []
        """Of this very party, newest last."""


class QueueBound:
    """The waiting requests of one queue, by party."""

    def __init__(self) -> None:
        self._root = _Level()
        self._numbers: dict[str, int] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, request: RequestView) -> None:
        """A request waits from now on."""
        self._added += 1
        self._numbers[request.id] = self._added
        party, weights = request.party or (request.client,), request.weights or (request.weight,)
        level = self._root
        level.count += 1
        for depth, name in enumerate(party):
            child = level.children.get(name)
            if child is None:
                child = level.children[name] = _Level()
            else:
                del level.seats[bisect_left(level.seats, (child.count / child.weight, child.last, name))]
            child.weight = weights[depth] if depth < len(weights) else 1.0
            child.count += 1
            child.last = self._added
            insort(level.seats, (child.count / child.weight, child.last, name))
            level = child
        insort(level.requests, (request.arrived, self._added, request))

    def remove(self, request: RequestView) -> None:
        """A request waits no longer. Raises KeyError for one that was not added."""
        number = self._numbers.pop(request.id)
        level = self._root
        level.count -= 1
        for name in request.party or (request.client,):
            child = level.children[name]
            del level.seats[bisect_left(level.seats, (child.count / child.weight, child.last, name))]
            child.count -= 1
            if child.count:
                insort(level.seats, (child.count / child.weight, child.last, name))
            else:
                del level.children[name]
            level = child
        del level.requests[bisect_left(level.requests, (request.arrived, number))]

    def to_reject(self) -> RequestView:
        """The request to turn away. Raises IndexError if none waits."""
        level = self._root
        while level.seats:
            load, _, name = level.seats[-1]
            if len(level.requests) >= load:  # the party itself, beside those below it
                break
            level = level.children[name]
        return level.requests[-1][2]
