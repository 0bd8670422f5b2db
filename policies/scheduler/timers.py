"""What is due when, for tickets that may be over long before.

A heap of times. Nothing is taken out when a ticket is over; what is over is dropped when it comes to the top, and
all of it at once whenever it may be half of the heap. So the heap is bounded by twice the tickets that are alive,
and the next time it names is one at which something is really due.
"""

import heapq
import math
from collections.abc import Callable

from policies.model import Ticket

_MIN_SIZE = 64


class Alarms:
    """Times of tickets; `alive` says whether a ticket's time still means anything."""

    def __init__(self, alive: Callable[[Ticket], bool]) -> None:
        self._alive = alive
        self._heap: list[tuple[float, Ticket]] = []
        self._limit = _MIN_SIZE

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, ticket: Ticket) -> None:
        if at == math.inf:
            return
        if len(self._heap) >= self._limit:
            self._heap = [alarm for alarm in self._heap if self._alive(alarm[1])]
            heapq.heapify(self._heap)
            self._limit = max(_MIN_SIZE, 2 * len(self._heap))
        heapq.heappush(self._heap, (at, ticket))

    def clear(self) -> None:
        """No ticket's time means anything any more."""
        self._heap.clear()

    def due(self, now: float) -> tuple[float, Ticket] | None:
        """Take out what is due, the earliest; None: nothing (more) is, which most often takes one comparison."""
        while self._heap and self._heap[0][0] <= now:
            alarm = heapq.heappop(self._heap)
            if self._alive(alarm[1]):
                return alarm
        return None

    def next(self) -> float | None:
        """The earliest time, None if there is none."""
        while self._heap and not self._alive(self._heap[0][1]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
