"""Which worker has seen which prefix: a radix tree over strings of opaque units, with one LRU cache per worker.

A unit is `width` bytes (1: text, 4: a token id, 8: a block hash) and is compared whole. Keys of different *spaces*
(adapters, cache salts) share nothing: each space has a root of its own, as long as a worker holds anything there.
Every worker's KV cache is predicted as the LRU cache that vLLM keeps: bounded, whole paths touched together, tails
dropped before heads. The bound is in tokens and is one per worker, whatever the number of spaces; trees of
different widths share it through a `TokenBudget`.

Theory. What a worker holds is a set of prefixes. Each unit it holds has one stamp, the time of its last use.
Stamps are strictly increasing over uses (equal or decreasing times are pushed apart by the smallest step), so a
stamp names one use, and all units with that stamp lie on one path. Since a use touches a whole path from the root,
stamps never grow with depth. The unit to drop next is therefore well defined without looking at nodes: the lowest
stamp, and within it the deepest unit. Nodes only compress runs of units that are alike, and so what other workers
do never changes what this one loses.

Shape. A node stands for the run of units on its edge, all of them alike in which workers hold them, when each
holder last used them and how often they are pinned: three marks per worker that a split copies and a merge
compares. Merging across unequal marks would make eviction depend on node boundaries; as it is, nodes are at most
two per use still remembered, and never more than units. A split keeps the lower part's object, and a merge keeps
the lower node's. Hence whatever refers to the *end* of a node (a leaf in a worker's order of eviction, a pin)
survives both untouched, and a split costs the same bookkeeping for 64 holders as for one.

Invariants, after every public call of `PrefixTree`:
 1. No two siblings share their first unit; every edge is a positive whole number of units.
 2. Prefix closure: a worker that holds a node holds all its ancestors, with stamps at least as high, and pins at
    least as many.
 3. No node without a holder.
 4. Maximal merging: a node with a single child differs from it in holders, in some holder's stamp, or in some
    holder's pins.
 5. What w holds in all trees of a budget is at most its capacity, or all of it is pinned.
 6. A root has a child.
 7. A worker's `leaves` are exactly the unpinned nodes that it holds without holding a child of them, keyed by
    stamp (unique among leaves, as a stamp's units lie on one path); each of these stamps is in its `heap`, which
    may hold outdated stamps too and is rebuilt when most of it is outdated.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final


class Node:
    """An edge and what is known at its lower end.

    `stamps` (time of last use), `held_children` and `pins` are keyed by worker; the last two leave out
    zeros. They hold only strings and numbers, so CPython's collector (before 3.14) does not traverse them.
    """

    __slots__ = ("children", "edge", "held_children", "parent", "pins", "stamps")

    def __init__(self, edge: bytes, parent: "Node | None") -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[bytes, Node] = NO_CHILDREN
        self.stamps: dict[str, float] = {}
        self.held_children: dict[str, int] = NO_COUNTS
        self.pins: dict[str, int] = NO_COUNTS

    def uncount_child(self, worker: str) -> None:
        """The worker holds one child less."""
        if self.held_children[worker] > 1:
            self.held_children[worker] -= 1
        else:
            del self.held_children[worker]

    def unpin_all(self, worker: str) -> None:
        """Delete the worker's pins, if any."""
        if self.pins.pop(worker, None) is not None and not self.pins:
            self.pins = NO_COUNTS


# Most nodes are leaves without pins: they share these two, which are replaced before the first write.
NO_CHILDREN: Final[dict[bytes, Node]] = {}
NO_COUNTS: Final[dict[str, int]] = {}


class Root(Node):
    """Stands for the empty prefix of one space."""

    __slots__ = ("space",)

    def __init__(self, space: Hashable) -> None:
        super().__init__(b"", None)
        self.space = space


