"""The KV cache of one engine: a pool of fixed-size blocks that remembers finished prefixes.

Theory, after vLLM's prefix cache: a *full* block is named by a chain hash of (name of the block before it, its
token ids, extra keys), so one name stands for a whole prefix. A request shares every leading block whose name is
known and takes fresh ones for the rest. A block that is not in use goes to the free line but keeps its name until
it is handed out again; the line is served from the front, which makes it an LRU. A request gives its blocks back
tail first, so that the end of a prefix is forgotten before its beginning.

Invariants: a block is in the free line exactly when its reference count is 0; `block_of[h] == b` exactly when
`name_of[b] == h`. When two requests fill the same block at the same time only the first copy carries the name.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import xxhash

ROOT = 0x5EED
"""Parent of the first block of every prompt."""


def extra_key(text: str) -> int:
    """A salt or an adapter's name as the integer that enters the chain; equal in every process."""
    return xxhash.xxh3_64_intdigest(text.encode())


def chain(
    token_ids: Sequence[int],
    block_size: int,
    *,
    parent: int = ROOT,
    salt: int | None = None,
    lora: int | None = None,
) -> list[int]:
    """Name the full blocks of `token_ids`. `salt` enters the first block, `lora` every block."""
    names: list[int] = []
    for end in range(block_size, len(token_ids) + 1, block_size):
        extra = (lora, salt if end == block_size else None)
        parent = link(parent, token_ids[end - block_size : end], extra)
        names.append(parent)
    return names


def link(parent: int, token_ids: Sequence[int], extra: tuple[int | None, int | None]) -> int:
    """Name one full block. Hashes of integers do not depend on PYTHONHASHSEED; 0 stands for no key."""
    return hash((parent, tuple(token_ids), extra[0] or 0, extra[1] or 0))


def split_names(names: Iterable[int], tokens_per_name: int, block_size: int) -> list[int]:
    """Refine prefix names of a trace (one per `tokens_per_name` tokens) to one per engine block.

    Raises ValueError where `block_size` does not divide `tokens_per_name`.
    """
    parts, rest = divmod(tokens_per_name, block_size)
    if rest or not parts:
        raise ValueError(f"blocks of {block_size} tokens do not divide {tokens_per_name} tokens")
    return [hash((name, part)) for name in names for part in range(parts)]


class BlockPool:
    """Blocks 0..n-1, counted by reference."""

    __slots__ = ("_block_of", "_free", "_name_of", "_refs", "blocks", "caching", "on_forgotten")

    def __init__(self, blocks: int, *, caching: bool = True) -> None:
        self.blocks = blocks
        self.caching = caching
        self.on_forgotten: Callable[[int], None] | None = None
        """Told the name of each block that is handed out again."""
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._refs = [0] * blocks
        self._name_of: list[int | None] = [None] * blocks
        self._block_of: dict[int, int] = {}

    @property
    def used(self) -> int:
        """Blocks that some request holds."""
        return self.blocks - len(self._free)

    @property
    def free(self) -> int:
        """Blocks that are not held."""
        return len(self._free)

    @property
    def named(self) -> int:
        """Blocks that a later prompt could hit."""
        return len(self._block_of)

    def match(self, names: Sequence[int], limit: int) -> list[int]:
        """Blocks of the longest known prefix of `names`, at most `limit` of them. Changes nothing."""
        found: list[int] = []
        if not self.caching:
            return found
        block_of = self._block_of
        for name in names[:limit]:
            block = block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def take(self, shared: Sequence[int], fresh: int) -> list[int] | None:
        """Hold the `shared` blocks and `fresh` new ones, or None (and nothing held) where too few are free."""
        refs, free = self._refs, self._free
        idle = sum(1 for block in shared if not refs[block])
        if fresh > len(free) - idle:
            return None
        for block in shared:
            if not refs[block]:
                del free[block]
            refs[block] += 1
        taken = list(shared)
        for _ in range(fresh):
            block = free.popitem(last=False)[0]
            name = self._name_of[block]
            if name is not None:
                del self._block_of[name]
                self._name_of[block] = None
                if self.on_forgotten is not None:
                    self.on_forgotten(name)
            refs[block] = 1
            taken.append(block)
        return taken

    def name(self, block: int, name: int) -> bool:
        """Say what a held, full block contains; False where a copy of it is known already."""
        if not self.caching or self._name_of[block] is not None or name in self._block_of:
            return False
        self._name_of[block] = name
        self._block_of[name] = block
        return True

    def forget(self) -> bool:
        """Forget all names; False (and nothing forgotten) while a block is held."""
        if self.used:
            return False
        self._name_of = [None] * self.blocks
        self._block_of.clear()
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block, the tail of the prefix first."""
        refs, free = self._refs, self._free
        for block in reversed(blocks):
            refs[block] -= 1
            if not refs[block]:
                free[block] = None
