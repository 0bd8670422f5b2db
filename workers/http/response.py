"""One request that was sent to a worker, and its response as far as it has arrived.

The connection (`workers.http.connection`) feeds a response, one task reads it. What has arrived waits here in
pieces and is handed over joined; what was received before a failure is delivered before the failure is raised.

    waiting --head_arrived--> head there --ended--> complete        failed: from anywhere before complete

Invariants: `connection` is set exactly while a connection belongs to this response, and it is given up once, in
`ended` or `failed`; at most one task waits, on `_news`; `_error` is never raised itself (see `errors`).
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
    def unanswered(self) -> None: ...
    def drop(self, error: UpstreamError) -> None: ...


class Response:
    """A response on its way. Await `head` first; `status`, `reason` and `headers` are valid after it.

    Header names are lower-cased, values stripped; order and duplicates are kept. Meant for one reading task;
    `abort` may come from anywhere in the loop's thread. The caller of `Upstream.send` reads to the end or
    calls `abort`; a cancelled `head` or `read` changes nothing and may be awaited again.
    """

    __slots__ = (
        "_arrived",
        "_complete",
        "_error",
        "_head_there",
        "_loop",
        "_origin",
        "_sink",
        "_waiter",
        "bodiless",
        "buffered",
        "connection",
        "headers",
        "reason",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: str, *, bodiless: bool) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.bodiless = bodiless
        """The request was a HEAD: its response has no body whatever its headers say."""
        self.buffered = 0
        """Bytes received on the wire since the last `read`."""
        self.connection: Sender | None = None
        self._loop = loop
        self._origin = origin
        self._arrived: list[bytes] = []
        self._head_there = False
        self._complete = False
        self._error: UpstreamError | None = None
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
                raise self._error.again()
            await self._news()

    async def read(self) -> bytes:
        """All of the body that has arrived since the last call, at least one byte; b"" at its end."""
        while not self._arrived:
            if self._error is not None:
                raise self._error.again()
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
                self._give_up(ProtocolError(self._origin, f"a body of more than {limit} bytes", size))
                # Raised by the next `read`, as nothing that has arrived is left.
        return b"".join(pieces)

    def unanswered(self) -> None:
        """The reader found nothing of an answer in what it has read: the limit for the first byte still holds."""
        if self.connection is not None:
            self.connection.unanswered()

    def abort(self) -> None:
        """Let go of the response, whatever its state; harmless when repeated or after its end.

        A connection that is still in the middle of this response is closed, which is how a worker learns that
        its client has left. A task that waits in `head` or `read` gets ResponseAborted.
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
        except Exception as error:  # noqa: BLE001 - it is raised in `feed`
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
            del waiter  # the error refers to this frame, which must not refer to the error
        self._sink = None  # it has had enough, or is broken
        self._wake()

    def ended(self) -> None:
        self._complete = True
        self.connection = None
        self._wake()

    def failed(self, error: UpstreamError) -> None:
        self.connection = None
        if self._error is None:
            self._error = error
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
        self._arrived.clear()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop(error)
        self._wake()
