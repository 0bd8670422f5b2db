"""Replays in several processes, and what is kept of each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

from router.lab.comparison import Source, load
from router.lab.distribution import spread
from router.lab.driver import replay
from router.lab.report import e2e_s, summarize, ttft_s
from router.lab.results import RequestResult
from router.lab.setup import Setup

Task = TypeVar("Task")
Result = TypeVar("Result")
Row = dict[str, Any]
"""What is kept of one replay, times in seconds; or of the replays of several seeds, as `stacked`."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One workload under one combination of policies."""

    source: Source
    setup: Setup


class Runner:
    """Runs tasks in up to `jobs` processes, which live as long as it is entered; `tell` hears what is done."""

    def __init__(self, jobs: int, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterable[Result]:
        """The result of each task, in order. Tasks of one workload stand together: a process makes it once."""
        return map(work, tasks) if self._pool is None else self._pool.map(work, tasks)

    def told(
        self, title: str, work: Callable[[Task], Row], tasks: Sequence[Task], seeds: Sequence[int]
    ) -> Iterator[Row]:
        """As `run`, for tasks that stand together seed by seed: their rows stacked, and progress told."""
        rows: list[Row] = []
        for number, row in enumerate(self.run(work, tasks), 1):
            rows.append(row)
            if len(rows) == len(seeds):
                self.tell(f"{title}: {number} of {len(tasks)}")
                yield stacked(rows)
                rows = []


def measure(task: Replay) -> Row:
    """Replay it. Service is of the steady window; of the well-behaved clients all requests are taken together."""
    workload = load(task.source)
    run = replay(workload, task.setup)
    report = summarize(run, task.setup)
    completed = [one for one in run.results if one.completed]
    well = [one for one in completed if one.client not in workload.misbehaving]
    return {
        "requests": report["requests"],
        "rejected": report["rejected"],
        "service_per_s": report["steady"]["service_per_s"],
        "hits": report["prefix_hit_ratio"],
        "jain": report["jain"],
        "ttft_s": report["ttft_s"],
        "e2e_s": report["e2e_s"],
        "disaggregated": report["disaggregated"],
        "preemptions": report["preemptions"],
        "well_behaved": _latency(well),
        "misbehaving": _latency(one for one in completed if one.client in workload.misbehaving)
        if workload.misbehaving
        else None,
    }


def _latency(results: Iterable[RequestResult]) -> Row:
    completed = list(results)
    return {"ttft_s": spread(map(ttft_s, completed)), "e2e_s": spread(map(e2e_s, completed))}


def stacked(rows: Sequence[Row]) -> Row:
    """Rows of equal form, one per seed, as one row: in place of each number the list of their numbers.

    What is None or missing in any of them is None.
    """
    row: Row = {}
    for key, first in rows[0].items():
        values = [one.get(key) for one in rows]
        if any(value is None for value in values):
            row[key] = None
        else:
            row[key] = stacked(values) if isinstance(first, dict) else values
    return row
