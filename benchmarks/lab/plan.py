"""Which cells there are, in the order in which they are replayed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lab.cases import Case, misbehaving
from benchmarks.lab.cells import LIMIT, Cell, Combination
from policies import catalog

BINDINGS = ("late", "early")
UNFAIR = ("round_robin", "least_loaded", "cache_aware", "lmetric", "kv_cost")
"""Placements that stand with first come first served against a client that misbehaves."""
QUEUES = ("lpm", "vtc", "dlpm", "dlpm+lpm", "dlpm+svf")
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no hold": {"hold_ms": 0},
    "a hold for any saving": {"hold_gain": 0.0},
    "no overdraft": {"queue.overdraft": 0},
    "no decode in the cost": {"placement.decode": 0.0},
    "decode as heavy as prefill": {"placement.decode": 1.0},
    "no warm-up slice": {"placement.warm_up": 0.0},
    "no prefill window": {"prefill_window_tokens": 10_000_000},
}
"""One part of the default changed: settings by name, as `fairlead simulate --set` takes them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is about."""

    cases: Mapping[str, Case]
    loads: Sequence[float]
    seeds: Sequence[int]
    placements: Sequence[str]
    queues: Sequence[str]
    bindings: Sequence[str]


def placement_cells(wanted: Wanted) -> Iterator[Cell]:
    """Every placement under both bindings, and the limit: a seed after the other, the highest load first."""
    combinations = [
        Combination(placement, queue, binding)
        for queue in wanted.queues
        for placement in _telling_first(wanted.placements)
        for binding in wanted.bindings
    ]
    for seed in wanted.seeds:
        for load in sorted(wanted.loads, reverse=True):
            for case in wanted.cases.values():
                for combination in (limit_of(), *combinations):
                    yield Cell(case, load, seed, combination)


def misbehaving_cells(wanted: Wanted) -> Iterator[Cell]:
    """Fair and unfair combinations with one misbehaving client; the unfair ones under both bindings."""
    unfair = [Combination(name, "fcfs", binding) for name in UNFAIR for binding in BINDINGS]
    ours = [Combination(catalog.DEFAULT_PLACEMENT, queue, "late") for queue in ("fcfs", *QUEUES)]
    for seed in wanted.seeds:
        for case, load in misbehaving().values():
            if case.name.split()[0] in wanted.cases:
                yield from (Cell(case, load, seed, combination) for combination in (*unfair, *ours))


def ablation_cells(wanted: Wanted) -> Iterator[Cell]:
    """The default at 90% with one part changed at a time."""
    for seed in wanted.seeds:
        for case in wanted.cases.values():
            for combination in (default(), *ablations().values()):
                yield Cell(case, 0.9, seed, combination)


def calibration_cells(cases: Mapping[str, Case]) -> list[Cell]:
    """Every case below, above and far above its capacity, under the default."""
    return [Cell(case, load, 0, default()) for case in cases.values() for load in (0.9, 1.2, 2.5)]


def default() -> Combination:
    """What ships."""
    return Combination(catalog.DEFAULT_PLACEMENT, catalog.DEFAULT_QUEUE, "late")


def limit_of() -> Combination:
    """What no router can exceed."""
    return Combination(LIMIT, catalog.DEFAULT_QUEUE, "late")


def ablations() -> dict[str, Combination]:
    """The default with one part changed, by what is changed."""
    names = (catalog.DEFAULT_PLACEMENT, catalog.DEFAULT_QUEUE)
    changed = {name: Combination(*names, "late", tuple(changes.items())) for name, changes in ABLATIONS.items()}
    return {**changed, "early binding": Combination(*names, "early")}


def _telling_first(placements: Sequence[str]) -> list[str]:
    """The default and its strongest rivals first: a run that is stopped early has compared those."""
    strong = (catalog.DEFAULT_PLACEMENT, "cache_aware", "lmetric", "kv_cost", "ttft_feasible", "preble")
    return [*(name for name in strong if name in placements), *(n for n in placements if n not in strong)]
