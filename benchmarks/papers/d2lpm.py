"""D²LPM against VTC with round robin, Preble, and round robin with LPM (arXiv 2501.14312, evaluation).

The paper serves Llama 3.1 8B on up to 8 A100, so the simulated workers are A100. Its baselines bind a request
to a worker as it arrives and order each worker's own line, so all of them are `binding: early` here:

- *VTC with round robin* is `round_robin` with a VTC per worker. The paper deals each client's requests in turn;
  the lab deals all requests in turn, which spreads every client as evenly.
- *Preble* is the placement `preble`. Its own order inside a worker (priority groups by hit ratio) is nearest to
  `lpm`, which ages too.
- *D²LPM* is `d2lpm` over lines of `dlpm+lpm`: once as printed, once as it is set here by default.

The paper's latency is end to end; the time to the first token is kept beside it. Its workloads have one
misbehaving client; here also two and four of the eight.

Beyond the paper: overload once more with a small KV cache, one worker with a cache from a tenth of the working
set to all of it, D²LPM with other quanta, and the shipped default bound on arrival.
"""

import dataclasses
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.runner import Replay, Row, Runner, measure
from router.lab.comparison import Source, load
from router.lab.setup import Setup, make_setup
from router.lab.workload import Workload

PROFILE = "a100-llama-3.1-8b"
CLIENTS = 8
WORKERS = (2, 8)
VTC = "vtc, round robin"
D2LPM = "d2lpm as printed"
PREBLE = "preble"
RR_LPM = "lpm, round robin"
DEFAULT = "as shipped"
PRINTED: Mapping[str, Any] = {"placement.charge": "input", "placement.only_under_backlog": False}


def _d2lpm(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"placement": "d2lpm", "queue": "dlpm+lpm", "binding": "early", "settings": settings}


COMBINATIONS: Mapping[str, Mapping[str, Any]] = {
    D2LPM: _d2lpm(PRINTED),
    "d2lpm": _d2lpm({}),
    VTC: {"placement": "round_robin", "queue": "vtc", "binding": "early"},
    PREBLE: {"placement": "preble", "queue": "lpm", "binding": "early"},
    RR_LPM: {"placement": "round_robin", "queue": "lpm", "binding": "early"},
    DEFAULT: {},
}
QUANTA: Mapping[str, Mapping[str, Any]] = {
    f"Q_w {many:,}, Q_u {few:,}": _d2lpm({**PRINTED, "placement.quantum": many, "queue.quantum": few})
    for many, few in ((2_048, 2_048), (8_192, 2_048), (40_000, 8_192), (160_000, 32_768))
}
"""The paper goes from 2k to 40k with Q_w and from 1k to 32k with Q_u."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "early binding": {"binding": "early"},
}
"""Of the shipped default."""
MISBEHAVING = (2, 4)
"""Of the eight clients."""
CACHES = (0.1, 0.25, 0.5, 1.0)
"""KV cache of one worker over the working set, that is the distinct prompt tokens of the whole workload."""
ONE_WORKER: Mapping[str, Mapping[str, Any]] = {
    "fcfs": {"queue": "fcfs"},
    "lpm": {"queue": "lpm"},
    "vtc": {"queue": "vtc"},
    "dlpm+lpm": {"queue": "dlpm+lpm"},
    DEFAULT: {},
}
"""On one worker a placement has nothing to choose, so these are orders."""
Table = dict[str, dict[int, dict[str, Row]]]
"""By workload, by number of workers, by combination."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A workload, and its requests per second and worker from which on they wait for over a second."""

    rate: float
    duration_s: float
    tight_kv_tokens: int
    """A KV cache in which not everything that is in use finds room."""


