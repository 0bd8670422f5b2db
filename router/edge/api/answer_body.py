"""An answer that is not streamed, as it arrives: kept in pieces, and looked at piece by piece.

The answer to 2,048 inputs of embeddings has tens of megabytes. To join it, or to search it, in one go would stop
every other stream for as long.
"""

from policies.model import Usage
from router.edge.api.parsed_request import Surface
from router.edge.api.stream_monitor import ABORT, find_id, whole_usage
from router.edge.pieces import Body, PieceCollector, joined, part

_SMALL_BYTES = 1 << 20
"""Up to here an answer is joined; of a longer one the usage is looked for in its last bytes, as many as this."""
_HEAD_BYTES = 64 << 10
_MESSAGE, _STOPPED = b'"type":"message"', b'"stop_reason":"'
_OVERLAP = 64
"""Longer than any of the marks that may be cut by the end of a piece."""


class AnswerBody:
    """One answer."""

    __slots__ = ("_collected", "_end", "_marks", "_seen", "_surface")

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._collected = PieceCollector()
        self._end = b""
        self._marks = (_MESSAGE, _STOPPED) if surface is Surface.MESSAGES else (ABORT,)
        self._seen: set[bytes] = set()

    def add(self, piece: bytes) -> None:
        """The next piece."""
        self._collected.add(piece)
        looked_at = self._end + piece
        self._seen.update(mark for mark in self._marks if mark in looked_at)
        self._end = looked_at[-_OVERLAP:]

    @property
    def size(self) -> int:
        return self._collected.size

    @property
    def aborted(self) -> bool:
        """The worker gave the answer up because it is shutting down."""
        if self._surface is Surface.MESSAGES:
            return _MESSAGE in self._seen and _STOPPED not in self._seen
        return ABORT in self._seen

    def finished(self) -> Body:
        """All of it."""
        return self._collected.finished(_SMALL_BYTES)


def usage_of(body: Body) -> Usage | None:
    """The usage that stands at the end of an answer."""
    return whole_usage(b"".join(part(body, max(0, len(body) - _SMALL_BYTES), len(body))))


def id_of(body: Body) -> str | None:
    """The id of a stored response, which stands at the beginning of it."""
    return find_id(body if isinstance(body, bytes) else b"".join(part(body, 0, min(len(body), _HEAD_BYTES))))


def small(body: Body) -> bytes:
    """The body where it is small, to be read as a whole; nothing of a large one."""
    return joined(body) if len(body) <= _SMALL_BYTES else b""
