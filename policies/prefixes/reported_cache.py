"""What one worker has reported of its cache: its blocks by the hashes that it knows them by.

A block may be stored more than once (two requests that filled it at the same time have a copy each) and is then
removed as often: handles are counted.
"""

from dataclasses import dataclass

from policies.prefixes.kv_events import Stored, handle_of, root, salt_of


@dataclass(slots=True)
class Tally:
    """What has become of a worker's reports, in blocks."""

    stored: int = 0
    removed: int = 0
    orphans: int = 0
    """Stored behind a parent that is not known: what they hold is not known either."""
    strangers: int = 0
    """Removed without having been stored."""
    passed_over: int = 0
    """On another medium, in another group, of another size."""


class ReportedCache:
    """One worker's blocks: handle -> digest."""

    __slots__ = ("again", "bit", "blocks", "group", "shared", "size", "spare", "tally")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: dict[int, int] = {}
        self.again: dict[int, int] = {}
        self.shared: dict[int, int] = {}
        self.size = 0
        self.group: int | None = None
        self.spare = 0
        """Copies beyond the first, of all blocks."""
        self.tally = Tally()

    def before(self, event: Stored) -> int | None:
        """Digest of what the first of these blocks follows; None if that is not known."""
        parent = event.parent
        if parent is not None:
            return self.blocks.get(handle_of(parent))
        return root(self.size, event.lora, salt_of(event))

    def store_again(self, handle: int) -> None:
        """A second copy of a block: it will be removed as often as it was stored."""
        self.again[handle] = self.again.get(handle, 0) + 1
        self.spare += 1

    def remove_copy(self, handle: int) -> bool:
        """One copy less of a block that has several; False for one that has a single one left."""
        several = one_less(self.again, handle)
        self.spare -= several
        return several

    def forget_copies(self, handle: int) -> None:
        """The hash stands for something else now."""
        self.spare -= self.again.pop(handle, 0)

    def share(self, digest: int) -> None:
        """Another handle stands for this block, too."""
        self.shared[digest] = self.shared.get(digest, 0) + 1

    def empty(self) -> None:
        """Nothing is held any more; whoever has the old dictionary may take it apart."""
        self.blocks, self.again, self.shared, self.spare = {}, {}, {}, 0


def one_less(counts: dict[int, int], name: int) -> bool:
    """Count down, if it is counted at all; whether it was."""
    count = counts.get(name)
    if count is None:
        return False
    if count == 1:
        del counts[name]
    else:
        counts[name] = count - 1
    return True
