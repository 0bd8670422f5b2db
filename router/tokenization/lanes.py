"""Threads for tokenizing, a few and with a bound: prompts that take long never stand in the way of short ones.

The interpreter is free while a tokenizer works, so the event loop runs on; what threads take from it is a core.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

T = TypeVar("T")

_MOST_THREADS = 4
SHORT_BYTES = 64 * 1024
"""Prompts up to this size have a lane of their own: some tens of milliseconds of work at most."""
_BACKLOG_BYTES = 8 << 20
"""A lane takes nothing more while it has so much before it: seconds of work, for which no client would wait."""


class Lane:
    """One queue of work, with its threads."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"tokenize-{name}")
        self._lock = Lock()
        self._backlog = 0

    def submit(self, size: int, work: Callable[[], T]) -> "Future[T] | None":
        """Work on a prompt of `size` bytes; None if there is too much to do already."""
        with self._lock:
            if self._backlog and self._backlog + size > _BACKLOG_BYTES:
                return None
            self._backlog += size
        future = self._threads.submit(work)
        future.add_done_callback(lambda _: self._done(size))
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, size: int) -> None:
        with self._lock:
            self._backlog -= size


class Lanes:
    """A lane for short prompts and one for long ones; a thread is only started when there is work for it."""

    def __init__(self, cores: int | None = None) -> None:
        threads = min(_MOST_THREADS, max(1, (cores or os.cpu_count() or 1) // 4))
        self._short = Lane("short", threads)
        self._long = Lane("long", threads)

    def of(self, size: int) -> Lane:
        return self._short if size <= SHORT_BYTES else self._long

    def close(self) -> None:
        self._short.close()
        self._long.close()
