"""A body in the pieces in which it came, so that no large one is copied on the event loop.

To join 32 MiB takes tens of milliseconds with the interpreter's lock held, more than any other stream should wait.
A small body is plain `bytes`; a large one stays `Pieces`, whose parts are handed on as views.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from workers.http.connection import Buffer

PIECE_BYTES = 64 << 10
"""Pieces are at least this large, but for the last one: a body in tiny chunks is no list of tiny objects."""


class Pieces:
    """An immutable sequence of bytes in several objects. `len` is the number of bytes."""

    __slots__ = ("_pieces", "_size", "_starts")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = tuple(pieces)
        self._starts: list[int] = []
        self._size = 0
        for piece in self._pieces:
            self._starts.append(self._size)
            self._size += len(piece)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """The pieces themselves."""
        return iter(self._pieces)

    def part(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to before `end`, without a copy."""
        number = max(0, bisect_right(self._starts, start) - 1)
        while start < end:
            offset = start - self._starts[number]
            view = memoryview(self._pieces[number])[offset : offset + end - start]
            yield view
            start += len(view)
            number += 1


Body = bytes | Pieces
"""A request's body as it is kept."""
Payload = bytes | tuple[Buffer, ...]
"""A body as it is sent: in one object, or in several, one after the other."""


def part(body: Body, start: int, end: int) -> Iterator[Buffer]:
    """The bytes of a body from `start` to before `end`, without a copy where it is large."""
    if isinstance(body, bytes):
        return iter((body[start:end],))
    return body.part(start, end)


def payload_of(body: Body) -> Payload:
    """The body as it is. Of a large one, views: uvloop joins what it is given as `bytes`."""
    return body if isinstance(body, bytes) else tuple(map(memoryview, body))


class PieceCollector:
    """Collects a body as it arrives; `finished` gives it back, joined if it has at most `joined_bytes`."""

    __slots__ = ("_pieces", "_tail", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._tail = bytearray()
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._tail or len(piece) < PIECE_BYTES:
            self._tail += piece
            if len(self._tail) >= PIECE_BYTES:
                self._pieces.append(bytes(self._tail))
                self._tail.clear()
        else:
            self._pieces.append(piece)

    def finished(self, joined_bytes: int) -> Body:
        if self._tail:
            self._pieces.append(bytes(self._tail))
            self._tail.clear()
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces) if self.size <= joined_bytes else Pieces(pieces)


def joined(body: Body | Payload) -> bytes:
    """All of a body in one object. Large ones take their time; the interpreter's lock is free meanwhile."""
    return body if isinstance(body, bytes) else b"".join(body)
