"""Is this numbered batch the next one, one already known, one after a gap, or one of another process?

Every life of an engine's process numbers its batches from 0 and dates them with a clock that does not go back. A
subscriber has two views of one sequence: what it hears as it is published, and what is repeated for it. The two
overlap, so a small number alone does not tell another process; a date later than all those known does, and so does
a number that was heard before.
"""

import math
from enum import Enum


class Place(Enum):
    """Where a batch that was just heard belongs."""

    NEXT = "next"
    KNOWN = "known"
    AFTER_GAP = "after a gap"
    ANOTHER_PROCESS = "another process"


class BatchOrder:
    """How far the batches of one process have been taken in, without a hole."""

    __slots__ = ("_heard", "_newest", "before", "next")

    def __init__(self) -> None:
        self.next = 0
        """Number of the batch that is wanted."""
        self.before: float | None = None
        """Date of the batch just before it, where that was read."""
        self._newest = -math.inf
        self._heard = -1

    def place(self, number: int, ts: float) -> Place:
        """Judge a batch that was published. Changes nothing."""
        if number <= self._heard:
            return Place.ANOTHER_PROCESS
        if number > self.next:
            return Place.AFTER_GAP
        if number == self.next:
            return Place.NEXT
        return Place.ANOTHER_PROCESS if ts > self._newest else Place.KNOWN

    def hear(self, number: int) -> None:
        """Note that a batch was published."""
        self._heard = number

    def take(self, number: int, ts: float | None) -> None:
        """Note that everything up to this batch is settled. `ts`: None where the batch could not be read."""
        self.next = number + 1
        self.before = ts
        if ts is not None:
            self._newest = max(self._newest, ts)

    def skip_to(self, number: int) -> None:
        """Give up what comes before this batch."""
        self.next = number
        self.before = None
