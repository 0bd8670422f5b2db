"""What one worker is believed to hold, and in which order it will lose it: the LRU side of the prefix tree."""

from heapq import heappop, heappush

from policies.prefixes.radix_tree import Node


class BelievedCache:
    """What one worker is believed to hold, in units, and its leaves in order of use."""

    __slots__ = ("capacity", "gone", "heap", "held", "leaves", "pinned", "worker")

    def __init__(self, worker: str, capacity: int) -> None:
        self.worker = worker
        self.capacity = capacity
        self.held = 0
        self.pinned = 0
        self.leaves: dict[float, Node] = {}
        self.heap: list[float] = []
        self.gone = False

    def expose(self, node: Node) -> None:
        """List the node among the leaves if it has become one; pinned nodes and the root never are."""
        worker = self.worker
        if node.parent is None or worker in node.held_children or worker in node.pins:
            return
        stamp = node.stamps[worker]
        self.leaves[stamp] = node
        heappush(self.heap, stamp)
        if len(self.heap) > 2 * len(self.leaves) + 64:
            self.heap = sorted(self.leaves)

    def conceal(self, node: Node, stamp: float) -> None:
        """Take the node off the leaves, if it is there; its stamp in the heap is now outdated."""
        if self.leaves.get(stamp) is node:
            del self.leaves[stamp]

    def oldest(self) -> Node | None:
        """The leaf that was least recently used; None if all that is held is pinned."""
        if not self.leaves:
            return None
        while (leaf := self.leaves.get(self.heap[0])) is None:
            heappop(self.heap)
        return leaf


class Pin:
    """A running request's claim on a path: what it covers is not evicted before it is released.

    `known`: how many of its units were held before.
    """

    __slots__ = ("cache", "known", "node")

    def __init__(self, cache: BelievedCache, node: Node, known: int) -> None:
        self.cache = cache
        self.known = known
        self.node: Node | None = node  # None once released
