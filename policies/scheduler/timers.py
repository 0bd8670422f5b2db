"""Times at which something is due for a ticket that may have ended long before.

A heap of times. An entry is not removed when its ticket ends; what has ended is dropped when it comes to the top,
and all of it at once whenever it may be more than half of the heap. So the heap is bounded by twice the requests
that are here (and `_MIN_SIZE`), and `next` names a time at which something is really due.
"""

import heapq
import math
from collections.abc import Callable, Sized

from policies.model import Ticket

_MIN_SIZE = 64


class Timers:
    """Times of tickets.

    `alive` says whether a ticket's time still means anything; `requests` are those that have tickets, of which at
    most one each is alive.
    """

    def __init__(self, alive: Callable[[Ticket], bool], requests: Sized) -> None:
        self.earliest = math.inf
        """Before this time nothing is due."""
        self._alive = alive
        self._requests = requests
        self._heap: list[tuple[float, Ticket]] = []

    def __len__(self) -> int:
        """Entries in the heap, ended tickets included."""
        return len(self._heap)

    def set(self, at: float, ticket: Ticket) -> None:
        """Note that something is due for the ticket at `at`; infinity: never."""
        if at == math.inf:
            return
        if len(self._heap) >= 2 * len(self._requests) + _MIN_SIZE:
            self._heap = [timer for timer in self._heap if self._alive(timer[1])]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (at, ticket))
        self.earliest = self._heap[0][0]

    def clear(self) -> None:
        """Drop everything: no ticket's time means anything any more."""
        self._heap.clear()
        self.earliest = math.inf

    def due(self, now: float) -> tuple[float, Ticket] | None:
        """Remove and return the earliest entry that is due; None if nothing (more) is."""
        while self.earliest <= now:
            timer = self._pop()
            if self._alive(timer[1]):
                return timer
        return None

    def next(self) -> float | None:
        """The earliest time at which something is due, None if there is none."""
        while self._heap and not self._alive(self._heap[0][1]):
            self._pop()
        return self._heap[0][0] if self._heap else None

    def _pop(self) -> tuple[float, Ticket]:
        timer = heapq.heappop(self._heap)
        self.earliest = self._heap[0][0] if self._heap else math.inf
        return timer
