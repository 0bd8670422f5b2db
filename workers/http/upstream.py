"""Connections to one origin: the only way by which inference requests reach vLLM.

Theory. A request takes a connection that is idle (the one used last: it is the warmest and the least likely to
have been closed), else opens one, else waits its turn. There is no task and no timer per request: one clock per
pool ticks while connections are open, looks for silence, and closes what has been idle for too long, so that
every timeout comes late by at most one tick (an eighth of the shortest, at most a second).

A request is written once, on one connection, and never again by itself (see `connection`).

Invariants. `_connections` holds exactly what is open, from `opened` to `lost`; `_idle` is a subset of it, oldest
first; `_dialing` counts connections being opened, so `open + _dialing <= max_connections`. A request waits only
while nothing is idle. A connection that `_fresh` or `_take_idle` yields is started before the next await, and
comes back through `released` or `lost`; one that was handed to a waiter who has left meanwhile is passed on.
"""

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from workers.http.connection import Buffer, Connection, Patience
from workers.http.errors import (
    AnswerTimeout,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    Frozen,
    IdleTimeout,
    NotConnected,
    PoolExhausted,
    ProtocolError,
    ResponseAborted,
    TimedOut,
    UpstreamError,
)
from workers.http.request_head import request_head
from workers.http.response import Response

__all__ = [
    "AnswerTimeout",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "FirstByteTimeout",
    "Frozen",
    "IdleTimeout",
    "Limits",
    "NotConnected",
    "PoolExhausted",
    "ProtocolError",
    "Response",
    "ResponseAborted",
    "TimedOut",
    "Timeouts",
    "Upstream",
    "UpstreamError",
]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a worker."""

    connect_s: float = 5.0
    """For a connection: for a free place under `max_connections`, name, TCP and TLS together."""
    first_byte_s: float = 600.0
    """From the request's write to the first byte of a streamed answer: a queue in the engine and a long prefill.
    The head does not count: vLLM sends that of a stream before its engine has begun."""
    idle_s: float = 120.0
    """Silence after the first byte. Time during which we had stopped reading does not count."""
    whole_answer_s: float = 3600.0
    """From the request's write to the end of an answer in one piece, generated before any of it is sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one origin may hold of us."""

    max_connections: int = 10_000
    """Open at once; who comes beyond waits for `connect_s` at most."""
    max_idle: int = 256
    idle_expiry_s: float = 4.0
    """Below the 5 s after which vLLM's HTTP server closes an idle connection, so that we are first."""
    buffer_bytes: int = 256 * 1024
    """Per response: above it reading stops until the reader has taken what is there. One read of the socket
    (256 KiB) may come on top."""
    max_head_bytes: int = 64 * 1024
    """Longest response head, and longest stretch of framing between two pieces of a body."""


