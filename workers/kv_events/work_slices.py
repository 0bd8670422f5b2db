"""A bounded slice of work per turn of the event loop, however many take part and however much each has to do."""

import asyncio
from collections.abc import Callable, Sequence

from workers.kv_events.decode import KvEvent, cost, parts


class WorkSlices:
    """Shared by all subscriptions of one loop. A slice is `most` blocks; each part of a batch counts as one more.

    The subscription that fills a slice yields to the event loop while the others wait; they take turns.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._spent = 0
        self._one_at_a_time = asyncio.Lock()

    async def apply(self, events: Sequence[KvEvent], act: Callable[[Sequence[KvEvent]], None]) -> None:
        """Call `act` with all events, in order and in parts of at most a slice."""
        for part in parts(events, self._most):
            async with self._one_at_a_time:
                act(part)
                await self._spend(cost(part) + 1)

    async def pass_over(self) -> None:
        """Count a message that came to nothing: many of them hold the loop up, too."""
        async with self._one_at_a_time:
            await self._spend(1)

    async def _spend(self, blocks: int) -> None:
        self._spent += blocks
        if self._spent >= self._most:
            self._spent = 0
            await asyncio.sleep(0)
