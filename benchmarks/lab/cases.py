"""What is replayed: every workload at a share of what its fleet can take; some with a client that misbehaves."""

from collections.abc import Iterable
from dataclasses import dataclass

from router.lab.compare import Source

WORKERS = 4
CLIENTS = 8
TRACE_WORKERS = 8
TRACE_REQUESTS = 4000
SHARES = (0.6, 0.9, 1.2)


@dataclass(frozen=True, slots=True)
class Generated:
    """A generator and the rate, in requests per second, from which on its requests wait for over a second."""

    capacity: float
    duration_s: int


GENERATED = {
    "judge": Generated(50, 60),
    "longqa": Generated(7, 120),
    "tot": Generated(270, 30),
    "agents": Generated(180, 40),
    "chat": Generated(1100, 8),
}
TRACE_CAPACITY = 3.3
"""The trace's capacity is a factor on its own rate."""
MISBEHAVING = (("judge", "s1", 0.8), ("longqa", "s1", 0.9), ("longqa", "s2", 0.9), ("tot", "s1", 0.75))
"""Workload, how one of its clients misbehaves, and the share of capacity that all would ask for if none did."""


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
            Source(f"{_wanted(name, share * GENERATED[name].capacity)},misbehaving={kind}", seed=seed),
            misbehaving=f"client-{CLIENTS - 1}",
        )
        for name, kind, share in MISBEHAVING
        if name in wanted
    ]


def _wanted(name: str, rate: float) -> str:
    return f"{name}:clients={CLIENTS},duration_s={GENERATED[name].duration_s},rate={rate:g}"
