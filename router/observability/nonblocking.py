"""Writes that never wait: as much as the other end of a stream takes at this moment.

Whether a write blocks belongs to the open file, which standard error shares with the process that started the
gateway: to change it there changes it for both. So a pipe or terminal is opened a second time, and a socket is
told with each write. A file on a disk takes everything; what it costs is a copy into the page cache.
"""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class NonblockingWriter:
    """`write` returns how many bytes were taken, from the first on; it raises OSError if the stream is gone."""

    write: Callable[[bytes], int]
    close: Callable[[], None]
    """Let go of what was opened for it; the stream itself stays open."""


def nonblocking_writer(stream: BinaryIO) -> NonblockingWriter | None:
    """For an unbuffered stream; None where it has no descriptor, or cannot be opened a second time."""
    try:
        descriptor = stream.fileno()
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            return NonblockingWriter(partial(os.write, descriptor), _nothing)
        if stat.S_ISSOCK(kind):
            same = socket.socket(fileno=os.dup(descriptor))
            return NonblockingWriter(partial(_send, same), same.close)
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        return NonblockingWriter(partial(_write, own), partial(os.close, own))
    except (OSError, ValueError):  # ValueError: closed
        return None


def _write(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0


def _send(same: socket.socket, data: bytes) -> int:
    try:
        return same.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0


def _nothing() -> None:
    """Nothing was opened."""
