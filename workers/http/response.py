"""One request that was sent to a worker, and its response as far as it has arrived.

The connection (`workers.http.connection`) feeds a response, one task reads it. What has arrived waits here in
pieces and is handed over joined; what was received before a failure is delivered before the failure is raised.

    waiting --head_arrived--> head there --ended--> complete        failed: from anywhere before complete

Invariants: `connection` is set exactly while a connection belongs to this response, and it is given up once, in
`ended`, `failed` or `unheard`; at most one task waits, on `_news`.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from workers.http.errors import ProtocolError, ResponseAborted, UpstreamError


class Sender(Protocol):
    """What a response asks of the connection that it was sent on."""

    paused: bool
    received: int

    def resume(self) -> None: ...
    def drop(self, error: UpstreamError) -> None: ...


class Resender(Protocol):
    """What a response asks of the pool when a kept connection turns out to have died unused."""

    async def resend(self, response: "Response", head: bytes, body: bytes) -> None: ...


class Response:
    """A response on its way. Await `head` first; `status`, `reason` and `headers` are valid after it.

    Header names are lower-cased, values stripped; order and duplicates are kept. Meant for one reading task;
    `abort` may come from anywhere in the loop's thread. Whoever called `Upstream.send` reads to the end or
    calls `abort`; a cancelled `head` or `read` changes nothing and may be awaited again.
    """

    __slots__ = (
        "_arrived",
        "_complete",
        "_error",
        "_head_there",
        "_loop",
        "_origin",
        "_redial",
        "_resender",
        "_sink",
        "_unheard",
        "_waiter",
        "bodiless",
        "buffered",
        "connection",
        "headers",
        "reason",
        "request",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, origin: str, resender: Resender, *, bodiless: bool
    ) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.bodiless = bodiless
        """The request was a HEAD: its response has no body whatever its headers say."""
        self.buffered = 0
        """Bytes received on the wire since the last `read`."""
        self.request: tuple[bytes, bytes] | None = None
        """Head and body, kept only while they may have to be sent once more."""
        self.connection: Sender | None = None
        self._loop = loop
        self._origin = origin
        self._resender = resender
        self._arrived: list[bytes] = []
        self._head_there = False
        self._complete = False
        self._error: UpstreamError | None = None
        self._unheard: tuple[bytes, bytes] | None = None
        self._redial: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    # For the task that reads.

    @property
    def at_end(self) -> bool:
        """The message is complete and all of it was read."""
        return self._complete and not self._arrived and self._error is None

    async def head(self) -> None:
        """Return once status line and headers are there (interim responses are skipped)."""
        while not self._head_there:
            if self._error is not None:
                raise self._error
            if self._unheard is not None:
                await self._send_again()
            else:
                await self._news()

    async def read(self) -> bytes:
        """All of the body that has arrived since the last call, at least one byte; b"" at its end."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            if self._head_there:
                await self._news()
            else:
                await self.head()
        arrived = self._arrived
        body = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        arrived.clear()
        self.buffered = 0
        if self.connection is not None and self.connection.paused:
            self.connection.resume()
        return body

    async def feed(self, sink: Callable[[bytes], bool]) -> None:
        """Hand every piece that arrives to `sink`, at once and without a turn of the loop in between.

        Returns when there is something to `read` (the end included), when the response has failed, or when `sink`
        has said that it wants no more for now. What it raises is raised here.
        """
        if self._arrived or self._complete or self._error is not None:
            return
        self._sink = sink
        try:
            await self._news()
        finally:
            self._sink = None

    async def read_all(self, limit: int) -> bytes:
        """The whole rest of the body; ProtocolError (and an end to the response) beyond `limit` bytes."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                error = ProtocolError(self._origin, f"a body of more than {limit} bytes", size)
                self._give_up(error)
                raise error
        return b"".join(pieces)

    def abort(self) -> None:
        """Let go of the response, whatever its state; harmless when repeated or after its end.

        A connection that is still in the middle of this response is closed, which is how a worker learns that
        its client has left. Whoever waits in `head` or `read` gets ResponseAborted.
        """
        if self._error is None and not self.at_end:
            received = self.buffered if self.connection is None else self.connection.received
            self._give_up(ResponseAborted(self._origin, "aborted by the gateway", received))

    # For the connection.

    def head_arrived(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self._head_there = True
        self._wake()

    def arrived(self, pieces: list[bytes], on_wire: int) -> None:
        """Body pieces that came in `on_wire` bytes of traffic; one wake-up however many there are."""
        sink = self._sink
        if sink is None:
            self._arrived += pieces
            self.buffered += on_wire
            self._wake()
            return
        try:
            if sink(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
                return
        except Exception as error:  # noqa: BLE001 - it is for whoever waits in `feed`
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
        self._sink = None  # it has had enough, or is broken
        self._wake()

    def ended(self) -> None:
        self._complete = True
        self.connection = None
        self._wake()

    def failed(self, error: UpstreamError) -> None:
        self.connection = None
        self.request = None
        if self._error is None:
            self._error = error
        self._wake()

    def unheard(self, head: bytes, body: bytes) -> None:
        """A kept connection died before it answered one byte: `head` sends the request once more."""
        self.connection = None
        self.request = None
        self._unheard = (head, body)
        self._wake()

    # Inner workings.

    def _news(self) -> asyncio.Future[None]:
        """Done when something about this response has changed."""
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("two tasks wait for one response")
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _give_up(self, error: UpstreamError) -> None:
        self._error = error
        self._unheard = self.request = None
        self._arrived.clear()
        if self._redial is not None:
            self._redial.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop(error)
        self._wake()

    async def _send_again(self) -> None:
        """Send on a fresh connection. In a task of its own, so that `abort` can end a dial that hangs."""
        self._redial = self._loop.create_task(self._redo())
        try:
            await self._redial
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._error is None or (task is not None and task.cancelling()):
                raise  # the reader itself is cancelled; `head` may be awaited again
        except UpstreamError as error:
            self.failed(error)
        finally:
            self._redial = None

    async def _redo(self) -> None:
        if self._unheard is not None:
            await self._resender.resend(self, *self._unheard)
            self._unheard = None
