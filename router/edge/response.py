"""What the client hears: a status line once, then the body, or the error that stands in its place."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from router.edge.errors import (
    BodyTooLarge,
    Dialect,
    Overloaded,
    RequestError,
    UploadTimeout,
    to_event,
    to_http,
    whole_event,
)
from router.edge.exchange import Wire
from router.edge.headers import EVENT_STREAM, Header, content_type, to_client
from router.edge.held_bytes import HeldBytes, Holding
from router.edge.pieces import PIECE_BYTES, Body, joined, part
from router.port import Dispatch

_STREAM_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_COMMENT = b": waiting\n\n"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_UNREAD_BYTES = 64 << 10
"""With more than this in its connection a client reads slowly. What is there the connection counts (`Flow`)."""
_ANY = 1 << 62


class ResponseWriter:
    """The way back to one client. Awaiting `body` waits while the client reads slowly."""

    __slots__ = (
        "_decision",
        "_dialect",
        "_limits",
        "_over",
        "_request",
        "_send",
        "_sent",
        "ended",
        "holding",
        "opened",
        "started",
        "status",
        "wire",
    )

    def __init__(
        self,
        send: Send,
        request: bytes,
        dialect: Dialect = Dialect.OPENAI,
        wire: Wire | None = None,
        holding: Holding | None = None,
    ) -> None:
        self._send = send
        self.wire = wire
        """The way to send more of the body without waiting, where the server has one."""
        self._request = request
        self._dialect = dialect
        self._decision: list[Header] = []
        self._limits: list[Header] = []
        self.holding = holding or Holding(HeldBytes(_ANY))
        """What the answer holds in memory counts here."""
        self._over = False
        """It is being ended with an error, which counts no more."""
        self._sent: list[Header] = []
        """The headers that the client has got."""
        self.opened = False
        """The head of a stream is out, and comments: nothing of an answer."""
        self.started = False
        """A part of the answer is out."""
        self.ended = False
        self.status = 0

    def name(self, request: bytes) -> None:
        """The request's id, as the answer's headers have it."""
        self._request = request

    def tell_limits(self, headers: Iterable[Header]) -> None:
        """How the client's limits stand, in the answer's headers."""
        self._limits = list(headers)

    def explain(self, dispatch: Dispatch) -> None:
        """Say in the answer's headers where it comes from, and why from there."""
        self._decision = [
            (b"x-fairlead-worker", dispatch.worker.encode()),
            (b"x-fairlead-reason", dispatch.reason.value.encode()),
            (b"x-fairlead-matched-tokens", str(dispatch.matched_tokens).encode()),
        ]
        if dispatch.prefill is not None:
            self._decision.append((b"x-fairlead-prefill-worker", dispatch.prefill.encode()))

    async def start(self, status: int, headers: list[Header], length: int | None = None) -> None:
        """Send status and a worker's headers."""
        await self._start(status, to_client(headers, self._request, length))

    def comment(self) -> bool:
        """Send a comment in a stream that has not begun. False: it has, or it cannot be sent at once."""
        if self.started or self.ended or self.wire is None:
            return False
        if not self.opened:
            self.opened = True
            self.status = 200
            self._sent = [*_STREAM_HEADERS, (b"x-request-id", self._request)]
            self.wire.start(self.status, self._sent)
        self.wire.write(_COMMENT)
        return True

    async def body(self, data: bytes, *, more: bool) -> None:
        """More of the body. What waits here for a slow client counts; Overloaded if it is too much."""
        self.ended = not more
        unread = 0 if self.wire is None or self._over else self.wire.unread()
        if unread <= _UNREAD_BYTES:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            return
        held = len(data)
        try:
            self.holding.add_answer(held)
        except Overloaded:
            self._over, self.ended = True, False
            raise
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self.holding.drop_answer(held)

    async def whole(self, status: int, headers: list[Header], body: Body) -> None:
        """An answer in one piece: it goes as fast as the client reads, and ends when nearly all has been read.

        In a stream that is open already it is the only event.
        """
        if self.opened:
            self.started = True
            content = joined(body)
            if not content_type(headers).lower().startswith(EVENT_STREAM):
                content = whole_event(status, content, self._dialect)
            await self.body(content, more=False)
            return
        await self.start(status, headers, len(body))
        if len(body) > PIECE_BYTES:
            for at in range(0, len(body), PIECE_BYTES):
                piece = b"".join(part(body, at, min(at + PIECE_BYTES, len(body))))
                await self.body(piece, more=True)
                await asyncio.sleep(0)  # a client that reads fast never makes it wait
            body = b""
        await self.body(joined(body), more=False)

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error. An answer that has begun is broken off, unless it is a stream of events."""
        if self.ended:
            return
        self._over = True  # an error is small, and the last that comes: it is not held against the limit
        if self.started or self.opened:
            if content_type(self._sent).lower().startswith(EVENT_STREAM):
                await self.body(to_event(error, self._dialect), more=False)
            else:
                self._break_off(error)
            return
        status, headers, body = to_http(error, self._dialect)
        headers.append((b"x-request-id", self._request))
        if isinstance(error, BodyTooLarge | UploadTimeout):
            # The rest of the upload is not waited for.
            headers.append((b"connection", b"close"))
        await self._start(status, headers)
        await self.body(body, more=False)

    def _break_off(self, error: RequestError) -> None:
        """End the connection instead of the answer; a server that offers no way to do so does it on an error."""
        self.ended = True
        if self.wire is None:
            raise error
        self.wire.abort()

    async def _start(self, status: int, headers: list[Header]) -> None:
        """Send the head; of a stream that is open already it has been sent."""
        self.started = True
        if self.opened:
            return
        try:
            await self._send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": headers + self._decision + self._limits,
                }
            )
        except RuntimeError:
            self.started = False  # a header that cannot be sent: an error may still take its place
            raise
        self._sent = headers
        self.status = status
