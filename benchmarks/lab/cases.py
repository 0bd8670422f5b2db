"""What is replayed: every workload on a fleet of its own, in units of what that fleet can do.

The unit of load is the highest rate at which the fleet keeps up under the placement that suits the workload
best: at 120% of it the queue grows for as long as the workload lasts, under any placement. Where programs go on
by themselves (closed loops) far more than that lowers the rate again, as caches thrash. `python -m
benchmarks.lab --calibrate` shows what the default does at 90%, 120% and 250%; the units here are of commit
996c7cc, rounded.

Workloads end after a number of requests, not of seconds: programs go on starting until then, so the fleet is never
draining while it is measured. Where answers are long and prompts short, engines with few slots make the same load
with fewer requests, and a batch is full before the workload is over; the think and tool times of closed loops are
short for the same reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.lab.comparison import Source

CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A workload on a fleet."""

    name: str
    wanted: str
    """The workload with `{rate}` for requests per second; of a trace its path."""
    unit: float
    """Requests per second that are a load of 1; of a trace the factor on its own rate."""
    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    requests: int | None = None
    """Of a trace: how many, the first ones."""
    misbehaving: str | None = None
    """The name of the client that does."""

    def source(self, load: float, seed: int) -> Source:
        """The workload at a load, in units of the fleet's capacity."""
        rate = load * self.unit
        if "{rate}" in self.wanted:
            return Source(self.wanted.format(rate=f"{rate:.6g}"), seed)
        return Source(self.wanted, seed, rate, self.requests)


_SMALL_BATCHES = {"engine.max_num_seqs": 32}
_GENERATED = {
    "judge": ("judge:clients=8,requests=3000,rate={rate}", 52.0, {}),
    "longqa": ("longqa:clients=8,requests=1000,rate={rate}", 15.5, {}),
    "tot": ("tot:clients=8,requests=3000,rate={rate}", 54.0, _SMALL_BATCHES),
    "agents": (
        "agents:clients=8,requests=3000,rate={rate},tool_s=0.2,turns=5,most_turns=8",
        62.0,
        _SMALL_BATCHES,
    ),
    "chat": ("chat:clients=8,requests=4000,rate={rate},think_s=0.2,turns=4,most_turns=8", 115.0, _SMALL_BATCHES),
}
_MISBEHAVING = (("judge", "s1", 0.8), ("longqa", "s1", 0.9), ("longqa", "s2", 1.1), ("tot", "s1", 0.75))
"""Workload, how one of its clients misbehaves, and the load that all would make if none did: so that all
together ask for more than the fleet can do, and the well-behaved for less than their shares of it."""
_FLOOD_REQUESTS = {"judge": 8000, "longqa": 2000, "tot": 8000}
"""A flood fills the engines' batches first, and only then does anybody wait."""


def generated() -> dict[str, Case]:
    """The cases that need nothing but a seed, by name."""
    return {name: Case(name, wanted, unit, 4, settings) for name, (wanted, unit, settings) in _GENERATED.items()}


def traces(mooncake: str | None, arena: str | None) -> dict[str, Case]:
    """The cases made of recorded traffic, of those whose files are given."""
    cases = {}
    if mooncake:
        cases["mooncake"] = Case("mooncake", mooncake, 3.2, 8, requests=2000)
    if arena:
        cases["arena"] = Case("arena", arena, 7.4, 2, {"engine.max_num_seqs": 16})
    return cases


def misbehaving() -> dict[str, tuple[Case, float]]:
    """Cases with a misbehaving client (D2LPM's S1 and S2), by name, each with its load."""
    cases = {}
    for name, how, load in _MISBEHAVING:
        wanted, unit, settings = _GENERATED[name]
        count = wanted.partition("requests=")[2].partition(",")[0]
        flood = wanted.replace(f"requests={count}", f"requests={_FLOOD_REQUESTS[name]}") + f",misbehaving={how}"
        title = f"{name} {how}"
        cases[title] = (Case(title, flood, unit, 4, settings, misbehaving=f"client-{CLIENTS - 1}"), load)
    return cases
