"""Orders under a memory limit beside the optimum itself, where a case is small enough for an integer program.

Cases of 40 to 60 requests that are all there from the start, in unit steps, of three kinds; lengths of few
values, so that the program counts requests of a kind instead of naming each (`optimum.py`). Every order twice:
as printed in its paper, by itself (`printed_rules.py`), and as it ships, with the scheduler and the engine
(`one_worker.py`).

First with exact lengths; then with intervals that hold the truth and whose ends differ by a factor, which is
what A_max and A_min are about. The optimum always knows the lengths and interrupts nobody. `svf_1bit` knows one
bit of each answer, always the right one, whatever the others are told.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from random import Random
from statistics import fmean, median
from typing import Any

from benchmarks.papers import optima
from benchmarks.papers.bound import Job
from benchmarks.papers.memory import believed
from benchmarks.papers.one_worker import serve
from benchmarks.papers.printed_rules import RULES, Case, halves, run
from benchmarks.papers.runner import Row, Runner, stacked

WIDTHS = (1, 2, 4)
"""Upper over lower end of an interval; 1: lengths are known."""
INSTANCES = 20
"""Per seed and kind."""
SHIPPED = tuple(RULES)
"""Orders of this name are served too."""


def _equal_prompts(chance: Random) -> Job:
    return Job(4, chance.randint(1, 6))


def _log_normal(chance: Random) -> Job:
    return Job(_nearest(chance, 8, 1.0, (2, 4, 8, 16, 32)), _nearest(chance, 2.5, 0.8, (1, 2, 4)))


def _long_prompts(chance: Random) -> Job:
    """Where shortest first goes wrong: the answers that are a little shorter have prompts that fill the memory."""
    return Job(chance.choice((40, 50)), chance.choice((2, 3))) if chance.random() < 0.5 else Job(4, 4)


KINDS: Mapping[str, tuple[Callable[[Random], Job], int]] = {
    "equal prompts": (_equal_prompts, 80),
    "log-normal": (_log_normal, 100),
    "long prompts, short answers": (_long_prompts, 160),
}
"""How a job is drawn, and the memory in tokens."""


@dataclass(frozen=True, slots=True)
class Small:
    """One case by what it is drawn from."""

    kind: str
    seed: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.seed}/{self.number}"


def reproduce(runner: Runner, seeds: Sequence[int], *, instances: int = INSTANCES) -> dict[str, Any]:
    """By kind and width of interval, each order's ratios to the optimum: mean and largest, one each per seed."""
    found: dict[str, Any] = {"solved": {}, "ratios": {}}
    for kind in KINDS:
        cases = [Small(kind, seed, number) for seed in seeds for number in range(instances)]
        rows = []
        for row in runner.run(measured, cases):
            rows.append(row)
            if len(rows) % 5 == 0:
                runner.tell(f"optimum: {kind}, {len(rows)} of {len(cases)} cases")
        found["solved"][kind] = {
            "cases": len(rows),
            "proven": sum(row["gap"] == 0 for row in rows),
            "gap": max(row["gap"] for row in rows),
        }
        by_seed = [rows[place : place + instances] for place in range(0, len(rows), instances)]
        found["ratios"][kind] = {
            width: {name: stacked([_summed(own, width, name) for own in by_seed]) for name in names}
            for width, names in rows[0]["ratios"].items()
        }
    return found


def _summed(rows: Sequence[Row], width: str, name: str) -> Row:
    ratios = [row["ratios"][width][name] for row in rows]
    return {"mean": fmean(ratios), "max": max(ratios)}


def measured(asked: Small) -> Row:
    """Every order on one case: total completion times over the optimum, by width and order."""
    jobs, memory = drawn(asked)
    total, bound = optima.kept().get(asked.name) or solved(asked)
    ratios: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        spread = Random(f"{asked.kind}/{asked.seed}/{asked.number}/lengths")
        case = Case(jobs, [believed(job.answer, width, spread) for job in jobs], memory)
        ratios[f"{width}"] = {
            **{f"{name}, printed": run(case, rule).total_steps / total for name, rule in RULES.items()},
            **{f"{name}, shipped": served(case, name) / total for name in SHIPPED},
        }
    return {"gap": total / bound - 1, "ratios": ratios}


def solved(asked: Small) -> tuple[int, int]:
    """Total and bound of `optimum`; equal if it is proven."""
    from benchmarks.papers.optimum import optimum  # noqa: PLC0415  # scipy is an extra

    jobs, memory = drawn(asked)
    found = optimum(jobs, memory)
    return found.total, found.bound


def served(case: Case, order: str) -> float:
    """The sum of completion times with the scheduler and the engine."""
    settings = {}
    if order == "svf_1bit":
        kinds = sorted(set(halves(case)))
        middle = int(median(job.answer for job in case.jobs))
        settings = {
            "queue.threshold_tokens": middle,
            "queue.short_tokens": kinds[0],
            "queue.long_tokens": kinds[-1],
        }
    return serve(case.jobs, case.believed, case.memory, order, settings).total_steps


def drawn(asked: Small) -> tuple[list[Job], int]:
    """The jobs of a case, and its memory."""
    draw, memory = KINDS[asked.kind]
    chance = Random(f"{asked.kind}/{asked.seed}/{asked.number}")
    return [draw(chance) for _ in range(chance.randint(40, 60))], memory


def _nearest(chance: Random, mean: float, deviation: float, values: Sequence[int]) -> int:
    """Log-normal with this mean and deviation of the logarithm, rounded to one of few values."""
    drawn = log(mean) - deviation * deviation / 2 + deviation * chance.normalvariate(0, 1)
    return min(values, key=lambda value: abs(log(value) - drawn))
