"""One request and its answer on a client's connection: uvicorn's cycle, at the price of what it has to do.

An answer's head leaves together with the first of its body. A request's body is kept in pieces and joined once.
Beyond ASGI it offers what `Wire` says: to send without awaiting, and to be told when the client leaves.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "fairlead"
"""The name under which a request's scope has its `Wire`, among the extensions."""
_BODILESS = (204, 304)


class Wire(Protocol):
    """What our own listener offers beyond ASGI."""

    def write(self, data: bytes) -> bool:
        """Send more of a body at once; False: the client reads slowly, the next piece should be awaited."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Call this once if the client leaves before its answer is complete."""


def wire_of(scope: MutableMapping[str, Any]) -> Wire | None:
    """A request's wire where the server has one; others do without."""
    wire: Wire | None = scope.get("extensions", {}).get(EXTENSION)
    return wire


class Cycle(RequestResponseCycle):
    """See the module. `body` is not used: `pieces` are."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.pieces: list[bytes] = []
        self.size = 0
        """Bytes in `pieces`."""
        self._head = b""
        """Of the answer, until it is sent."""
        self._gone: Callable[[], None] | None = None

    # -- the request

    def take(self, piece: bytes) -> None:
        """A piece of the body; a sender that is faster than its reader is paused."""
        self.pieces.append(piece)
        self.size += len(piece)
        if self.size > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.message_event.set()

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self.pieces, self.size = self.pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def watch(self, gone: Callable[[], None]) -> None:
        self.flow.resume_reading()  # or nobody would hear of it
        if self.disconnected:
            gone()
        else:
            self._gone = gone

    def lost(self) -> None:
        """The connection is gone."""
        gone = self._gone
        self._let_go()
        if gone is not None:
            gone()

    # -- the answer

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._begin(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError("an answer went on after its end")
        else:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))

    def write(self, data: bytes) -> bool:
        if not self.disconnected:
            self._go_on(data, more=True)
        return not self.flow.write_paused

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head; RuntimeError for what would break its lines."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        closes = False
        given = [*self.default_headers, *headers]
        for name, value in given:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and b"close" in value.lower().replace(b",", b" ").split():
                self.keep_alive, closes = False, True
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _BODILESS:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        head = self._head = b"".join(lines)
        breaks = len(given) + 2 + (not self.keep_alive and not closes) + bool(self.chunked_encoding)
        if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
            raise RuntimeError("a header of an answer holds CR, LF or NUL")

    def _go_on(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the body, the head before the first."""
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            self._write(head)
        elif self.chunked_encoding:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._write(head + framed if more else head + framed + b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("an answer is not as long as its Content-Length says")
            self._write(head + body)
        if not more:
            self._end()

    def _write(self, data: bytes) -> None:
        if data:
            self.transport.write(data)

    def _end(self) -> None:
        self.response_complete = True
        self._let_go()
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _let_go(self) -> None:
        """Scope and cycle refer to each other; that would be work for the collector."""
        self._gone = None
        self.scope.pop("extensions", None)
