"""Pieces of prompts that have been tokenized before, each with its ids: least recently used first to go.

A conversation that goes on consists of pieces that are known, and one or two new ones at its end. Pieces are known
by a 128-bit digest of their text, so their text is not kept. Shared between threads: every operation holds the
lock for as long as a few dictionary operations take, never while something is tokenized.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock

_ENTRY_BYTES = 250
"""What an entry costs besides its ids: digest, object headers, its place in the dictionary."""


class Pieces:
    """Digest of a piece -> its ids, 4 bytes each. `bytes` never exceeds `limit`; what is larger is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._ids: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def known(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """The ids of each, None where they are not known; all that are known count as used now."""
        with self._lock:
            ids, touch = self._ids, self._ids.move_to_end
            found = [ids.get(digest) for digest in digests]
            for digest, one in zip(digests, found, strict=True):
                if one is not None:
                    touch(digest)
        return found

    def keep(self, pieces: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember these digests with their ids, and forget the least used beyond the limit."""
        with self._lock:
            for digest, ids in pieces:
                if digest not in self._ids and len(ids) + _ENTRY_BYTES <= self._limit:
                    self._ids[digest] = ids
                    self.bytes += len(ids) + _ENTRY_BYTES
            while self.bytes > self._limit:
                self.bytes -= len(self._ids.popitem(last=False)[1]) + _ENTRY_BYTES
