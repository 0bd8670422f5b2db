"""KV that goes from one engine to another: what is held here for a fetch, and what is on its way to here.

After vLLM's NIXL connector. On the prefill side a sequence that has ended leaves its blocks held under its id
until the other engine has fetched them, or its lease ends. On the decode side a prompt has its blocks from the
moment its transfer begins, and may run once the transfer has ended.

Invariants: leases stand in the order in which they end, as all have the same length; every sequence here that has
not ended (`done`) holds the blocks of its whole prompt, and is in exactly one of `_coming` and `ready`.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from workers.simulator.kv_cache import BlockPool
from workers.simulator.sequences import EngineSequence


class Leases:
    """Blocks of ended prefills that were not fetched yet."""

    def __init__(self, pool: BlockPool, lease_s: float) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._held: dict[str, tuple[Sequence[int], float]] = {}
        self.expired = 0

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, request_id: str, blocks: Sequence[int], now: float) -> None:
        """Hold the blocks of a sequence that is about to let go of them."""
        self._pool.take(blocks, 0)
        self._held[request_id] = (tuple(blocks), now + self._lease_s)

    def let_go(self, request_id: str) -> bool:
        """The blocks were fetched, or are not wanted; False where they are not held (any more)."""
        blocks, _ = self._held.pop(request_id, ((), 0.0))
        self._pool.release(blocks)
        return bool(blocks)

    def renew(self, request_id: str, now: float) -> bool:
        """Begin the lease anew; False where it has ended or the blocks were fetched."""
        held = self._held.pop(request_id, None)
        if held is not None:
            self._held[request_id] = (held[0], now + self._lease_s)
        return held is not None

    def next_end(self) -> float | None:
        return next((ends for _, ends in self._held.values()), None)

    def expire(self, now: float) -> None:
        while (ends := self.next_end()) is not None and ends <= now:
            self.let_go(next(iter(self._held)))
            self.expired += 1


class Transfers:
    """Sequences whose prompt comes from another engine."""

    def __init__(self) -> None:
        self._coming: list[tuple[float, int, EngineSequence]] = []
        self.ready: deque[EngineSequence] = deque()
        """Those whose prompt is here, in the order in which it came."""
        self.count = 0
        """Not ended and not started yet."""

    def begin(self, sequence: EngineSequence, ends: float) -> None:
        heappush(self._coming, (ends, sequence.order, sequence))
        self.count += 1

    def next_end(self) -> float | None:
        while self._coming and self._coming[0][2].done:
            heappop(self._coming)
        return self._coming[0][0] if self._coming else None

    def arrive(self, now: float) -> None:
        """What has been transferred by now is ready."""
        while (ends := self.next_end()) is not None and ends <= now:
            self.ready.append(heappop(self._coming)[2])

    def next_ready(self) -> EngineSequence | None:
        """Who may start next; it stays here until `start`."""
        while self.ready and self.ready[0].done:
            self.ready.popleft()
        return self.ready[0] if self.ready else None

    def start(self) -> None:
        self.ready.popleft()
        self.count -= 1
