"""How fast one client connection is read and written, and when it has to end because its client does neither.

Reading stops while more of a body has come than its reader has taken.

Writing is never refused; `write_paused` and `has_room` say whether more should follow. What a client has not read
yet may be a share of what the gateway holds in all (`HeldBytes`), so that the rest of an answer is read from its
worker, and the worker's slot is free, as soon as the engine is done and not when the client is.
While the transport holds more than it likes, or is to be closed and still holds anything, a timer looks whether
the client takes some of it; after `send_timeout_s` without a byte the connection is cut off.
"""

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios

from router.edge.held_bytes import HeldBytes

_LOOKS = 4
"""How often the timer looks within `send_timeout_s`."""
_RESET = struct.pack("ii", 1, 0)


class Flow:
    """See the module. `close` and `reset` end the connection; the transport is closed by no other way."""

    __slots__ = (
        "_held",
        "_idle_looks",
        "_loop",
        "_send_timeout_s",
        "_send_timer",
        "_sent",
        "_share",
        "_transport",
        "_writable",
        "_written",
        "read_paused",
        "write_paused",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        held: HeldBytes,
        send_timeout_s: float,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._held = held
        self._send_timeout_s = send_timeout_s
        self.read_paused = False
        self.write_paused = False
        self._share = 0
        """Of what may be held: bytes that wait for this client before its worker has to wait."""
        self._written = 0
        """Bytes written since writing was paused."""
        self._sent = 0
        """How many of them the client had taken at the last look; only changes matter."""
        self._idle_looks = 0
        """Looks in a row at which it had taken nothing."""
        self._send_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Event | None = None
        """Set once the connection takes more; there while a task waits for that."""

    # -- reading

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

    # -- writing

    def pause_writing(self) -> None:
        """The transport holds more than it likes."""
        self.write_paused = True
        self._share = self._held.take_share()
        self._watch_sending()

    def resume_writing(self) -> None:
        """The transport holds little again, or is gone."""
        self.write_paused = False
        self._held.give_back(self._share)
        self._share = 0
        self._wake()

    def has_room(self, written: int) -> bool:
        """Whether more may follow these bytes, which were written while writing was paused."""
        self._written += written
        return self._transport.get_write_buffer_size() < self._share

    async def drain(self) -> None:
        """Return once the connection takes more."""
        while self.write_paused and not self.has_room(0):
            self._writable = self._writable or asyncio.Event()
            await self._writable.wait()

    def _wake(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # -- the end

    def close(self) -> None:
        """Close once everything is sent, or the client takes no more of it."""
        if not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._watch_sending()

    def reset(self) -> None:
        """Close at once, and have TCP tell the client that this is no proper end."""
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def lost(self) -> None:
        """The connection is gone."""
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        self.resume_writing()

    def _taken(self) -> int:
        """Of `_written`, how much the client's side has taken; what waits in the kernel is not."""
        return self._written - self._transport.get_write_buffer_size() - _queued_in_kernel(self._transport)

    def _watch_sending(self) -> None:
        if self._send_timer is None:
            self._sent = self._taken()
            self._idle_looks = 0
            self._look_again()

    def _look_again(self) -> None:
        self._send_timer = self._loop.call_later(self._send_timeout_s / _LOOKS, self._look_at_sending)

    def _look_at_sending(self) -> None:
        self._send_timer = None
        if not (self.write_paused or self._transport.is_closing()):
            return
        sent = self._taken()
        self._idle_looks = 0 if sent > self._sent else self._idle_looks + 1
        self._sent = sent
        if self._idle_looks >= _LOOKS:
            self._transport.abort()
        else:
            self._look_again()


def _queued_in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that the other side has not acknowledged (SIOCOUTQ, of the same value as TIOCOUTQ); 0 if unknown.

    The kernel asks for more only once it has room for megabytes: by that alone, a client that reads slowly and one
    that does not read would look the same for minutes.
    """
    same = transport.get_extra_info("socket")
    if same is None:
        return 0
    try:
        queued = fcntl.ioctl(same.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)