SHAPES: Mapping[str, Shape] = {
    "tot": Shape(30.0, 8.0, 60_000),
    "judge": Shape(5.5, 20.0, 40_000),
    "longqa": Shape(0.8, 60.0, 120_000),
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What all clients ask for if none misbehaves, as a share of capacity; how the last one does; the cache."""

    share: float
    misbehaving: str = "none"
    tight: bool = False
    clients: int = 1
    """How many misbehave."""


OVERLOAD, TIGHT = Situation(1.5), Situation(1.5, tight=True)
SITUATIONS: Mapping[str, Situation] = {
    "overload": OVERLOAD,
    "s1": Situation(0.8, "s1"),
    "s2": Situation(1.0, "s2"),
}
CROWDS: Mapping[str, Situation] = {
    f"{how}, {count} of {CLIENTS}": Situation(share, how, clients=count)
    for how, share in (("s1", 0.8), ("s2", 1.0))
    for count in MISBEHAVING
}


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Where the replays run and which there are."""

    runner: Runner
    seeds: Sequence[int]
    shapes: Mapping[str, Shape]

    def table(
        self, situation: Situation, workers: Iterable[int], combinations: Mapping[str, Mapping[str, Any]]
    ) -> Table:
        """Every combination on every workload and number of workers."""
        counts = list(workers)
        table: Table = {}
        for name, shape in self.shapes.items():
            tasks = [
                Replay(self._source(name, situation, count, seed), _setup(chosen, count, shape, situation))
                for count in counts
                for chosen in combinations.values()
                for seed in self.seeds
            ]
            cache = ", small cache" if situation.tight else ""
            misbehaving = f"{situation.clients} x {situation.misbehaving}"
            title = f"d2lpm: {name}, {situation.share:.0%}, misbehaving {misbehaving}{cache}"
            rows = self.runner.told(title, measure, tasks, self.seeds)
            table[name] = {count: {each: next(rows) for each in combinations} for count in counts}
        return table

    def sweep(self) -> dict[str, dict[float, dict[str, Row]]]:
        """One worker at 150% of capacity with caches of several sizes, by workload, share and order."""
        table: dict[str, dict[float, dict[str, Row]]] = {}
        for name in self.shapes:
            tasks = [
                Cached(Replay(self._source(name, OVERLOAD, 1, seed), make_setup(**_options(chosen))), share)
                for share in CACHES
                for chosen in ONE_WORKER.values()
                for seed in self.seeds
            ]
            rows = self.runner.told(f"d2lpm: {name}, one worker, caches", measure_cached, tasks, self.seeds)
            table[name] = {share: {each: next(rows) for each in ONE_WORKER} for share in CACHES}
        return table

    def _source(self, name: str, situation: Situation, workers: int, seed: int) -> Source:
        shape = self.shapes[name]
        rate = situation.share * shape.rate * workers
        options = f"clients={CLIENTS},duration_s={shape.duration_s:g},rate={rate:g}"
        how = f"misbehaving={situation.misbehaving},misbehaving_clients={situation.clients}"
        return Source(f"{name}:{options},{how}", seed=seed)


@dataclass(frozen=True, slots=True)
class Cached:
    """A replay on one worker whose KV cache is this share of the working set."""

    replay: Replay
    share: float


def measure_cached(task: Cached) -> Row:
    """As `measure`, with the size of the cache in tokens. One request of the largest kind always has room."""
    workload = load(task.replay.source)
    tokens = max(round(task.share * working_set(workload)), largest(workload))
    setup = dataclasses.replace(task.replay.setup, engine={"kv_tokens": tokens})
    return {"kv_tokens": tokens, **measure(Replay(task.replay.source, setup))}


def working_set(workload: Workload) -> int:
    """Tokens of all distinct full blocks of the prompts."""
    units = {unit for one in workload.requests for unit in array("Q", one.key)}
    return len(units) * workload.block_tokens


def largest(workload: Workload) -> int:
    """Tokens of the longest prompt with its answer, in full blocks."""
    tokens = max(one.input_tokens + one.output_tokens for one in workload.requests)
    return -(-tokens // workload.block_tokens) * workload.block_tokens


def reproduce(
    runner: Runner, seeds: Sequence[int], *, shapes: Mapping[str, Shape] = SHAPES, workers: Sequence[int] = WORKERS
) -> dict[str, Any]:
    """Every combination in every situation; then, on one fleet each, what is beyond the paper."""
    reproduction = Reproduction(runner, seeds, shapes)
    found: dict[str, Any] = {
        name: reproduction.table(situation, workers, COMBINATIONS) for name, situation in SITUATIONS.items()
    }
    middle = workers[-2:-1] or workers
    found["crowds"] = {
        name: reproduction.table(situation, middle, COMBINATIONS) for name, situation in CROWDS.items()
    }
    found["caches"] = reproduction.sweep()
    found["tight"] = reproduction.table(TIGHT, middle, COMBINATIONS)
    found["quanta"] = {
        name: reproduction.table(situation, middle, QUANTA)
        for name, situation in (("large cache", OVERLOAD), ("small cache", TIGHT))
    }
    found["variants"] = {
        name: reproduction.table(SITUATIONS[name], workers[-1:], VARIANTS) for name in ("overload", "s1")
    }
    return found


def _setup(chosen: Mapping[str, Any], workers: int, shape: Shape, situation: Situation) -> Setup:
    options = _options(chosen, workers)
    if situation.tight:
        options["settings"]["engine.kv_tokens"] = shape.tight_kv_tokens
    return make_setup(**options)


def _options(chosen: Mapping[str, Any], workers: int = 1) -> dict[str, Any]:
    """For `make_setup`: the queue turns nobody away."""
    settings = {"queue_requests": 10**6, "queue_wait_s": 1e6, **chosen.get("settings", {})}
    return {**chosen, "profile": PROFILE, "workers": workers, "settings": settings}
