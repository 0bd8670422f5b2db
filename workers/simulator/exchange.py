"""One HTTP exchange over ASGI: the request as read, and the ways to answer it or to break off."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from workers.simulator.faults import Fault

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientLeft(Exception):
    """There is no client to answer (any more)."""


class Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.request_id = self.headers.get("x-request-id") or uuid.uuid4().hex
        self.body = b""
        self.fault: Fault | None = None
        """The fault that this request has met."""
        self._receive = receive
        self._send = send
        self._gone: asyncio.Future[Any] | None = None
        self._started = False

    async def read(self) -> bytes:
        """The whole body; afterwards the connection is watched for a client that leaves."""
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientLeft
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.body = b"".join(parts)
        return self.body

    def on_gone(self, act: Callable[[], None]) -> None:
        """Call `act` as soon as the client has left."""
        self._watch().add_done_callback(lambda watch: None if watch.cancelled() else act())

    async def unless_gone(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for `work`; raises ClientLeft where the client leaves first."""
        task = asyncio.ensure_future(work)
        watch = self._watch()
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if watch.done():
            raise ClientLeft

    async def cut(self) -> None:
        """Break the connection without ending the answer. Never returns normally: raises ClientLeft."""
        cut: Callable[[], None] | None = self.scope.get("state", {}).get("cut")
        if cut is not None:
            cut()
            await asyncio.wait({self._watch()})
        raise ClientLeft

    def close(self) -> None:
        if self._gone is not None:
            self._gone.cancel()

    def _watch(self) -> asyncio.Future[Any]:
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._receive())
        return self._gone

    @property
    def started(self) -> bool:
        """Whether the head of an answer has been sent."""
        return self._started

    async def start(self, status: int, content_type: bytes, length: int | None = None) -> None:
        self._started = True
        headers = [(b"content-type", content_type), (b"x-request-id", self.request_id.encode("latin-1"))]
        headers.append((b"vary", b"Origin"))
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def raw(self, status: int, data: bytes, content_type: bytes) -> None:
        await self.start(status, content_type, len(data))
        await self.send_body(data, more=False)

    async def json(self, status: int, value: Any) -> None:
        await self.raw(status, orjson.dumps(value), b"application/json")
