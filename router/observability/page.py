"""The page that Prometheus reads, made without stopping the event loop.

Its sources copy their values on the loop, in steps of at most `SLICE` rows with a turn of the loop in between; a
thread makes text of the copies and pauses after each piece, so that the loop never waits long for the interpreter.
Scrapes that come while a page is being made share it: however many ask, one page at a time is made.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, generate_latest

from router.observability.exposition import Metric, Snapshot, render

SLICE = 256
"""Rows, or things looked at, between two turns of the loop."""
_PAUSE_S = 0.0005
"""The rendering thread sleeps after each piece: the loop, which may be waiting for the interpreter, goes first."""

T = TypeVar("T")


class Source(Protocol):
    """Has values to show."""

    @property
    def metrics(self) -> Collection[Metric]:
        """All that it may show."""

    def read(self, into: Snapshot) -> Iterator[None]:
        """Add the rows of its metrics. The loop may turn, and anything may change, at each `yield`."""


def sliced(items: Iterable[T], most: int = SLICE) -> Iterator[list[T]]:
    """A copy of the items in lists of at most `most`: to yield between, whatever changes meanwhile."""
    copied = list(items)
    for start in range(0, len(copied), most):
        yield copied[start : start + most]


class Page:
    """Everything that is shown. `library`: what `prometheus_client` measures itself; few lines, and constant."""

    def __init__(self, library: CollectorRegistry) -> None:
        self._library = library
        self._sources: list[Source] = []
        self._metrics: list[Metric] = []
        self._making: asyncio.Task[bytes] | None = None

    def add(self, source: Source) -> None:
        """Show this too. Raises ValueError for a name that is there already."""
        names = {metric.name for metric in self._metrics}
        for metric in source.metrics:
            if metric.name in names:
                raise ValueError(f"there is a metric {metric.name} already")
            names.add(metric.name)
        self._sources.append(source)
        self._metrics += source.metrics

    async def read(self) -> bytes:
        """The page, made while the loop goes on."""
        if self._making is None:
            self._making = asyncio.create_task(self._make(), name="metrics page")
            self._making.add_done_callback(self._made)
        return await asyncio.shield(self._making)

    def now(self) -> bytes:
        """The page at once, on this thread: for tests, and for a process that serves no requests."""
        snapshot = self._empty()
        for _ in self._steps(snapshot):
            pass
        return b"".join(self._pieces(snapshot))

    async def _make(self) -> bytes:
        snapshot = self._empty()
        for _ in self._steps(snapshot):
            await asyncio.sleep(0)
        return await asyncio.to_thread(self._render, snapshot)

    def _made(self, task: asyncio.Task[bytes]) -> None:
        self._making = None
        if not task.cancelled():
            task.exception()  # raised to those that wait; without any it must not be logged as lost

    def _empty(self) -> Snapshot:
        return Snapshot({metric: [] for metric in self._metrics})

    def _steps(self, snapshot: Snapshot) -> Iterator[None]:
        for source in self._sources:
            yield from source.read(snapshot)

    def _render(self, snapshot: Snapshot) -> bytes:
        """The thread's work."""
        pieces = []
        for piece in self._pieces(snapshot):
            pieces.append(piece)
            time.sleep(_PAUSE_S)
        return b"".join(pieces)

    def _pieces(self, snapshot: Snapshot) -> Iterator[bytes]:
        yield generate_latest(self._library)
        yield from render(snapshot)
