"""How many streams of dead workers may be on their way to another one at once.

Deaths come in bursts: a worker takes all its streams along, and each of them costs a prefill elsewhere. So only so
many are at it together, and the others wait their turn in the order in which they broke.

Invariant: `_open` counts the takers that have not given back, at most `limit` of them unless it was lowered.
"""

import asyncio
from collections import deque


class Seams:
    """Places for streams between their worker's death and the first token that another one brings."""

    __slots__ = ("_open", "_waiting", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """May change at any time; what is taken stays taken."""
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Places taken."""
        return self._open

    @property
    def waiting(self) -> int:
        """Streams that wait for one."""
        return len(self._waiting)

    async def take(self) -> None:
        """Wait for a place. Cancelled while waiting, none is taken."""
        if self._open < self.limit and not self._waiting:
            self._open += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                self._waiting.remove(turn)
            raise

    def give_back(self) -> None:
        """The place of one that has a token, or has ended."""
        self._open -= 1
        while self._waiting and self._open < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._open += 1
                turn.set_result(None)
