"""A ZMQ socket on the event loop, and whether there is anybody at all behind an endpoint.

pyzmq's own asyncio sockets make futures and a poll of each message. Here the loop watches the socket's file
descriptor only while nothing is there, which halves the cost of a message (`benchmarks/micro/kv_events.py`).
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import zmq

from workers.fleet.probe import explain

_GREETING = b"\xff"
"""What every ZMQ peer says first, unasked (ZMTP 3.1, RFC 37)."""
_QUEUE = 8192
"""Messages that wait in a socket; beyond that its peer drops them."""
_LARGEST_BYTES = 64 << 20
_HEARTBEAT_MS = 5_000
_HEARTBEAT_WITHIN_MS = 15_000
_RECONNECT_MS = 200
_RECONNECT_MAX_MS = 5_000


class UnreachableError(Exception):
    """No ZMQ peer answers there. `str()` is the reason."""


class LoopSocket:
    """A socket that connects, or binds; to be closed. One task at a time may wait in `receive`."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str, *, bind: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(kind)
        try:
            for option, value in (
                (zmq.LINGER, 0),
                (zmq.RCVHWM, _QUEUE),
                (zmq.SNDHWM, _QUEUE),
                (zmq.MAXMSGSIZE, _LARGEST_BYTES),
                # A connection that died without a word is found out and made again.
                (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
                (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_WITHIN_MS),
                (zmq.RECONNECT_IVL, _RECONNECT_MS),
                (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
                (zmq.IPV6, int("[" in endpoint)),
            ):
                self._socket.setsockopt(option, value)
            if bind:
                self._socket.bind(endpoint)
            else:
                self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise UnreachableError(f"{endpoint}: {error.strerror}") from None
        self._fd = int(self._socket.getsockopt(zmq.FD))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """Where it is, with the port that the system chose."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self._socket.close()

    def subscribe(self, topic: str) -> None:
        self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def send(self, frames: Sequence[bytes]) -> None:
        """Queue a message. Raises UnreachableError where the queue is full."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            raise UnreachableError("nothing is taken there") from None

    async def receive(self, within_s: float | None = None) -> list[bytes]:
        """Return the next message, at once where one is there. Raises TimeoutError."""
        while True:
            try:
                return self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                async with asyncio.timeout(within_s):
                    await self._readable()

    async def _readable(self) -> None:
        """Until something may be there. The descriptor only tells of changes: to be asked after a failed read."""
        woken = self._loop.create_future()
        self._loop.add_reader(self._fd, _set, woken)
        try:
            await woken
        finally:
            self._loop.remove_reader(self._fd)


async def reach(endpoint: str, within_s: float) -> None:
    """Return when a ZMQ peer greets at the endpoint: a socket of ZMQ itself would try for ever without a word.

    Raises UnreachableError with the system's reason.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await _open(endpoint)
            said = await reader.read(1)
    except TimeoutError:
        what = "no connection" if writer is None else "no ZMQ greeting"
        raise UnreachableError(f"{what} within {within_s:g} s") from None
    except (OSError, ValueError) as error:
        raise UnreachableError(str(explain(error))) from None
    finally:
        if writer is not None:
            writer.transport.abort()
    if said != _GREETING:
        raise UnreachableError("no ZMQ is spoken there" if said else "the connection was closed at once")


async def _open(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.startswith("ipc://"):
        return await asyncio.open_unix_connection(endpoint.removeprefix("ipc://"))
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


def _set(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