class Upstream:
    """Connections to one origin. Belongs to the event loop that first sends.

    `url` is http or https, with a host name, IPv4 or [IPv6] address, an optional port and an optional path,
    which goes before every target. `tls` is used for https; None means the system's authorities. `host_name`: the
    name that the Host header and the certificate carry, where the URL holds one of its addresses.
    """

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        host_name: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        host = parts.hostname
        surplus = parts.query or parts.fragment or parts.username or not url.isascii()
        if host is None or parts.scheme not in _PORTS or surplus:
            raise ValueError(f"not the URL of a server (http[s]://host[:port][/path]): {url!r}")
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self.buffer_bytes = self.limits.buffer_bytes
        self.max_head_bytes = self.limits.max_head_bytes
        self.silence_limit_s = math.inf
        """How long a request may be silent there now. Finite while the worker is known not to work: probes find it
        down (a frozen process keeps its connections; vLLM that is going away kills its engine and then waits for
        its clients to hang up), or its engine sleeps. While any answer still brings tokens, none is cut off."""
        self._silent_ticks = 0
        """Ticks since the last piece of any answer."""
        self._host = host
        self._host_is_address = ":" in host or host.replace(".", "").isdigit()
        self._port = parts.port or _PORTS[parts.scheme]
        self._server_name = host_name or host
        port = f":{parts.port}" if parts.port else ""
        self._host_header = (f"{host_name}{port}" if host_name else parts.netloc).encode("ascii")
        self._prefix = parts.path.rstrip("/").encode("ascii")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._loop: asyncio.AbstractEventLoop
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when
        self._dialing = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._all_lost: asyncio.Future[None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._tick_s = math.inf
        self.set_timeouts(self.timeouts)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Other timeouts from now on.

        Ticks never get longer, as those of requests under way have been counted: these may be given more time than
        `timeouts` says, and never less.
        """
        self.timeouts = timeouts
        shortest = min(timeouts.first_byte_s, timeouts.idle_s, timeouts.whole_answer_s, self.limits.idle_expiry_s)
        self._tick_s = min(8.0, shortest, 8 * self._tick_s) / 8

    @property
    def open(self) -> int:
        """Connections that are open, in use or not."""
        return len(self._connections)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | tuple[Buffer, ...],
        *,
        whole: bool = False,
    ) -> Response:
        """Write a request and return without waiting for its response; NotConnected if that is impossible.

        Host and Content-Length are ours; headers that concern one hop only are dropped. ValueError for what
        would break the request's lines. A body in several objects is written on while its response is awaited.
        `whole`: the answer will not be streamed, so `whole_answer_s` holds in place of `first_byte_s`.
        """
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        head = request_head(method, self._prefix + target, headers, self._host_header, size)
        connection = self._take_idle() or await self._fresh()
        response = Response(self._loop, self.origin, bodiless=method == b"HEAD")
        connection.start(response, head, body, whole=whole)
        return response

    async def aclose(self) -> None:
        """Close every connection; responses that are under way end with ResponseAborted."""
        self._closed = True
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._closed_error())
        for connection in tuple(self._connections):
            connection.drop(ResponseAborted(self.origin, "the connection pool was closed", connection.received))
        if self._connections:
            if self._all_lost is None:
                self._all_lost = self._loop.create_future()
            await asyncio.shield(self._all_lost)

    # What a connection tells its pool.

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def released(self, connection: Connection) -> None:
        """Its response is complete and it can be used again: the longest waiting gets it, else it idles."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle[connection] = self._loop.time()
        if len(self._idle) > self.limits.max_idle:
            next(iter(self._idle)).close()

    def unusable(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._grant()
        if not self._connections and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)

    # Getting a connection.

    def _take_idle(self) -> Connection | None:
        if not self._idle:
            return None
        connection, since = self._idle.popitem()
        if self._loop.time() - since < self.limits.idle_expiry_s:
            return connection
        self._idle[connection] = since
        for expired in tuple(self._idle):  # the youngest is too old, so all are
            expired.close()
        return None

    async def _fresh(self) -> Connection:
        """A new connection, or, where no more may be opened, the next one that has just proven to work."""
        self._loop = asyncio.get_running_loop()
        if self._closed:
            raise self._closed_error()
        queued = True
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                while (connection := await self._place()) is not None:
                    if not connection.closed:  # by the worker, since it was granted
                        return connection
                queued = False
                return await self._dial()
        except TimeoutError as error:
            if queued:
                what = f"all {self.limits.max_connections} connections in use for {self.timeouts.connect_s:g} s"
                raise PoolExhausted(self.origin, what) from error
            what = f"no connection within {self.timeouts.connect_s:g} s"
            raise ConnectTimeout(self.origin, what) from error

    async def _place(self) -> Connection | None:
        """The right to open one more connection (then counted in `_dialing`), or one that was released."""
        if len(self._connections) + self._dialing < self.limits.max_connections and not self._waiting:
            self._dialing += 1
            return None
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())  # granted and cancelled in the same moment
            raise

    def _pass_on(self, granted: Connection | None) -> None:
        if granted is None:
            self._dialing -= 1
            self._grant()
        elif not granted.closed:
            self.released(granted)

    def _grant(self) -> None:
        """Let those who wait longest open connections, as many as there may be."""
        while self._waiting and len(self._connections) + self._dialing < self.limits.max_connections:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._dialing += 1
                waiter.set_result(None)

    async def _dial(self) -> Connection:
        """Open one connection; `_place` has counted it in `_dialing`."""
        # uvloop tries a name's addresses one after the other; asyncio's own loops race them (RFC 8305).
        race: dict[str, Any] = {"happy_eyeballs_delay": 0.25} if self._may_race() else {}
        connection = Connection(self)
        try:
            if self._tls is not None:
                race["server_hostname"] = self._server_name
            await self._loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls, **race)
        except asyncio.CancelledError:
            # uvloop closes what has just been made without telling its protocol.
            connection.closed = True
            self._connections.discard(connection)
            raise
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(self.origin, f"cannot connect: {error}") from error
        finally:
            self._dialing -= 1
            self._grant()
        if self._closed:
            connection.close()
            raise self._closed_error()
        self._start_clock()
        return connection

    def _may_race(self) -> bool:
        return isinstance(self._loop, asyncio.BaseEventLoop) and not self._host_is_address

    def _closed_error(self) -> ConnectFailed:
        return ConnectFailed(self.origin, "the connection pool is closed")

    # The clock.

    def _start_clock(self) -> None:
        if self._clock is None and self._connections:
            self._clock = self._loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        """Count ticks, not seconds: a loop that stalled for long must not make every worker look silent."""
        self._clock = None
        patience = self._patience()
        for connection in tuple(self._connections):
            connection.tick(patience)
        oldest_allowed = self._loop.time() - self.limits.idle_expiry_s
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since > oldest_allowed:
                break
            connection.close()
        self._start_clock()

    def _patience(self) -> Patience:
        """What a connection is allowed at this tick."""
        times, tick_s = self.timeouts, self._tick_s
        answered = any(connection.answering and not connection.quiet_ticks for connection in self._connections)
        self._silent_ticks = 0 if answered else self._silent_ticks + 1
        frozen = math.inf
        if self.silence_limit_s < math.inf and self._silent_ticks > self.silence_limit_s / tick_s:
            frozen = self.silence_limit_s / tick_s
        return Patience(
            first_byte=math.ceil(times.first_byte_s / tick_s),
            first_byte_s=times.first_byte_s,
            idle=math.ceil(times.idle_s / tick_s),
            idle_s=times.idle_s,
            whole=math.ceil(times.whole_answer_s / tick_s),
            whole_answer_s=times.whole_answer_s,
            frozen=frozen,
        )
