"""A map that never holds more than `most` entries: one more removes the one that was set longest ago."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedMap(OrderedDict[K, V], Generic[K, V]):
    """At most `most` entries, in the order in which they were last set. Raises ValueError for `most` below 1.

    To read an entry does not keep it; `refresh` does, for a cache that drops its least recently used entry.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("a bounded map needs room for one entry at least")
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.most:
            self.popitem(last=False)

    def refresh(self, key: K) -> V | None:
        """Return the entry of a key, now the last to be forgotten; None if there is none."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]
