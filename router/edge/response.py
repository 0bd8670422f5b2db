"""What the client hears: a status line once, then the body, or the error that stands in its place."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.edge.errors import BodyTooLarge, Dialect, Overloaded, RequestError, UploadTimeout, to_event, to_http
from router.edge.exchange import Wire
from router.edge.headers import Header, to_client
from router.edge.held_bytes import HeldBytes, Holding
from router.edge.pieces import PIECE_BYTES, Body, joined, part
from router.port import Dispatch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_UNREAD_BYTES = 64 << 10
"""So much may wait in a connection without being counted."""
_ANY = 1 << 62


class ResponseWriter:
    """The way back to one client. Awaiting `body` waits while the client reads slowly."""

    __slots__ = (
        "_decision",
        "_dialect",
        "_over",
        "_request",
        "_send",
        "ended",
        "holding",
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
        self.holding = holding or Holding(HeldBytes(_ANY))
        """What the answer holds in memory counts here."""
        self._over = False
        """It held too much, and is being ended for that."""
        self.started = False
        self.ended = False
        self.status = 0

    def name(self, request: bytes) -> None:
        """The request's id, as the answer's headers have it."""
        self._request = request

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

    async def body(self, data: bytes, *, more: bool) -> None:
        """More of the body. What waits for a client that does not read counts; Overloaded if it is too much."""
        self.ended = not more
        unread = 0 if self.wire is None or self._over else self.wire.unread()
        if unread <= _UNREAD_BYTES:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            return
        held = unread + len(data)
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
        """An answer in one piece: it goes as fast as the client reads, and ends when nearly all has been read."""
        await self.start(status, headers, len(body))
        if len(body) > PIECE_BYTES:
            for at in range(0, len(body), PIECE_BYTES):
                piece = b"".join(part(body, at, min(at + PIECE_BYTES, len(body))))
                await self.body(piece, more=True)
            body = b""
        await self.body(joined(body), more=False)

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error; in the stream's own words if a part of the answer is out already."""
        if self.ended:
            return
        if self.started:
            await self.body(to_event(error, self._dialect), more=False)
            return
        status, headers, body = to_http(error, self._dialect)
        headers.append((b"x-request-id", self._request))
        if isinstance(error, BodyTooLarge | UploadTimeout):
            # The rest of the upload is not waited for.
            headers.append((b"connection", b"close"))
        await self._start(status, headers)
        await self.body(body, more=False)

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.started = True
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._decision})
