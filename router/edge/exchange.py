"""One request and its answer on a client's connection: ASGI's two channels, at the price of what they have to do.

An answer's head leaves together with the first of its body. A request's body is kept in pieces and joined once.
Beyond ASGI it offers what `Wire` says: to send without awaiting, and to be told when the client leaves.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from starlette.types import ASGIApp

from router.edge.flow import Flow
from router.edge.listener import Listener
from router.edge.states import Outgoing, Said, said

_log = logging.getLogger("uvicorn.error")

EXTENSION = "fairlead"
"""The name under which a request's scope has its `Wire`, among the extensions."""
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}\r\n".encode()
    for status in range(200, 600)
}
_BODILESS = (204, 304)
_HELD_BYTES = 65536
"""So much of a request's body waits for its reader before the sender is paused."""
_FAILED = b"Internal Server Error"
_WAITING, _STREAMING, _COMPLETE, _LOST = Outgoing.WAITING, Outgoing.STREAMING, Outgoing.COMPLETE, Outgoing.LOST
"""Bound here, as members of an enum cost seven times as much to look up, for every chunk."""
_START, _BODY, _END = Said.START, Said.BODY, Said.END
_ENDED = (_COMPLETE, _LOST)


class Wire(Protocol):
    """What our own listener offers beyond ASGI."""

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin the answer at once; its head leaves with the first of its body."""

    def write(self, data: bytes) -> bool:
        """Send more of a body at once; False: the client reads slowly, the next piece should be awaited."""

    def unread(self) -> int:
        """Bytes that have been written and not taken by the client's connection."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Call this once if the client leaves before its answer is complete."""

    def abort(self) -> None:
        """Break off an answer that has begun, so that the client sees that it is not whole."""


def wire_of(scope: MutableMapping[str, Any]) -> Wire | None:
    """A request's wire where the server has one; others do without."""
    wire: Wire | None = scope.get("extensions", {}).get(EXTENSION)
    return wire


