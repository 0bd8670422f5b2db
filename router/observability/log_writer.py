"""The one way out for log lines of every kind, so that they keep their order and never mix.

A stream is written to by a thread of its own. A write blocks for as long as the reader at the other end takes
nothing (a terminal in scroll mode, a log collector that hangs): in the event loop it would stop every request.
"""

import select
import threading
from collections.abc import Iterator
from typing import BinaryIO

from router.observability.exposition import Metric, Snapshot, counter

MAX_HELD_BYTES = 4 * 1024 * 1024
"""Lines that are not written yet; a line that does not fit beside them is dropped."""
FLUSH_WITHIN_S = 1.0
"""How long `flush` waits for a reader that takes nothing."""
_GATHER_S = 0.02
"""Lines that follow a write are gathered for so long: on a busy gateway, to wake the thread for each would cost more
than to make the line."""
_DROPPED = counter(
    "log_lines_dropped", "Log lines that were not written: standard error is gone, or what reads it was too slow"
)


class Lines:
    """Whole lines to one stream, in order, from any thread; `write` never blocks.

    `stream` is unbuffered where the other end may stall: the interpreter takes a buffer's lock when it ends, and
    would abort if the thread held it. The thread starts with the first line. A stream that is gone or full costs
    lines, not requests: `dropped` counts them.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.dropped = 0
        self._stream = stream
        self._held: list[bytes] = []
        self._held_bytes = 0
        """Of `_held` and of what the thread is writing."""
        self._accepted = 0
        self._finished = 0
        """How many of the accepted lines are written, or dropped because the stream is gone."""
        self._hurried = False
        """Somebody waits for the lines that are held."""
        self._idle = False
        """The thread waits for a line."""
        self._changed = threading.Condition()  # reentrant: the garbage collector may log while a line is added
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Add a line, newline included, for the thread to write."""
        with self._changed:
            if self._held_bytes + len(line) > MAX_HELD_BYTES:
                self.dropped += 1
                return
            self._held.append(line)
            self._held_bytes += len(line)
            self._accepted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                self._thread.start()
            if self._idle:
                self._idle = False
                self._changed.notify_all()

    def flush(self, within_s: float = FLUSH_WITHIN_S) -> bool:
        """Wait until every line added so far has left, for `within_s` at most; returns whether it has."""
        with self._changed:
            target = self._accepted
            self._hurried = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._finished >= target, within_s)

    def close(self, within_s: float = FLUSH_WITHIN_S) -> None:
        """Flush and end the thread, which a later line would start again."""
        self.flush(within_s)
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def _run(self) -> None:
        """The thread: takes everything that is held, writes it, and waits for more until it is not wanted."""
        me = threading.current_thread()
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._held or self._thread is not me)
                if self._thread is not me:
                    return
                self._idle = self._hurried = False
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
                self._changed.wait_for(lambda: self._hurried or self._thread is not me, _GATHER_S)


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
