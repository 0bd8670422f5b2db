"""The same workload under several combinations of policies and several seeds, side by side.

Each combination and seed is a replay of its own, so they may run in processes of their own; each process reads or
makes a workload once. The order in which they finish changes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from router.lab.driver import replay
from router.lab.processes import results_of
from router.lab.report import Curves, curves, rejections, summarize
from router.lab.seeds import merged
from router.lab.setup import Setup, SetupError, known_settings, make_setup, refuse_unknown
from router.lab.workload import Targets, Workload
from router.lab.workloads.open_workload import open_workload

SORTS: Mapping[str, Callable[[dict[str, Any]], float | None]] = {
    "ttft": lambda report: report["ttft_s"]["mean"],
    "ttft-p99": lambda report: report["ttft_s"]["p99"],
    "e2e": lambda report: report["e2e_s"]["mean"],
    "e2e-p99": lambda report: report["e2e_s"]["p99"],
    "service": lambda report: -(report["steady"]["service_per_s"] or report["service_per_s"]),
    "jain": lambda report: -(report["jain"] or 0.0),
    "hit-ratio": lambda report: -report["prefix_hit_ratio"],
    "slo": lambda report: -report["slo"]["attained"],
}
"""What a comparison may be sorted by, the best first."""
MEASURES: Mapping[str, tuple[str, str]] = {
    "TTFT mean": ("ttft_s", "mean"),
    "TTFT p99": ("ttft_s", "p99"),
    "end to end mean": ("e2e_s", "mean"),
    "end to end p99": ("e2e_s", "p99"),
}
"""What a combination is judged by: where the number is in a report."""
Progress = Callable[[int], None]
_Task = tuple["Source", Setup, Targets]


@dataclass(frozen=True, slots=True)
class Source:
    """A workload as it is named on a command line, so that each process can make its own; see `open_workload`."""

    wanted: str
    seed: int = 0
    rate: float = 1.0
    limit: int | None = None


@lru_cache(maxsize=1)
def load(source: Source) -> Workload:
    """Made once per process: reading a long trace takes longer than sending its results back.

    Raises WorkloadError.
    """
    return open_workload(source.wanted, seed=source.seed, rate=source.rate, limit=source.limit)


@dataclass(frozen=True, slots=True)
class CombinationResult:
    """One combination and what its replays came to."""

    report: dict[str, Any]
    """Of all its seeds, see `seeds.merged`."""
    rejected: dict[str, int]
    """Requests by reason, over all seeds."""
    curves: tuple[Curves, ...]
    """One for each seed."""
    fault: str | None = None

    @property
    def name(self) -> str:
        return name_of(self.report)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has been found; all of it, unless the comparison was interrupted."""

    results: list[CombinationResult]
    """In the order of the setups; those without a single finished replay are left out."""
    finished: int
    total: int
    """Replays."""

    @property
    def interrupted(self) -> bool:
        return self.finished < self.total


def name_of(report: Mapping[str, Any]) -> str:
    """How a combination is called in tables and pictures."""
    return f"{report['queue']} / {report['placement']} / {report['binding']}"


def combinations(
    placements: Sequence[str | None],
    queues: Sequence[str | None],
    bindings: Sequence[str | None],
    *,
    settings: Mapping[str, Any],
    **rest: Any,
) -> list[Setup]:
    """Every placement with every queue and binding; None is the default. `rest` goes to `make_setup`.

    A setting goes to the policies that have it. Raises SetupError where none has, and as `make_setup`.
    """
    setups = [
        make_setup(placement=placement, queue=queue, binding=binding, settings=settings, lenient=True, **rest)
        for queue in queues
        for placement in placements
        for binding in bindings
    ]
    refuse_unknown(settings, known_settings({s.placement for s in setups}, {s.queue for s in setups}))
    return setups


def compare(
    source: Source,
    setups: Sequence[Setup],
    *,
    targets: Targets,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Run every setup with every seed (by default the source's), in up to `jobs` processes.

    `progress` is called with the number of finished replays. KeyboardInterrupt ends the comparison early: what is
    finished by then is returned.
    """
    numbers = [source.seed] if seeds is None else seeds
    tasks = [
        (replace(source, seed=seed), replace(setup, seed=seed), targets)
        for seed in numbers  # replays of one workload stand together
        for setup in setups
    ]
    found: dict[int, list[CombinationResult]] = {}
    done = 0
    try:
        with closing(results_of(_run, tasks, jobs)) as results:
            for number, result in results:
                found.setdefault(number % len(setups), []).append(result)
                done += 1
                if progress is not None:
                    progress(done)
    except KeyboardInterrupt:
        pass
    return Comparison([_joined(found[index]) for index in sorted(found)], done, len(tasks))


def ordered(results: Iterable[CombinationResult], by: str) -> list[CombinationResult]:
    """Sort by one of `SORTS`; what has no value there comes last. Raises SetupError for another name."""
    if by not in SORTS:
        raise SetupError(f"cannot sort by `{by}`; known are {', '.join(SORTS)}")

    def key(result: CombinationResult) -> tuple[bool, float]:
        value = SORTS[by](result.report)
        return value is None, value or 0.0

    return sorted(results, key=key)


def best_of_others(
    reports: Sequence[dict[str, Any]], placement: str, binding: str
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By measure: the best report of this placement, and the best of any other, whatever its binding and queue.

    Of this placement those with the given binding count, if there are any. Empty where either side is missing.
    """
    ours = [report for report in reports if report["placement"] == placement]
    ours = [report for report in ours if report["binding"] == binding] or ours
    others = [report for report in reports if report["placement"] != placement]
    found = {}
    for measure, (part, name) in MEASURES.items():
        mine, theirs = ([report for report in group if report[part][name] is not None] for group in (ours, others))
        if mine and theirs:
            found[measure] = (
                min(mine, key=lambda report: report[part][name]),  # used at once
                min(theirs, key=lambda report: report[part][name]),
            )
    return found


def _run(task: _Task) -> CombinationResult:
    source, setup, targets = task
    run = replay(load(source), setup)
    return CombinationResult(summarize(run, setup, targets), rejections(run), (curves(run),), run.fault)


def _joined(results: Sequence[CombinationResult]) -> CombinationResult:
    """The replays of one combination, in the order of their seeds."""
    results = sorted(results, key=lambda result: result.report["seed"])
    rejected: dict[str, int] = {}
    for result in results:
        for reason, number in result.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + number
    faults = [result.fault for result in results if result.fault is not None]
    return CombinationResult(
        merged([result.report for result in results]),
        dict(sorted(rejected.items(), key=lambda item: -item[1])),
        tuple(curve for result in results for curve in result.curves),
        faults[0] if faults else None,
    )
