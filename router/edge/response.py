"""What the client hears: a status line once, then the body, or the error that stands in its place."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.edge.errors import BodyTooLarge, Dialect, RequestError, UploadTimeout, to_event, to_http
from router.edge.exchange import Wire
from router.edge.headers import Header, to_client
from router.port import Dispatch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ResponseWriter:
    """The way back to one client. Awaiting `body` waits while the client reads slowly."""

    __slots__ = ("_decision", "_dialect", "_request", "_send", "ended", "started", "status", "wire")

    def __init__(
        self, send: Send, request: bytes, dialect: Dialect = Dialect.OPENAI, wire: Wire | None = None
    ) -> None:
        self._send = send
        self.wire = wire
        """The way to send more of the body without waiting, where the server has one."""
        self._request = request
        self._dialect = dialect
        self._decision: list[Header] = []
        self.started = False
        self.ended = False
        self.status = 0

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
        self.ended = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, headers: list[Header], body: bytes) -> None:
        await self.start(status, headers, len(body))
        await self.body(body, more=False)

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
