"""`fairlead` with a watch on its event loop: how long does it stand still?

    python -m benchmarks.dataplane.stops FILE serve --config ...

A timer fires every millisecond. Between two of its turns all else has its own, so the CPU time that the
thread spends in between, less that millisecond, is the longest that anybody waited for the others; it leaves out
the time in which the machine gave the processor to another process, which the lateness by the clock has in it.
FILE gets a line of JSON per second: the largest of each, in milliseconds, and the longest run of the collector.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

_EVERY_S = 0.001


@dataclass(slots=True)
class Stops:
    """The longest of each, in milliseconds."""

    cpu_ms: float = 0.0
    late_ms: float = 0.0
    collector_ms: float = 0.0


class Watch:
    """Runs on the loop that it watches."""

    def __init__(self, file: Path) -> None:
        self._lines = file.open("w")
        self._loop = asyncio.get_running_loop()
        self._longest = Stops()
        self._second = 0
        self._collecting_since = 0.0
        gc.callbacks.append(self._collected)
        self._wait()

    def _wait(self) -> None:
        self._due = time.perf_counter() + _EVERY_S
        self._cpu = time.thread_time()
        self._loop.call_later(_EVERY_S, self._turn)

    def _turn(self) -> None:
        now, longest = time.perf_counter(), self._longest
        longest.late_ms = max(longest.late_ms, 1000 * (now - self._due))
        longest.cpu_ms = max(longest.cpu_ms, 1000 * (time.thread_time() - self._cpu - _EVERY_S))
        if int(now) != self._second:
            self._second = int(now)
            self._lines.write(json.dumps(asdict(longest)) + "\n")
            self._lines.flush()
            self._longest = Stops()
        self._wait()

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            took = 1000 * (time.thread_time() - self._collecting_since)
            self._longest.collector_ms = max(self._longest.collector_ms, took)


def lines(file: Path) -> int:
    """How many seconds it has lines of."""
    return len(file.read_text().splitlines())


def longest(file: Path, since: int) -> Stops:
    """The largest of all lines but the first `since`."""
    lines = [json.loads(line) for line in file.read_text().splitlines()[since:]]
    return Stops(*(max((line[name] for line in lines), default=0.0) for name in Stops.__slots__))


def main() -> None:
    """Run the command that follows FILE."""
    file = Path(sys.argv.pop(1))
    run = uvloop.run

    async def watched(program: Coroutine[Any, Any, None]) -> None:
        Watch(file)
        await program

    uvloop.run = lambda program: run(watched(program))  # type: ignore[assignment, misc]
    from router.commands.cli import main as fairlead  # noqa: PLC0415 - after its loop has been replaced

    fairlead()


if __name__ == "__main__":
    main()
