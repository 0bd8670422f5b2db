"""The shape of a prefix tree: compressed edges that are cut and joined as what is known about them changes.

A radix tree over strings of opaque units, each ``width`` bytes and compared whole. A node stands for the run
of units on its edge, all of them alike in who holds them, when each holder last used them and how often they
are pinned: three marks per worker that a cut copies and a join compares.

Invariants: no two siblings share their first unit; every edge is a positive whole number of units; and, after
every call of :class:`~policies.prefix_tree.PrefixTree`, a node with a single child differs from it in a mark.
Joining across unequal marks would make eviction depend on node boundaries; as it is, nodes are at most two per
use still remembered, and never more than units.

Identity: a split keeps the lower part's object, and a merge keeps the lower node's. Hence whatever means the
*end* of a node (a leaf in a worker's order of eviction, a pin) survives both untouched, and a split costs the
same bookkeeping for 64 holders as for one.
"""

from typing import Final


class Node:
    """An edge and what is known at its lower end.

    ``stamps`` (time of last use), ``held_children`` and ``pins`` are keyed by worker; the last two leave out
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

    def count_child(self, worker: str) -> None:
        """The worker holds one more child."""
        if self.held_children is NO_COUNTS:
            self.held_children = {}
        self.held_children[worker] = self.held_children.get(worker, 0) + 1

    def uncount_child(self, worker: str) -> None:
        """The worker holds one child less."""
        if self.held_children[worker] > 1:
            self.held_children[worker] -= 1
        else:
            del self.held_children[worker]

    def pin(self, worker: str) -> bool:
        """Pin once more; whether this is the worker's first pin here."""
        if self.pins is NO_COUNTS:
            self.pins = {}
        count = self.pins.get(worker, 0)
        self.pins[worker] = count + 1
        return count == 0

    def unpin(self, worker: str) -> bool:
        """Pin once less; whether this was the worker's last pin here."""
        if self.pins[worker] > 1:
            self.pins[worker] -= 1
            return False
        self.unpin_all(worker)
        return True

    def unpin_all(self, worker: str) -> None:
        """Delete the worker's pins, if any."""
        if self.pins.pop(worker, None) is not None and not self.pins:
            self.pins = NO_COUNTS


# Most nodes are leaves without pins: they share these two, which are replaced before the first write.
NO_CHILDREN: Final[dict[bytes, Node]] = {}
NO_COUNTS: Final[dict[str, int]] = {}


class Radix:
    """Nodes under a root, and their number; the caller keeps the marks."""

    __slots__ = ("bytes", "merges", "nodes", "root", "splits", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.root = Node(b"", None)
        self.nodes = self.bytes = self.splits = self.merges = 0

    def attach(self, parent: Node, first: bytes, edge: bytes) -> Node:
        """Add a leaf; ``first`` is the edge's first unit, which no child of the parent begins with."""
        node = Node(edge, parent)
        if parent.children is NO_CHILDREN:
            parent.children = {}
        parent.children[first] = node
        self.nodes += 1
        self.bytes += len(edge)
        return node

    def detach(self, leaf: Node) -> None:
        """Remove a leaf, unlinked both ways: it is freed at once, and whoever still has it keeps no other node."""
        parent = leaf.parent
        assert parent is not None  # noqa: S101 - the root is no leaf
        del parent.children[leaf.edge[: self.width]]
        leaf.parent = None
        self.nodes -= 1
        self.bytes -= len(leaf.edge)

    def shorten(self, leaf: Node, length: int) -> None:
        """Keep only the first ``length`` bytes of a leaf's edge."""
        self.bytes -= len(leaf.edge) - length
        leaf.edge = leaf.edge[:length]

    def split(self, node: Node, length: int) -> Node:
        """Cut the edge after ``length`` bytes. Returns the new upper part; the node becomes the lower."""
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
    """Bytes of the edge that the key shares from ``start`` on, in whole units.

    For a key that ends or differs within the edge; a key that has all of it is ``key.startswith``'s to find.
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