class Exchange:
    """See the module. `done` is called at the end of the answer."""

    __slots__ = (
        "_chunked",
        "_default_headers",
        "_done",
        "_event",
        "_expected",
        "_gone",
        "_head",
        "_listener",
        "_missing",
        "_news",
        "_pieces",
        "_size",
        "_transport",
        "_until_close",
        "flow",
        "in_turn",
        "keep_alive",
        "more_body",
        "scope",
        "state",
    )

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        transport: asyncio.Transport,
        flow: Flow,
        default_headers: list[tuple[bytes, bytes]],
        *,
        listener: Listener,
        done: Callable[[], None],
        expects_continue: bool,
        keep_alive: bool,
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        """The client wants to go on with this connection."""
        self.in_turn = True
        """The answers before it are complete, so that its body is read."""
        self.more_body = True
        """Of the request."""
        self.state = _WAITING
        """Of the answer."""
        self._transport = transport
        self.flow = flow
        self._default_headers = default_headers
        self._done = done
        self._listener = listener
        self._expected = expects_continue
        """The client waits to hear that it may send its body."""
        self._pieces: list[bytes] = []
        self._size = 0
        """Bytes in `_pieces`."""
        self._news = False
        """`receive` has something to say, or an end to find; `_event` is set then, if anybody waits for it."""
        self._event: asyncio.Event | None = None
        self._head = b""
        """Of the answer, until it is sent."""
        self._chunked = False
        self._until_close = False
        """The end of the connection is the end of the answer: HTTP/1.0, and a length that is not known."""
        self._missing = 0
        """Bytes of an answer of known length that are still to come."""
        self._gone: Callable[[], None] | None = None

    @property
    def started(self) -> bool:
        """The answer has begun, or never can."""
        return self.state is not _WAITING

    @property
    def complete(self) -> bool:
        return self.state is _COMPLETE

    async def run(self, app: ASGIApp) -> None:
        """Have the request answered. Whatever happens, the client hears of an end."""
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - of whatever kind, the client must not wait for ever
            _log.error("Exception in ASGI application\n", exc_info=error)
            failed = True
        else:
            failed = self.state not in _ENDED
            if failed:
                _log.error("the application returned without an answer, or in the middle of one")
        finally:
            self._done = _nothing
        if failed and self.state is not _WAITING:
            self.abort()
        elif failed:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            length = (b"content-length", str(len(_FAILED)).encode())
            await self.send({"type": "http.response.start", "status": 500, "headers": [*headers, length]})
            await self.send({"type": "http.response.body", "body": _FAILED})

    # -- the request

    def take(self, piece: bytes) -> None:
        """A piece of the body; a sender that is faster than its reader is paused."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _HELD_BYTES and self.in_turn:
            self.flow.pause_reading()
        self.wake()

    def wake(self) -> None:
        """Something has changed: a task that waits in `receive` looks again."""
        self._news = True
        if self._event is not None:
            self._event.set()

    async def receive(self) -> dict[str, Any]:
        if self._expected and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expected = False
        if self.state not in _ENDED:
            self.flow.resume_reading()
            if not self._news:
                self._event = event = self._event or asyncio.Event()
                await event.wait()
                self._event = None
            self._news = False
        if self.state in _ENDED:
            return {"type": "http.disconnect"}
        pieces, self._pieces, self._size = self._pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def unread(self) -> int:
        return self._transport.get_write_buffer_size()

    def watch(self, gone: Callable[[], None]) -> None:
        self.flow.resume_reading()  # or its end would not be noticed
        if self.state is _LOST:
            gone()
        else:
            self._gone = gone

    def lost(self) -> None:
        """The connection is gone."""
        self.state = said(self.state, Said.LOSE)
        gone = self._gone
        self._let_go()
        self.wake()
        if gone is not None:
            gone()

    def abort(self) -> None:
        self.state = said(self.state, Said.LOSE)
        self._let_go()
        self.wake()
        if self._until_close:
            self.flow.reset()  # a mere end of the connection would pass for the end of the answer
        else:
            self.flow.close()

    # -- the answer

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.flow.write_paused and self.state is not _LOST:
            await self.flow.drain()
        if message["type"] == "http.response.start":
            self.start(message["status"], message.get("headers", ()))
            return
        after = said(self.state, _BODY if message.get("more_body", False) else _END)
        if after is _LOST:
            return
        body = message.get("body", b"")
        self._go_on(body, after)
        if self.flow.write_paused:
            self.flow.has_room(len(body))

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        after = said(self.state, _START)
        if after is not _LOST:
            self._begin(status, headers)
            self.state = after

    def write(self, data: bytes) -> bool:
        if self.state is _STREAMING and self._chunked and data:  # of all that is sent, nearly everything
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.state is not _LOST:
            self._go_on(data, said(self.state, _BODY))
        flow = self.flow
        return not flow.write_paused or flow.has_room(len(data))

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head; RuntimeError for what would break its lines."""
        self._expected = False
        lines = [STATUS_LINES[status]]
        said_close = measured = False
        for name, value in (*self._default_headers, *headers):
            if name == b"content-length":
                if status == 204:
                    continue
                self._missing = int(value)
                measured = True
            elif name == b"connection":
                said_close = said_close or b"close" in value.lower().replace(b",", b" ").split()
                continue
            lines += (name, b": ", value, b"\r\n")
        count = (len(lines) - 1) // 4 + 2
        old = self.scope["http_version"] == "1.0"
        if not measured and self.scope["method"] != "HEAD" and status not in _BODILESS:
            self._chunked, self._until_close = not old, old
        if said_close or self._until_close or self._listener.closing:
            self.keep_alive = False
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if old or not self.keep_alive:
            lines.append(b"connection: keep-alive\r\n" if self.keep_alive else b"connection: close\r\n")
        lines.append(b"\r\n")
        head = self._head = b"".join(lines)
        breaks = count + self._chunked + (old or not self.keep_alive)
        if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
            raise RuntimeError("a header of an answer holds CR, LF or NUL")

    def _go_on(self, body: bytes, after: Outgoing) -> None:
        """Send a piece of the body, the head before the first; then the answer is in the state `after`."""
        more = after is not _COMPLETE
        head, self._head = self._head, b""
        if self._chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._write(head + framed if more else head + framed + b"0\r\n\r\n")
        elif self.scope["method"] == "HEAD":
            self._write(head)
        elif self._until_close:
            self._write(head + body)
        else:
            self._missing -= len(body)
            if self._missing < 0 or (self._missing and not more):
                raise RuntimeError("an answer is not as long as its Content-Length says")
            self._write(head + body)
        self.state = after
        if not more:
            self._end()

    def _write(self, data: bytes) -> None:
        if data:
            self._transport.write(data)

    def _end(self) -> None:
        self._let_go()
        self.wake()
        if not self.keep_alive:
            self.flow.close()
        self._done()

    def _let_go(self) -> None:
        """Scope and exchange refer to each other; that would be work for the collector."""
        self._gone = None
        self.scope.pop("extensions", None)


def _nothing() -> None:
    """Stands for `done` once the answer has ended."""
