"""The one way out for log lines of every kind, so that they keep their order and never mix.

A write blocks for as long as the reader at the other end takes nothing (a terminal in scroll mode, a log collector
that hangs): in the event loop it would stop every request. So a line is written at once as far as that takes no
waiting, and a thread waits with what is left. While the reader keeps up that thread has nothing to do: one that
wants to run beside a busy event loop asks it for the interpreter's lock at each of its turns.
"""

import select
import threading
from collections.abc import Iterator
from typing import BinaryIO

from router.observability.exposition import Metric, Snapshot, counter
from router.observability.nonblocking import nonblocking_writer

MAX_HELD_BYTES = 4 * 1024 * 1024
"""Lines that are not written yet; a line that does not fit beside them is dropped."""
FLUSH_WITHIN_S = 1.0
"""How long `flush` waits for a reader that takes nothing."""
_DROPPED = counter(
    "log_lines_dropped", "Log lines that were not written: standard error is gone, or what reads it was too slow"
)


class Lines:
    """Whole lines to one stream, in order, from any thread; `write` never blocks.

    `stream` is unbuffered where the other end may stall: the interpreter takes a buffer's lock when it ends, and
    would abort if the thread held it. The thread starts with the first line that has to wait. A stream that is
    gone or full costs lines, not requests: `dropped` counts them.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.dropped = 0
        self._stream = stream
        self._at_once = nonblocking_writer(stream)
        self._held: list[bytes] = []
        self._held_bytes = 0
        """Of `_held` and of what the thread is writing."""
        self._accepted = 0
        self._finished = 0
        """How many of the accepted lines are written, or dropped because the stream is gone."""
        self._changed = threading.Condition()  # reentrant: the garbage collector may log while a line is added
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Write a line, newline included, or leave it to the thread."""
        with self._changed:
            if self._at_once is not None and not self._held_bytes:
                try:
                    line = line[self._at_once.write(line) :]
                except OSError:
                    self.dropped += 1
                    return
                if not line:
                    return
            if self._held_bytes + len(line) > MAX_HELD_BYTES:
                self.dropped += 1
                return
            self._held.append(line)
            self._held_bytes += len(line)
            self._accepted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, within_s: float = FLUSH_WITHIN_S) -> bool:
        """Wait until every line added so far has left, for `within_s` at most; returns whether it has."""
        with self._changed:
            target = self._accepted
            return self._changed.wait_for(lambda: self._finished >= target, within_s)

    def close(self, within_s: float = FLUSH_WITHIN_S) -> None:
        """Flush and end the thread, which would write a later line."""
        self.flush(within_s)
        with self._changed:
            if self._at_once is not None:
                self._at_once.close()
                self._at_once = None
            self._thread = None
            self._changed.notify_all()

    def _run(self) -> None:
        """The thread: takes everything that is held, writes it, and waits for more until it is not wanted."""
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._thread is not me)
                if self._thread is not me:
                    return
                held, self._held = self._held, []
            text = b"".join(held)
            try:
                _write_all(self._stream, text)
                lost = 0
            except (OSError, ValueError):
                lost = len(held)
            with self._changed:
                self.dropped += lost
                self._held_bytes -= len(text)
                self._finished += len(held)
                self._changed.notify_all()


def _write_all(stream: BinaryIO, text: bytes) -> None:
    """Write every byte, whatever it takes. Raises OSError or ValueError if the stream is gone."""
    rest = memoryview(text)
    while rest:
        written = stream.write(rest)
        if written is None:  # full, and another process that shares it has made it non-blocking
            writable = select.poll()
            writable.register(stream, select.POLLOUT)
            writable.poll()
        else:
            rest = rest[written:]
    stream.flush()


class LogSeries:
    """What the log's readers missed, for Prometheus."""

    metrics: tuple[Metric, ...] = (_DROPPED,)

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def read(self, into: Snapshot) -> Iterator[None]:
        """One counter without labels."""
        into.add(_DROPPED, self._lines.dropped)
        yield
