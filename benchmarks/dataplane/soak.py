"""Does the gateway's memory stay where it is, whatever is asked? A million requests, no prompt and no user twice.

python -m benchmarks.dataplane.soak --requests 1000000 --json soak.json

Through the real process in front of the fast backend: plain requests, streams of which some are left in the
middle, and long prompts. Resident memory is the kernel's, bytes by part are counted inside (`parts`), sizes of
tables are the gateway's own metrics. Exit status 1 if memory has grown by more than 5% over the second half, if an
answer was not whole, or if a counter is not back at zero at the end.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.dataplane import kernel, page
from benchmarks.dataplane.__main__ import backends
from benchmarks.dataplane.client import Question, Tally
from benchmarks.dataplane.fresh import fairlead
from benchmarks.dataplane.load import Load, under_load
from benchmarks.dataplane.parts import PARTS
from benchmarks.dataplane.routers import Place, Started
from benchmarks.fleet.report import commit, machine

ALLOWED = 0.05
"""Growth over the second half that still counts as flat."""
_PICTURE_WITHIN_S = 60.0
_TABLES = {
    "tree nodes": "fairlead_prefix_tree_nodes",
    "queued": "fairlead_queue_depth",
    "open": "fairlead_open_requests",
    "connections": "fairlead_worker_connections",
}
"""What the gateway says of itself."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway after a number of requests."""

    requests: int
    at_s: float
    rss: int
    """Bytes, as the kernel counts them."""
    parts: dict[str, int]
    """Bytes."""
    tables: dict[str, float]


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a run has found."""

    samples: list[Sample]
    failed: int
    faults: list[str]
    held: dict[str, float]
    """What was not given back at the end."""

    @property
    def growth(self) -> float:
        """The most that resident memory was in the second half over what it was in the middle, less one."""
        half = self.samples[-1].requests / 2
        middle, *later = [sample.rss for sample in self.samples if sample.requests >= half]
        return max(later, default=middle) / middle - 1

    @property
    def good(self) -> bool:
        return self.growth <= ALLOWED and not self.failed and not self.held


def loads(seed: int) -> tuple[Load, ...]:
    """What is asked at once. Every request has a prompt and a user of its own."""
    return (
        Load(Question(2048, 16, 0, stream=False), clients=12, users=0, seed=seed),
        Load(Question(2048, 16, 1), clients=6, users=0, leaving=0.1, slow=0.01, seed=seed + 1),
        Load(Question(64 * 1024, 16, 20, stream=False), clients=1, users=0, seed=seed + 2),
    )


async def soak(
    requests: int, samples: int, seed: int, log_dir: Path, seen: Callable[[int, Sample | None], None]
) -> Soaked:
    """A number of requests, looked at several times. `seen` is told how many there were, now and then."""
    file = log_dir / "parts.jsonl"
    taken = []
    async with backends(4) as workers:
        place = Place(workers, Path(), log_dir)
        async with fairlead(place, "benchmarks.dataplane.parts", str(file)) as router:
            began = time.monotonic()
            async with AsyncExitStack() as stack:
                tallies = [await stack.enter_async_context(under_load(router.url, load)) for load in loads(seed)]
                for number in range(1, samples + 1):
                    while (done := _asked(tallies)) < number * requests / samples:
                        seen(done, None)
                        await asyncio.sleep(0.1)
                    taken.append(await _sample(router, file, done, time.monotonic() - began))
                    seen(done, taken[-1])
            held = await page.left_behind(router.url)
    faults = [fault for tally in tallies for fault in tally.faults]
    return Soaked(taken, sum(tally.failed for tally in tallies), faults, held)


def _asked(tallies: Sequence[Tally]) -> int:
    """Requests that have ended in whatever way; of their times there is no use here."""
    for tally in tallies:
        tally.first_s.clear()
        tally.whole_s.clear()
    return sum(tally.done + tally.failed + tally.left for tally in tallies)


async def _sample(router: Started, file: Path, requests: int, at_s: float) -> Sample:
    pid = router.serving()
    rss = kernel.rss(pid)
    now = await page.read(router.url)
    tables = {name: now.total(metric) for name, metric in _TABLES.items()}
    return Sample(requests, at_s, rss, await _parts(pid, file), tables | {"series": len(now.series)})


async def _parts(pid: int, file: Path) -> dict[str, int]:
    """Ask for a picture and wait for it."""
    before = len(_lines(file))
    os.kill(pid, signal.SIGUSR1)
    async with asyncio.timeout(_PICTURE_WITHIN_S):
        while len(lines := _lines(file)) == before:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)
    found: dict[str, int] = json.loads(lines[-1])
    return found


def _lines(file: Path) -> list[str]:
    """Those that are complete."""
    return (
        [line for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"] if file.exists() else []
    )


def row(sample: Sample) -> list[str]:
    """A sample as the table shows it: MB resident, kB by part, counts."""
    parts = (f"{sample.parts[name] / 1000:.0f}" for name in PARTS)
    tables = (f"{value:g}" for value in sample.tables.values())
    return [str(sample.requests), f"{sample.at_s:.0f}", f"{sample.rss / 1e6:.1f}", *parts, *tables]


COLUMNS = ("requests", "s", "RSS MB", *(f"{name} kB" for name in PARTS), *_TABLES, "series")


def show(console: Console, found: Soaked, setting: dict[str, Any]) -> None:
    """The table, and what follows from it."""
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for sample in found.samples:
        table.add_row(*row(sample))
    console.print(table)
    word = "flat" if found.growth <= ALLOWED else "GROWING"
    console.print(f"{word}: at most {found.growth:+.1%} over the second half (allowed {ALLOWED:.0%})")
    console.print(f"answers that were not whole: {found.failed}{''.join(f'; {f}' for f in found.faults[:3])}")
    console.print(f"at the end: {page.told(found.held)}", markup=False)
    where = setting["machine"]
    console.print(
        f"{where['cores']} cores, {where['cpu']}, load average before {where['load_average_1min_before']:.1f}; "
        f"commit {setting['commit']}, seed {setting['seed']}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.dataplane.soak", description=__doc__.split("\n", 1)[0]
    )
    add = command.add_argument
    add("--requests", type=int, default=1_000_000)
    add("--samples", type=int, default=20, help="how often to look, evenly spread")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="write every sample")
    return command


def main() -> None:
    """Soak, print, write what was asked for."""
    given = parser().parse_args()
    kernel.raise_file_limit()
    setting: dict[str, Any] = {"machine": machine(), "commit": commit(), "seed": given.seed}
    console, progress_console = Console(width=200), Console(stderr=True)
    log_dir = Path(tempfile.mkdtemp(prefix="fairlead-soak-"))
    progress = Progress(
        TextColumn("soak"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=progress_console
    )
    with progress:
        bar = progress.add_task("soak", total=given.requests)
        progress_console.print("  ".join(COLUMNS), soft_wrap=True)

        def seen(done: int, sample: Sample | None) -> None:
            progress.update(bar, completed=min(done, given.requests))
            if sample is not None:
                cells = zip(row(sample), COLUMNS, strict=True)
                line = "  ".join(cell.rjust(len(column)) for cell, column in cells)
                progress_console.print(line, soft_wrap=True)

        found = uvloop.run(soak(given.requests, given.samples, given.seed, log_dir, seen))
    show(console, found, setting)
    if given.json:
        document = {"setting": setting, "growth": found.growth, "good": found.good, **asdict(found)}
        given.json.write_text(json.dumps(document, indent=1))
    sys.exit(not found.good)


if __name__ == "__main__":
    main()
