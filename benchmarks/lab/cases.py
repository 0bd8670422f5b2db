"""What is replayed: every workload at a share of what its fleet can take; some with a client that misbehaves."""

from collections.abc import Iterable
from dataclasses import dataclass

from router.lab.comparison import Source

WORKERS = 4
CLIENTS = 8
TRACE_WORKERS = 8
TRACE_REQUESTS = 3000
SHARES = (0.6, 0.9, 1.2)


@dataclass(frozen=True, slots=True)
class Generated:
    """A generator and the rate, in requests per second, from which on its requests wait for over a second."""

    capacity: float
    duration_s: int
    options: str = ""


GENERATED = {
    "judge": Generated(50, 45),
    "longqa": Generated(7, 120),
    "tot": Generated(270, 15),
    "agents": Generated(180, 20),
    "chat": Generated(2600, 4, ",think_s=0.5,turns=4,most_turns=8"),
}
TRACE_CAPACITY = 3.3
"""The trace's capacity is a factor on its own rate."""
MISBEHAVING = (
    ("judge", "s1", 0.8, 135),
    ("longqa", "s1", 1.3, 120),
    ("longqa", "s2", 1.3, 120),
    ("tot", "s1", 0.75, 45),
)
"""Workload, how one of its clients misbehaves, the share of capacity that all would ask for if none did (so that
all together ask for more than the fleet can do, and the others for less than their share of it), and for how many
seconds: a flood fills the engines' batches first, and only then does anybody wait."""


@dataclass(frozen=True, slots=True)
class Case:
    """One workload on one fleet."""

    name: str
    source: Source
    workers: int = WORKERS
    misbehaving: str | None = None
    """The name of the client that does, the generators' last one."""


def workloads(names: Iterable[str], trace: str | None, share: float, seed: int) -> list[Case]:
    """Every workload at this share of its capacity."""
    cases = [Case(name, Source(_wanted(name, share * GENERATED[name].capacity), seed=seed)) for name in names]
    if trace:
        source = Source(trace, seed=seed, rate=share * TRACE_CAPACITY, limit=TRACE_REQUESTS)
        cases.append(Case("trace", source, TRACE_WORKERS))
    return cases


def misbehaving(names: Iterable[str], seed: int) -> list[Case]:
    """Those of `MISBEHAVING` whose workload is wanted."""
    wanted = set(names)
    return [
        Case(
            f"{name} {kind}",
            Source(f"{_wanted(name, share * GENERATED[name].capacity, seconds)},misbehaving={kind}", seed=seed),
            misbehaving=f"client-{CLIENTS - 1}",
        )
        for name, kind, share, seconds in MISBEHAVING
        if name in wanted
    ]


def _wanted(name: str, rate: float, seconds: int | None = None) -> str:
    generated = GENERATED[name]
    return (
        f"{name}:clients={CLIENTS},duration_s={seconds or generated.duration_s},rate={rate:g}{generated.options}"
    )