class Radix:
    """The shape of the tree: nodes under the roots, and their number. `PrefixTree` keeps the marks."""

    __slots__ = ("bytes", "merges", "nodes", "roots", "splits", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.roots: dict[Hashable, Root] = {}
        self.nodes = self.bytes = self.splits = self.merges = 0

    def attach(self, parent: Node, first: bytes, edge: bytes) -> Node:
        """Add a leaf; `first` is the edge's first unit, which no child of the parent begins with."""
        node = Node(edge, parent)
        if parent.children is NO_CHILDREN:
            parent.children = {}
        parent.children[first] = node
        self.nodes += 1
        self.bytes += len(edge)
        return node

    def detach(self, leaf: Node) -> None:
        """Remove a leaf, unlinked both ways: it is freed at once, and a reference to it keeps no other node."""
        parent = leaf.parent
        assert parent is not None  # noqa: S101 - the root is no leaf
        del parent.children[leaf.edge[: self.width]]
        leaf.parent = None
        if not parent.children and isinstance(parent, Root):
            del self.roots[parent.space]
        self.nodes -= 1
        self.bytes -= len(leaf.edge)

    def shorten(self, leaf: Node, length: int) -> None:
        """Keep only the first `length` bytes of a leaf's edge."""
        self.bytes -= len(leaf.edge) - length
        leaf.edge = leaf.edge[:length]

    def split(self, node: Node, length: int) -> Node:
        """Cut the edge after `length` bytes. Returns the new upper part; the node becomes the lower."""
        parent, edge, width = node.parent, node.edge, self.width
        assert parent is not None  # noqa: S101 - the root has no edge to cut
        upper = Node(edge[:length], parent)
        upper.children = {edge[length : length + width]: node}
        upper.stamps = node.stamps.copy()
        upper.held_children = dict.fromkeys(node.stamps, 1)
        if node.pins is not NO_COUNTS:
            upper.pins = node.pins.copy()
        parent.children[edge[:width]] = upper
        node.edge = edge[length:]
        node.parent = upper
        self.nodes += 1
        self.splits += 1
        return upper

    def merge(self, node: Node) -> None:
        """Join the node to its only child where no mark differs; nothing for the root and for unlinked nodes."""
        parent = node.parent
        if parent is None or len(node.children) != 1:
            return
        (child,) = node.children.values()
        if node.stamps != child.stamps or node.pins != child.pins:
            return
        parent.children[node.edge[: self.width]] = child
        child.edge = node.edge + child.edge
        child.parent = parent
        node.parent = None
        node.children = NO_CHILDREN
        self.nodes -= 1
        self.merges += 1

    def merge_above(self, node: Node) -> None:
        """Merge along the path from the root to the node, but not the node with its own child."""
        above = node.parent
        while above is not None:
            following = above.parent
            if len(above.children) == 1:
                self.merge(above)
            above = following


class WorkerCache:
    """What one worker is believed to hold, in units, and its leaves in order of use: the LRU side of the tree."""

    __slots__ = ("gone", "heap", "held", "leaves", "pinned", "worker")

    def __init__(self, worker: str) -> None:
        self.worker = worker
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

    `known`: how many of its units the worker held before.
    """

    __slots__ = ("cache", "known", "node")

    def __init__(self, cache: WorkerCache, node: Node, known: int) -> None:
        self.cache = cache
        self.known = known
        self.node: Node | None = node  # None once released


class TokenBudget:
    """How many tokens each worker can hold, in all trees that share the budget."""

    __slots__ = ("capacities", "default_capacity", "trees")

    def __init__(self, default_capacity: int) -> None:
        """`default_capacity`: of a worker whose own is not set. Raises ValueError if it is negative."""
        self.default_capacity = _checked(default_capacity)
        self.capacities: dict[str, int] = {}
        self.trees: list[PrefixTree] = []

    def capacity(self, worker: str) -> int:
        """Tokens that the worker can hold."""
        return self.capacities.get(worker, self.default_capacity)

    def set_capacity(self, worker: str, tokens: int) -> None:
        """Bound a worker; what no longer fits and is not pinned goes at once. Raises ValueError if negative."""
        self.capacities[worker] = _checked(tokens)
        self.shrink(worker)

    def remove_worker(self, worker: str) -> None:
        """Forget the worker with its capacity and all that it holds and pins."""
        self.capacities.pop(worker, None)
        for tree in self.trees:
            tree.remove_worker(worker)

    def shrink(self, worker: str) -> None:
        """Evict the least recently used units, tails first, until the rest fits or is pinned."""
        capacity = self.capacities.get(worker, self.default_capacity)
        while True:
            excess: float = -capacity
            for tree in self.trees:
                if (cache := tree.caches.get(worker)) is not None:
                    excess += cache.held * tree.tokens_per_unit
            if excess <= 0 or not self._oldest(worker).evict_oldest(worker, excess):
                return

    def _oldest(self, worker: str) -> "PrefixTree":
        """The tree with what the worker has used least recently."""
        if len(self.trees) == 1:
            return self.trees[0]
        return min(self.trees, key=lambda tree: tree.oldest_use(worker))


@dataclass(frozen=True, slots=True)
class TreeStats:
    """The tree's size now (spaces, nodes, bytes of edges, workers) and what happened so far.

    `evicted` counts units taken from workers by their capacity or by their own reports, `splits` and
    `merges` count nodes.
    """

    spaces: int
    nodes: int
    bytes: int
    workers: int
    evicted: int
    splits: int
    merges: int


class PrefixTree:
    """The prefixes that each worker is believed to hold, within its budget.

    A worker is any name; it joins with its first `insert`. Of a key, an incomplete last unit is ignored; `space`
    says whose key it is, keys of different spaces share nothing.
    """

    def __init__(self, width: int = 1, *, budget: TokenBudget, tokens_per_unit: float = 1.0) -> None:
        """`width`: bytes of a unit, `tokens_per_unit`: what it counts. Raises ValueError for a width below 1."""
        if width < 1:
            raise ValueError(f"a unit is at least 1 byte wide, not {width}")
        self.width: Final = width
        self.tokens_per_unit = tokens_per_unit
        """May be set anew at any time; the budget is kept at the next use."""
        self.caches: dict[str, WorkerCache] = {}
        self.budget = budget
        budget.trees.append(self)
        self._shape = Radix(width)
        self._last_stamp = -math.inf
        self._evicted = 0
        self.version = 0
        """Grows whenever a worker comes to hold something or ceases to: until then, `match` answers the same."""

    # -- questions: they change nothing

    def match(self, key: bytes, space: Hashable = None) -> dict[str, int]:
        """For each worker that holds some of the key: how many of its first units."""
        width = self.width
        end = len(key) - len(key) % width
        found: dict[str, int] = {}
        root = self._shape.roots.get(space)
        if root is None:
            return found
        node: Node = root
        position = 0
        while position < end:
            child = node.children.get(key[position : position + width])
            if child is None:
                break
            # By prefix closure holders only drop out on the way down, so equal numbers are equal sets.
            if len(child.stamps) != len(node.stamps):
                found.update(dict.fromkeys(node.stamps, position // width))
            node = child
            if not key.startswith(child.edge, position):
                position += common_length(child.edge, key, position, width)
                break
            position += len(child.edge)
        found.update(dict.fromkeys(node.stamps, position // width))
        return found

    def holders(self, key: bytes, space: Hashable = None) -> frozenset[str]:
        """The workers that hold the whole key; none for a key shorter than a unit."""
        units = len(key) // self.width
        return frozenset(worker for worker, depth in self.match(key, space).items() if depth == units)

    def held(self, worker: str) -> int:
        """Units that the worker holds."""
        cache = self.caches.get(worker)
        return 0 if cache is None else cache.held

    def pinned(self, worker: str) -> int:
        """Units of the union of the worker's pinned paths: what many running requests share counts once."""
        cache = self.caches.get(worker)
        return 0 if cache is None else cache.pinned

    def oldest_use(self, worker: str) -> float:
        """The stamp of what the worker would lose next; infinity if all that it holds is pinned."""
        cache = self.caches.get(worker)
        leaf = None if cache is None else cache.oldest()
        return math.inf if leaf is None else leaf.stamps[worker]

    def stats(self) -> TreeStats:
        shape = self._shape
        size = len(shape.roots), shape.nodes, shape.bytes, len(self.caches)
        return TreeStats(*size, self._evicted, shape.splits, shape.merges)

    # -- events

    def insert(self, worker: str, key: bytes, now: float, space: Hashable = None) -> Pin:
        """The worker is about to hold the key: touch its path, pin it, and evict what no longer fits.

        Of a key longer than the capacity only the head is held. Paths pinned together may exceed the
        capacity, since an engine does not drop what runs; the excess goes when pins are released.
        """
        cache = self.caches.get(worker)
        if cache is None:
            cache = self.caches[worker] = WorkerCache(worker)
        width, shape, budget = self.width, self._shape, self.budget
        capacity = budget.capacities.get(worker, budget.default_capacity)
        units = len(key) // width
        if units * self.tokens_per_unit > capacity:
            units = int(capacity / self.tokens_per_unit)
        end = units * width
        key = key[:end]
        stamp = self._next_stamp(now)
        before = cache.held
        root = shape.roots.get(space)
        if root is None:
            root = Root(space)
            if end:
                shape.roots[space] = root
        node: Node = root
        position = 0
        while position < end:
            first = key[position : position + width]
            child = node.children.get(first)
            if child is None:
                child = shape.attach(node, first, key[position:])
            elif not key.startswith(child.edge, position):
                child = shape.split(child, common_length(child.edge, key, position, width))
            self._take(cache, node, child, stamp)
            position += len(child.edge)
            node = child
        shape.merge_above(node)
        known = units - (cache.held - before)
        budget.shrink(worker)
        return Pin(cache, node, known)

    def release(self, pin: Pin, now: float | None = None) -> None:
        """Give the pin back, once; a second release, or one after the worker's removal, does nothing.

        With `now` the path counts as used then, as vLLM queues blocks for eviction when a request ends.
        """
        cache, end, pin.node = pin.cache, pin.node, None
        if end is None or cache.gone:
            return
        worker = cache.worker
        stamp = None if now is None else self._next_stamp(now)
        node = end
        while node.parent is not None:
            pins = node.pins
            count = pins[worker]
            if count > 1:
                pins[worker] = count - 1
            else:
                del pins[worker]
                if not pins:
                    node.pins = NO_COUNTS
                cache.pinned -= len(node.edge) // self.width
            if stamp is not None:
                # Until now the path was pinned, so none of it is listed as a leaf under its old stamp.
                node.stamps[worker] = stamp
            node = node.parent
        cache.expose(end)
        if stamp is not None:
            self._shape.merge_above(end)
        self._shape.merge(end)
        self.budget.shrink(worker)

    def evict(self, worker: str, key: bytes, keep: int, space: Hashable = None) -> None:
        """The worker reports that of this key it holds no more than the first `keep` units.

        Whatever else it was believed to hold beyond that point goes with it, except pinned units: the
        request that pins them brings them back.
        """
        cache, root = self.caches.get(worker), self._shape.roots.get(space)
        if cache is None or root is None:
            return
        width = self.width
        kept, end = max(keep, 0) * width, len(key) - len(key) % width
        node: Node = root
        position = 0
        while kept < end:
            child = node.children.get(key[position : position + width])
            if child is None or worker not in child.stamps:
                return
            shared = length = len(child.edge)
            if not key.startswith(child.edge, position):
                shared = common_length(child.edge, key, position, width)
            if position + shared > kept:
                self._evict_below(cache, child, kept - position)
                return
            if shared < length:
                return
            node, position = child, position + length

    def evict_oldest(self, worker: str, tokens: float) -> bool:
        """The worker loses at most this many tokens of what it used least recently: the end of one path.

        False if all that it holds here is pinned.
        """
        cache = self.caches.get(worker)
        leaf = None if cache is None else cache.oldest()
        if cache is None or leaf is None:
            return False
        held = cache.held
        rest = len(leaf.edge) - math.ceil(tokens / self.tokens_per_unit) * self.width
        if rest > 0:
            self._trim(cache, leaf, rest)
        else:
            self._drop_leaf(cache, leaf)
        self._evicted += held - cache.held
        return True

    def expire(self, worker: str, before: float) -> None:
        """The worker loses what it last used at `before` or earlier, except what is pinned."""
        cache = self.caches.get(worker)
        if cache is None:
            return
        held = cache.held
        while (leaf := cache.oldest()) is not None and leaf.stamps[worker] <= before:
            self._drop_leaf(cache, leaf)
        self._evicted += held - cache.held

    def remove_worker(self, worker: str) -> None:
        """Forget the worker with all that it holds and pins. Its cost is linear in the size of the tree."""
        cache = self.caches.pop(worker, None)
        if cache is None:
            return
        cache.gone = True
        doomed = [node for root in self._shape.roots.values() for node in descendants(root, worker)]
        for node in doomed:
            node.unpin_all(worker)
        self._drop_all(cache, doomed)

    # -- one worker and one node

    def _next_stamp(self, now: float) -> float:
        last = self._last_stamp
        self._last_stamp = now if now > last else math.nextafter(last, math.inf)
        return self._last_stamp

    def _take(self, cache: WorkerCache, parent: Node, node: Node, stamp: float) -> None:
        """Hold the node, use it now, and pin it once more."""
        worker = cache.worker
        units = len(node.edge) // self.width
        used = node.stamps.get(worker)
        if used is None:
            cache.held += units
            self.version += 1
            children = parent.held_children
            if children is NO_COUNTS:
                parent.held_children = {worker: 1}
            else:
                children[worker] = children.get(worker, 0) + 1
        elif cache.leaves.get(used) is node:
            cache.conceal(node, used)
        node.stamps[worker] = stamp
        pins = node.pins
        if pins is NO_COUNTS:
            node.pins = {worker: 1}
            cache.pinned += units
        else:
            count = pins[worker] = pins.get(worker, 0) + 1
            if count == 1:
                cache.pinned += units

    def _drop(self, cache: WorkerCache, node: Node) -> Node:
        """The worker loses a node below which it holds nothing. Returns the node that may now be merged."""
        worker, parent = cache.worker, node.parent
        assert parent is not None  # noqa: S101 - the root is never held
        cache.conceal(node, node.stamps.pop(worker))
        cache.held -= len(node.edge) // self.width
        self.version += 1
        parent.uncount_child(worker)
        if node.stamps:
            return node
        self._shape.detach(node)  # no other worker holds it, so it has no children
        return parent

    def _drop_all(self, cache: WorkerCache, nodes: list[Node]) -> None:
        """Drop nodes given children first; merging waits until all are done, as it replaces nodes."""
        for node in [self._drop(cache, node) for node in nodes]:
            self._shape.merge(node)

    def _drop_leaf(self, cache: WorkerCache, leaf: Node) -> None:
        """Drop one leaf, so that its parent may become one."""
        parent = leaf.parent
        assert parent is not None  # noqa: S101 - the root is no leaf
        touched = self._drop(cache, leaf)
        cache.expose(parent)
        self._shape.merge(touched)

    def _trim(self, cache: WorkerCache, leaf: Node, length: int) -> None:
        """The worker keeps only the first `length` bytes of its unpinned leaf."""
        stamp = leaf.stamps[cache.worker]
        rest = leaf
        if len(leaf.stamps) > 1:
            rest = self._shape.split(leaf, length)
            self._shape.merge(self._drop(cache, leaf))
        else:
            cache.held -= (len(leaf.edge) - length) // self.width
            self.version += 1
            self._shape.shorten(leaf, length)
        if cache.leaves.get(stamp) is not rest:
            cache.expose(rest)

    # -- eviction

    def _evict_below(self, cache: WorkerCache, node: Node, length: int) -> None:
        """The worker keeps at most `length` bytes of the node, and pinned nodes."""
        before = cache.held
        worker = cache.worker
        self._drop_all(cache, [below for below in descendants(node, worker) if worker not in below.pins])
        if worker not in node.pins and length > 0:
            self._trim(cache, node, length)
        elif worker not in node.pins:
            self._drop_leaf(cache, node)
        self._evicted += before - cache.held


def descendants(node: Node, worker: str) -> list[Node]:
    """The nodes below this one that the worker holds, children before their parents."""
    found: list[Node] = []
    pending = [node]
    while pending:
        held = [child for child in pending.pop().children.values() if worker in child.stamps]
        found += held
        pending += held
    found.reverse()
    return found


def common_length(edge: bytes, key: bytes, start: int, width: int) -> int:
    """Bytes of the edge that the key shares from `start` on, in whole units.

    For a key that ends or differs within the edge (`key.startswith` finds a key that has all of it).
    Bisection over views: each step is one memcmp without a copy. The last stretch is one exclusive or.
    """
    low, high = 0, min(len(edge), len(key) - start)
    view = memoryview(edge)
    while high - low > 128:
        middle = (low + high) // 2
        if key.startswith(view[low:middle], start + low):
            low = middle
        else:
            high = middle
    ours = int.from_bytes(edge[low:high], "little")
    theirs = int.from_bytes(key[start + low : start + high], "little")
    if ours != theirs:
        lowest_difference = (ours ^ theirs) & -(ours ^ theirs)
        high = low + (lowest_difference.bit_length() - 1) // 8
    return high - high % width


def _checked(capacity: int) -> int:
    if capacity < 0:
        raise ValueError(f"a capacity is at least 0 tokens, not {capacity}")
    return capacity
