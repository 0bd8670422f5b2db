"""The one way out for log lines of every kind, so that they keep their order and never mix."""

import asyncio
import threading
from typing import BinaryIO

MAX_HELD_BYTES = 4 * 1024 * 1024
"""Lines that no loop has come to flush yet; beyond this they are written at once."""


class Lines:
    """Whole lines to one stream, joined into one write per turn of the event loop.

    A stream that is gone or full costs lines, not requests: `lost` counts them.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.lost = 0
        self._stream = stream
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flushed_by: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()

    def write(self, line: bytes) -> None:
        """Add a line, newline included; from the event loop's thread it is written a moment later."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            self._held.append(line)
            self._held_bytes += len(line)
            if loop is None or self._held_bytes >= MAX_HELD_BYTES:
                self.flush()
            elif self._flushed_by is not loop:
                loop.call_soon(self.flush)
                self._flushed_by = loop

    def flush(self) -> None:
        with self._lock:
            held, self._held, self._held_bytes, self._flushed_by = self._held, [], 0, None
            if not held:
                return
            try:
                self._stream.write(b"".join(held))
                self._stream.flush()
            except (OSError, ValueError):
                self.lost += len(held)
