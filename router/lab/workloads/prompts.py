"""The prompts of a workload, each stored once.

Theory: prompts form a forest. A node is its parent's tokens followed by its own; a unit belongs to the node in
which its block becomes full. What is written behind the same parent twice is different text, so two children of a
node share exactly the parent's full blocks, and the parent's last, partial block is filled by each child anew.

Invariant: a unit occurs in one node only, unless a trace says otherwise; so equal units have equal history.
"""

from array import array
from collections.abc import Sequence

from router.lab.workload import UNIT_BYTES

FIRST_NEW_UNIT = 1 << 63
"""Units that the lab makes up itself are counted from here; a trace's own ids are mostly small."""
NO_PARENT = -1
"""The parent of a prompt that begins anew."""


class Prompts:
    """An append-only forest of prompts. A node costs 24 bytes, a unit named by a trace 8, others nothing."""

    __slots__ = ("_count", "_first", "_made", "_named", "_parent", "_tokens", "block_tokens")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._parent = array("q")
        self._tokens = array("i")
        self._count = array("i")
        self._first = array("q")
        """Own units: from this number up, or, where negative, from place -1 - first in `_named`."""
        self._named = array("Q")
        self._made = 0

    def grow(self, parent: int, tokens: int) -> int:
        """New text behind `parent` (or `NO_PARENT`); returns its node."""
        before = 0 if parent == NO_PARENT else self._tokens[parent]
        units = (before + tokens) // self.block_tokens - before // self.block_tokens
        node = self._add(parent, before + tokens, units, self._made)
        self._made += units
        return node

    def name(self, units: Sequence[int], tokens: int) -> int:
        """A prompt whose leading full blocks are named; what they do not cover is new text.

        Raises TypeError or OverflowError for a unit that is no 8-byte number; there is no node then.
        """
        full = units[: tokens // self.block_tokens]
        start = len(self._named)
        self._named.extend(full)
        node = self._add(NO_PARENT, len(full) * self.block_tokens, len(full), -1 - start)
        rest = tokens - len(full) * self.block_tokens
        return self.grow(node, rest) if rest else node

    def tokens(self, node: int) -> int:
        """Its length, ancestors included."""
        return self._tokens[node]

    def key(self, node: int) -> bytes:
        """Units of its full blocks, from the first on."""
        parts: list[bytes] = []
        while node != NO_PARENT:
            if self._count[node]:
                parts.append(self.own_key(node))
            node = self._parent[node]
        return b"".join(reversed(parts)) if len(parts) != 1 else parts[0]

    def key_behind(self, node: int, ancestor: int, tokens: int) -> bytes:
        """Units of the blocks that become full in the first `tokens` tokens of `node` behind its `ancestor`.

        Empty where it is no ancestor.
        """
        parts: list[bytes] = []
        while node not in {NO_PARENT, ancestor}:
            parts.append(self.own_key(node))
            node = self._parent[node]
        if node == NO_PARENT:
            return b""
        start = self._tokens[ancestor]
        units = (start + tokens) // self.block_tokens - start // self.block_tokens
        return b"".join(reversed(parts))[: units * UNIT_BYTES]

    def segments(self, node: int) -> tuple[tuple[int, int], ...]:
        """The pieces of its text from the first on, as (name, tokens); what a trace names is a piece per unit."""
        pieces: list[tuple[int, int]] = []
        while node != NO_PARENT:
            parent, first = self._parent[node], self._first[node]
            if first < 0:
                named = array("Q", self.own_key(node))
                pieces += ((unit, self.block_tokens) for unit in reversed(named))
            else:
                before = 0 if parent == NO_PARENT else self._tokens[parent]
                pieces.append((-1 - node, self._tokens[node] - before))
            node = parent
        return tuple(reversed(pieces))

    def own_key(self, node: int) -> bytes:
        """Units of the blocks that become full in this node."""
        first, count = self._first[node], self._count[node]
        if first < 0:
            return self._named[-1 - first : count - 1 - first].tobytes()
        return array("Q", range(FIRST_NEW_UNIT + first, FIRST_NEW_UNIT + first + count)).tobytes()

    def _add(self, parent: int, tokens: int, units: int, first: int) -> int:
        self._tokens.append(tokens)
        self._parent.append(parent)
        self._count.append(units)
        self._first.append(first)
        return len(self._parent) - 1


assert array("Q").itemsize == UNIT_BYTES  # noqa: S101  # fixed by the language since C99's long long
