"""Which worker has seen which prefix? A radix tree over strings of opaque units.

A unit is ``width`` bytes (1: text, 4: a token id, 8: a block hash) and is compared whole. Every worker's KV cache
is predicted as the LRU cache that vLLM keeps: bounded, whole paths touched together, tails dropped before heads.

Theory. What a worker holds is a set of prefixes. Each unit it holds has one stamp, the time of its last use.
Stamps are strictly increasing over uses (equal or decreasing times are pushed apart by the smallest step), so
a stamp names one use, and all units with that stamp lie on one path. Since a use touches a whole path from
the root, stamps never grow with depth. The unit to drop next is therefore well defined without looking at
nodes: the lowest stamp, and within it the deepest unit. Nodes only compress runs of units that are alike, and
so what other workers do never changes what this one loses.

Invariants, after every public call, besides those of the shape (``radix.py``):
 1. Prefix closure: who holds a node holds all its ancestors, with stamps at least as high, and pins at least
    as many.
 2. No node without a holder.
 3. Maximal merging: a node with a single child differs from it in holders, in some holder's stamp, or in some
    holder's pins.
 4. ``held(w) <= capacity(w)``, or all that w holds is pinned.
 5. A worker's ``leaves`` are exactly the unpinned nodes that it holds without holding a child of them, keyed
    by stamp (unique among leaves, as a stamp's units lie on one path); each of these stamps is in its
    ``heap``, which may hold outdated stamps too and is rebuilt when most of it is outdated.
"""

import math
from dataclasses import dataclass
from typing import Final

from policies.prefixes.believed_cache import BelievedCache, Pin
from policies.prefixes.radix_tree import Node, Radix, common_length, descendants


@dataclass(frozen=True, slots=True)
class TreeStats:
    """The tree's size now (nodes, bytes of edges, workers) and what happened so far.

    ``evicted`` counts units taken from workers by their capacity or by their own reports, ``splits`` and
    ``merges`` count nodes.
    """

    nodes: int
    bytes: int
    workers: int
    evicted: int
    splits: int
    merges: int


