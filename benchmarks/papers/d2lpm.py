"""D²LPM against VTC with round robin, Preble, and round robin with LPM (arXiv 2501.14312, evaluation).

The paper serves Llama 3.1 8B on up to 8 A100, so the simulated workers are A100. Its baselines bind a request to a
worker as it arrives and order each worker's own line, so all of them are `binding: early` here:

- *VTC with round robin* is `round_robin` with a VTC per worker. The paper deals each client's requests in turn;
  the lab deals all requests in turn, which spreads every client as evenly.
- *Preble* is the placement `preble`. Its own order inside a worker (priority groups by hit ratio) is nearest to
  `lpm`, which ages too.
- *D²LPM* is `d2lpm` over lines of `dlpm+lpm`: once as printed, once as it is set here by default.

Beyond the paper: overload once more with a small KV cache, D²LPM with other quanta, and the shipped default with
other ways to wait for the holder of a prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.runner import Replay, Row, Runner, measure
from router.lab.comparison import Source
from router.lab.setup import Setup, make_setup

PROFILE = "a100-llama-3.1-8b"
CLIENTS = 8
WORKERS = (1, 2, 4, 8)
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
    "hold up to 10 s": {"settings": {"hold_ms": 10_000}},
}
"""Of the shipped default: what it does where it would rather wait for the holder of a long prompt."""
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
    "tot": Shape(30.0, 12.0, 60_000),
    "judge": Shape(5.5, 30.0, 40_000),
    "longqa": Shape(0.8, 80.0, 120_000),
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What all clients ask for if none misbehaves, as a share of capacity; how the last one does; the cache."""

    share: float
    misbehaving: str = "none"
    tight: bool = False


OVERLOAD, TIGHT = Situation(1.5), Situation(1.5, tight=True)
SITUATIONS: Mapping[str, Situation] = {
    "overload": OVERLOAD,
    "s1": Situation(0.8, "s1"),
    "s2": Situation(1.0, "s2"),
}


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Where the replays run and which there are."""

    runner: Runner
    seed: int
    shapes: Mapping[str, Shape]

    def table(
        self, situation: Situation, workers: Iterable[int], combinations: Mapping[str, Mapping[str, Any]]
    ) -> Table:
        """Every combination on every workload and number of workers."""
        counts = list(workers)
        table: Table = {}
        for name, shape in self.shapes.items():
            cache = ", small cache" if situation.tight else ""
            self.runner.tell(f"d2lpm: {name}, {situation.share:.0%}, misbehaving {situation.misbehaving}{cache}")
            tasks = [
                Replay(self._source(name, situation, count), _setup(chosen, count, shape, situation))
                for count in counts
                for chosen in combinations.values()
            ]
            rows = iter(self.runner.run(measure, tasks))
            table[name] = {count: {each: next(rows) for each in combinations} for count in counts}
        return table

    def _source(self, name: str, situation: Situation, workers: int) -> Source:
        shape = self.shapes[name]
        rate = situation.share * shape.rate * workers
        options = f"clients={CLIENTS},duration_s={shape.duration_s:g},rate={rate:g}"
        return Source(f"{name}:{options},misbehaving={situation.misbehaving}", seed=self.seed)


def reproduce(
    runner: Runner, seed: int, *, shapes: Mapping[str, Shape] = SHAPES, workers: Sequence[int] = WORKERS
) -> dict[str, Any]:
    """Every combination in every situation; then, on one fleet each, what is beyond the paper."""
    reproduction = Reproduction(runner, seed, shapes)
    found: dict[str, Any] = {
        name: reproduction.table(situation, workers, COMBINATIONS) for name, situation in SITUATIONS.items()
    }
    middle = workers[-2:-1] or workers
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
    rest = dict(chosen)
    settings = {"queue_requests": 10**6, "queue_wait_s": 1e6, **rest.pop("settings", {})}
    if situation.tight:
        settings["engine.kv_tokens"] = shape.tight_kv_tokens
    return make_setup(profile=PROFILE, workers=workers, settings=settings, **rest)
