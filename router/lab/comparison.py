"""The same workload under several combinations of policies, side by side.

Each combination is a replay of its own, so they may run in processes of their own; each process reads or makes
the workload once. The order in which they finish changes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from router.lab.driver import replay
from router.lab.report import Curves, Targets, curves, rejections, summarize
from router.lab.setup import Setup, SetupError, known_settings, make_setup, refuse_unknown
from router.lab.workload import Workload
from router.lab.workloads.open_workload import open_workload

SORTS: Mapping[str, Callable[[dict[str, Any]], float | None]] = {
    "ttft": lambda report: report["ttft_s"]["mean"],
    "ttft-p99": lambda report: report["ttft_s"]["p99"],
    "e2e": lambda report: report["e2e_s"]["mean"],
    "service": lambda report: -report["service_per_s"],
    "jain": lambda report: -(report["jain"] or 0.0),
    "hit-ratio": lambda report: -report["prefix_hit_ratio"],
    "slo": lambda report: -report["slo"]["attained"],
}
"""What a comparison may be sorted by, the best first."""


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
    """One combination and what it came to."""

    report: dict[str, Any]
    rejected: dict[str, int]
    """By reason."""
    curves: Curves
    fault: str | None = None

    @property
    def name(self) -> str:
        return f"{self.report['queue']} / {self.report['placement']}"


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
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[CombinationResult]:
    """Run every setup, in up to `jobs` processes. `progress` hears how many are done. Order as given."""
    done = progress or (lambda _: None)
    if jobs == 1 or len(setups) == 1:
        entries = []
        for number, setup in enumerate(setups, 1):
            entries.append(_entry(source, setup, targets))
            done(number)
        return entries
    with ProcessPoolExecutor(min(jobs, len(setups)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_entry, source, setup, targets) for setup in setups]
        try:
            waiting = set(futures)
            while waiting:
                _, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                done(len(futures) - len(waiting))
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def ordered(entries: Iterable[CombinationResult], by: str) -> list[CombinationResult]:
    """Sort by one of `SORTS`; what has no value there comes last. Raises SetupError for another name."""
    if by not in SORTS:
        raise SetupError(f"cannot sort by `{by}`; known are {', '.join(SORTS)}")

    def key(entry: CombinationResult) -> tuple[bool, float]:
        value = SORTS[by](entry.report)
        return value is None, value or 0.0

    return sorted(entries, key=key)


def _entry(source: Source, setup: Setup, targets: Targets) -> CombinationResult:
    run = replay(load(source), setup)
    return CombinationResult(summarize(run, setup, targets), rejections(run), curves(run), run.fault)