class PrefixTree:
    """The prefixes that each worker is believed to hold, within its capacity in units.

    A worker is any name; it joins with its first ``set_capacity`` or ``insert``. Of a key, an incomplete last
    unit is ignored. ``ValueError`` for a width below 1 or a negative capacity.
    """

    def __init__(self, width: int = 1, *, default_capacity: int) -> None:
        if width < 1:
            raise ValueError(f"a unit is at least 1 byte wide, not {width}")
        self.width: Final = width
        self._default_capacity = _checked(default_capacity)
        self._shape = Radix(width)
        self._caches: dict[str, BelievedCache] = {}
        self._last_stamp = -math.inf
        self._evicted = 0
        self.version = 0
        """Moves with whatever a worker comes to hold or ceases to: until then, `match` answers the same."""

    # Questions: they change nothing.

    def match(self, key: bytes) -> dict[str, int]:
        """For each worker that holds some of the key: how many units of its head."""
        width = self.width
        end = len(key) - len(key) % width
        found: dict[str, int] = {}
        node, position = self._shape.root, 0
        while position < end:
            child = node.children.get(key[position : position + width])
            if child is None:
                break
            # By prefix closure holders only ever drop out on the way down, so equal numbers are equal sets.
            if len(child.stamps) != len(node.stamps):
                found.update(dict.fromkeys(node.stamps, position // width))
            node = child
            if not key.startswith(child.edge, position):
                position += common_length(child.edge, key, position, width)
                break
            position += len(child.edge)
        found.update(dict.fromkeys(node.stamps, position // width))
        return found

    def holders(self, key: bytes) -> frozenset[str]:
        """The workers that hold the whole key; none for a key without a whole unit."""
        units = len(key) // self.width
        return frozenset(worker for worker, depth in self.match(key).items() if depth == units)

    def capacity(self, worker: str) -> int:
        """The worker's bound in units; the default for a worker that is not known."""
        cache = self._caches.get(worker)
        return self._default_capacity if cache is None else cache.capacity

    def held(self, worker: str) -> int:
        """Units that the worker holds."""
        cache = self._caches.get(worker)
        return 0 if cache is None else cache.held

    def pinned(self, worker: str) -> int:
        """Units of the union of the worker's pinned paths: what many running requests share counts once."""
        cache = self._caches.get(worker)
        return 0 if cache is None else cache.pinned

    def stats(self) -> TreeStats:
        shape = self._shape
        return TreeStats(shape.nodes, shape.bytes, len(self._caches), self._evicted, shape.splits, shape.merges)

    # Events: they say what happened.

    def set_capacity(self, worker: str, units: int) -> None:
        """Bound the worker's cache; what no longer fits and is not pinned goes at once."""
        cache = self._join(worker)
        cache.capacity = _checked(units)
        self._shrink(cache)

    def insert(self, worker: str, key: bytes, now: float) -> Pin:
        """The worker is about to hold the key: touch its path, pin it, and evict what no longer fits.

        Of a key longer than the capacity only the head is held. Paths pinned together may exceed the
        capacity, since an engine does not drop what runs; the excess goes when pins are released.
        """
        cache = self._join(worker)
        width, shape = self.width, self._shape
        end = min(len(key) // width, cache.capacity) * width
        key = key[:end]
        stamp = self._next_stamp(now)
        before = cache.held
        node, position = shape.root, 0
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
        known = end // width - (cache.held - before)
        self._shrink(cache)
        return Pin(cache, node, known)

    def release(self, pin: Pin, now: float | None = None) -> None:
        """Give the pin back, once; a second release, or one after the worker's removal, does nothing.

        With ``now`` the path counts as used then, as vLLM queues blocks for eviction when a request ends.
        """
        cache, end, pin.node = pin.cache, pin.node, None
        if end is None or cache.gone:
            return
        worker = cache.worker
        stamp = None if now is None else self._next_stamp(now)
        node = end
        while node.parent is not None:
            if node.unpin(worker):
                cache.pinned -= len(node.edge) // self.width
            if stamp is not None:
                # Until now the path was pinned, so none of it is listed as a leaf under its old stamp.
                node.stamps[worker] = stamp
            node = node.parent
        cache.expose(end)
        if stamp is not None:
            self._shape.merge_above(end)
        self._shape.merge(end)
        self._shrink(cache)

    def evict(self, worker: str, key: bytes, keep: int) -> None:
        """The worker reports that of this key it holds no more than the first ``keep`` units.

        Whatever else it was believed to hold beyond that point goes with it, except pinned units: the
        request that pins them brings them back.
        """
        cache = self._caches.get(worker)
        if cache is None:
            return
        width = self.width
        kept, end = max(keep, 0) * width, len(key) - len(key) % width
        node, position = self._shape.root, 0
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

    def expire(self, worker: str, before: float) -> None:
        """The worker loses what it used last at `before` or earlier, except what is pinned."""
        cache = self._caches.get(worker)
        if cache is None:
            return
        held = cache.held
        while (leaf := cache.oldest()) is not None and leaf.stamps[worker] <= before:
            self._drop_leaf(cache, leaf)
        self._evicted += held - cache.held

    def remove_worker(self, worker: str) -> None:
        """Forget the worker with all that it holds and pins. Its cost is linear in the size of the tree."""
        cache = self._caches.pop(worker, None)
        if cache is None:
            return
        cache.gone = True
        doomed = descendants(self._shape.root, worker)
        for node in doomed:
            node.unpin_all(worker)
        self._drop_all(cache, doomed)

    # One worker and one node.

    def _join(self, worker: str) -> BelievedCache:
        cache = self._caches.get(worker)
        if cache is None:
            cache = self._caches[worker] = BelievedCache(worker, self._default_capacity)
        return cache

    def _next_stamp(self, now: float) -> float:
        last = self._last_stamp
        self._last_stamp = now if now > last else math.nextafter(last, math.inf)
        return self._last_stamp

    def _take(self, cache: BelievedCache, parent: Node, node: Node, stamp: float) -> None:
        """Hold the node, use it now, and pin it once more."""
        worker = cache.worker
        units = len(node.edge) // self.width
        used = node.stamps.get(worker)
        if used is None:
            cache.held += units
            self.version += 1
            parent.count_child(worker)
        else:
            cache.conceal(node, used)
        node.stamps[worker] = stamp
        if node.pin(worker):
            cache.pinned += units

    def _drop(self, cache: BelievedCache, node: Node) -> Node:
        """The worker loses a node below which it holds nothing. Returns the node that may now be merged."""
        worker, parent = cache.worker, node.parent
        assert parent is not None  # noqa: S101 - the root is never held
        cache.conceal(node, node.stamps.pop(worker))
        cache.held -= len(node.edge) // self.width
        self.version += 1
        parent.uncount_child(worker)
        if node.stamps:
            return node
        self._shape.detach(node)  # nobody else holds it, so nothing hangs below
        return parent

    def _drop_all(self, cache: BelievedCache, nodes: list[Node]) -> None:
        """Drop nodes given children first; merging waits until all are done, as it replaces nodes."""
        for node in [self._drop(cache, node) for node in nodes]:
            self._shape.merge(node)

    def _drop_leaf(self, cache: BelievedCache, leaf: Node) -> None:
        """Drop one leaf, so that its parent may become one."""
        parent = leaf.parent
        assert parent is not None  # noqa: S101 - the root is no leaf
        touched = self._drop(cache, leaf)
        cache.expose(parent)
        self._shape.merge(touched)

    def _trim(self, cache: BelievedCache, leaf: Node, length: int) -> None:
        """The worker keeps only the first ``length`` bytes of its unpinned leaf."""
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

    # Eviction.

    def _shrink(self, cache: BelievedCache) -> None:
        """Evict what was least recently used, tail first, until the rest fits or is pinned."""
        before = cache.held
        while (excess := cache.held - cache.capacity) > 0 and (leaf := cache.oldest()) is not None:
            rest = len(leaf.edge) - excess * self.width
            if rest > 0:
                self._trim(cache, leaf, rest)
            else:
                self._drop_leaf(cache, leaf)
        self._evicted += before - cache.held

    def _evict_below(self, cache: BelievedCache, node: Node, length: int) -> None:
        """The worker keeps at most ``length`` bytes of the node, and pinned nodes."""
        before = cache.held
        worker = cache.worker
        self._drop_all(cache, [below for below in descendants(node, worker) if worker not in below.pins])
        if worker not in node.pins and length > 0:
            self._trim(cache, node, length)
        elif worker not in node.pins:
            self._drop_leaf(cache, node)
        self._evicted += before - cache.held


def _checked(capacity: int) -> int:
    if capacity < 0:
        raise ValueError(f"a capacity is at least 0 units, not {capacity}")
    return capacity
