"""dist_sched with its heatmap against round robin, over the rate of arrival (DeepServe, arXiv 2501.14417).

Eight workers: four that do both stages beside two pairs, as in the paper's mixed pool; eight that do both; four
pairs. Placed on arrival, first come first served, as in the paper, except for the shipped default. The heatmap is
the shipped one, made for the simulated H100 that also serves here.

`dist_sched as printed` takes the heatmap as it was measured, by the whole prompt: ours looks at the uncached part,
at what either side owes, and explores.

The paper's round robin is *blind*: colocated workers and pairs take turns, whatever a request looks like. The
lab's `round_robin` takes turns among the workers of the kind that the heatmap has picked, which is half of what
`dist_sched` does; so the blind one is put together from two replays, each with the requests whose turn it is.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.runner import Replay, Row, Runner, measure
from policies.estimates.heatmap import Heatmap
from router.heatmap.file import shipped_heatmap
from router.lab.comparison import Source, load
from router.lab.distribution import spread
from router.lab.driver import replay
from router.lab.report import e2e_s, ttft_s
from router.lab.setup import Setup, make_setup
from router.lab.workload import Workload

MIXED_POOL, COLOCATED, PAIRS = "4 mixed + 2 pairs", "8 mixed", "4 pairs"
POOLS: Mapping[str, str] = {
    MIXED_POOL: "4xmixed,2xprefill,2xdecode",
    COLOCATED: "8xmixed",
    PAIRS: "4xprefill,4xdecode",
}
BLIND = "round_robin, blind"
COMBINATIONS: Mapping[str, Mapping[str, Any]] = {
    "dist_sched": {"placement": "dist_sched", "queue": "fcfs", "binding": "early"},
    "dist_sched as printed": {
        "placement": "dist_sched",
        "queue": "fcfs",
        "binding": "early",
        "settings": {"disaggregate": "printed"},
    },
    "round_robin": {"placement": "round_robin", "queue": "fcfs", "binding": "early"},
    "as shipped": {},
}
RATES = (4.0, 8.0, 12.0, 16.0, 20.0)
DURATION_S = 40.0
SHAPES: Mapping[str, str] = {
    "long prompts": "poisson:spread=1.2,input_tokens=6000,output_tokens=120,prefix_tokens=2048",
    "long answers": "poisson:spread=1.2,input_tokens=1200,output_tokens=400,prefix_tokens=512",
}
LOADS: Mapping[str, float] = {"long prompts": 1.0, "long answers": 3.0}
"""By how much the rates are multiplied, so that the last one is near capacity."""
Table = dict[str, dict[float, dict[str, Row]]]
"""By workload, by rate, by combination and pool."""


@dataclass(frozen=True, slots=True)
class Blind:
    """Two of six turns go to the pairs: there are two pairs and four colocated workers."""

    source: Source
    colocated: Setup
    pairs: Setup


def reproduce(
    runner: Runner, seeds: Sequence[int], *, rates: Sequence[float] = RATES, duration_s: float = DURATION_S
) -> dict[str, Any]:
    """Mean end-to-end time and time to first token of each combination in each pool."""
    table: Table = {}
    for name, shape in SHAPES.items():
        table[name] = {}
        for rate in (rate * LOADS[name] for rate in rates):
            wanted = f"{shape},duration_s={duration_s:g},rate={rate:g}"
            by_seed = [_tasks(Source(wanted, seed=seed)) for seed in seeds]
            tasks = [each[row] for row in by_seed[0] for each in by_seed]
            rows = runner.told(f"dist_sched: {name}, {rate:g}/s", _measure, tasks, seeds)
            table[name][rate] = dict(zip(by_seed[0], rows, strict=True))
    return {"heatmap": about(shipped_heatmap().measured), "pools": table}


def about(heatmap: Heatmap) -> dict[str, Any]:
    """How many of its cells say disaggregate, and the share that says the same at every rate."""
    gains = [gain for row in heatmap.total for gain in row]
    return {"positive": sum(gain > 0 for gain in gains), "cells": len(gains), "agreement": heatmap.agreement()}


def _tasks(source: Source) -> dict[str, Replay | Blind]:
    """The combinations of one table by name."""
    tasks: dict[str, Replay | Blind] = {
        f"{name}: {pool}": Replay(source, _setup(chosen, roles))
        for pool, roles in POOLS.items()
        for name, chosen in COMBINATIONS.items()
        if pool != PAIRS or name == "round_robin"
    }
    turns = COMBINATIONS["round_robin"]
    blind = Blind(source, _setup(turns, "4xmixed"), _setup(turns, "2xprefill,2xdecode"))
    return {f"{BLIND}: {MIXED_POOL}": blind, **tasks}


def _setup(chosen: Mapping[str, Any], roles: str) -> Setup:
    settings = {"queue_requests": 10**6, "queue_wait_s": 1e6, **chosen.get("settings", {})}
    return make_setup(**{**chosen, "roles": roles, "settings": settings})


def _measure(task: Replay | Blind) -> Row:
    return measure(task) if isinstance(task, Replay) else measure_blind(task)


def measure_blind(task: Blind) -> Row:
    """Both halves of the pool, with the requests whose turn it is."""
    workload = load(task.source)
    records = [
        record
        for setup, turns in ((task.colocated, {0, 1, 3, 4}), (task.pairs, {2, 5}))
        for record in replay(_in_turn(workload, turns), setup).results
    ]
    return {
        "requests": len(records),
        "rejected": sum(record.rejected is not None for record in records),
        "ttft_s": spread(map(ttft_s, records)),
        "e2e_s": spread(map(e2e_s, records)),
        "disaggregated": sum(record.pair for record in records) / len(records),
    }


def _in_turn(workload: Workload, turns: Iterable[int]) -> Workload:
    """The requests with these numbers, modulo 6; none of them follows another."""
    requests = [request for number, request in enumerate(workload.requests) if number % 6 in turns]
    return dataclasses.replace(workload, requests=requests)
