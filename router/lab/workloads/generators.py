"""Seeded workloads by name: programs of one shape, started by several clients at random moments.

Every client starts programs as a renewal process with Gamma gaps (arXiv 2501.14312) of its own, drawn from its own
chance: what one client does, misbehaving included, changes nothing about the others. Equal arguments give equal
workloads, on every machine.
"""

import dataclasses
import difflib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from router.lab.workload import BASE_NAME, Targets, Workload, WorkloadError
from router.lab.workloads.dialogues import Agents, Chat
from router.lab.workloads.fan_outs import Judge, LongQuestions, TreeOfThoughts
from router.lab.workloads.poisson import Poisson
from router.lab.workloads.request_table import RequestTable
from router.lab.workloads.shapes import Amount, Count, Shape, Share, Spread, Write

SHAPES: Mapping[str, type[Shape]] = {
    "tot": TreeOfThoughts,
    "judge": Judge,
    "longqa": LongQuestions,
    "chat": Chat,
    "agents": Agents,
    "poisson": Poisson,
}
BLOCK_TOKENS = 16
DEFAULT_REQUESTS = 1000


def _split(value: Any) -> Any:
    return value.split("/") if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Traffic:
    """The options that every generator has."""

    clients: Count = 8
    weights: Annotated[tuple[Amount, ...], BeforeValidator(_split)] = (1.0,)
    """Dealt to the clients in turn; as text with slashes between, `1/1/2`."""
    requests: Count | None = None
    """Keep this number of requests, the first to arrive; 1,000 if there is no `duration_s` either."""
    duration_s: Amount | None = None
    """Programs start until then; what they go on to ask comes later."""
    rate: Amount | None = None
    """Requests per second of all clients together, if all behaved; by default the shape's. A closed loop gets
    there when as many of its programs end as start."""
    arrival_cv: Amount = 1.0
    """Coefficient of variation of the time between a client's programs: at 1 a Poisson process, above burstier."""
    misbehaving: Literal["none", "s1", "s2"] = "none"
    misbehaving_clients: Count = 1
    """How many of the clients misbehave, the last ones."""
    whole: Share = 0.0
    """Share of the requests, drawn at random, whose answers are not streamed."""
    sequences: Count = 1
    """Answers that each request asks for (`n`)."""
    adapters: Annotated[int, Field(ge=0, le=1000)] = 0
    """LoRA adapters beside the base model; dealt to the clients in turn, the first one asks for the base model."""
    slo_ttft_s: Annotated[tuple[Spread, ...], BeforeValidator(_split)] = ()
    """Service levels: targets for the first token, dealt to the clients in turn, as text `0.5/30`."""
    slo_tpot_s: Annotated[tuple[Spread, ...], BeforeValidator(_split)] = ()
    """The same for each further token; as many as there are of `slo_ttft_s`."""
    priorities: Annotated[tuple[int, ...], BeforeValidator(_split)] = (0,)
    """Dealt to the clients in turn; lower is earlier."""


def generate(name: str, seed: int = 0, **options: Any) -> Workload:
    """The named shape's workload. Options are those of `Traffic` and of the shape, as values or as text.

    Raises WorkloadError for a name or an option that does not exist or does not fit.
    """
    if name not in SHAPES:
        raise WorkloadError(f"there is no generator `{name}`; {_meant(name, SHAPES)}")
    traffic, shape = _checked(name, options)
    return _Source(name, seed, traffic, shape).workload()


def options_of(name: str) -> dict[str, Any]:
    """The options of a generator with their defaults."""
    fields = (*dataclasses.fields(Traffic), *_fields(SHAPES[name]))
    return {field.name: field.default for field in fields} | {"rate": SHAPES[name].rate}


def _checked(name: str, options: Mapping[str, Any]) -> tuple[Traffic, Shape]:
    known = options_of(name)
    problems = [f"`{name}` has no option `{key}`; {_meant(key, known)}" for key in options if key not in known]
    common = {field.name for field in dataclasses.fields(Traffic)}
    parts: list[Any] = []
    for kind, own in ((Traffic, True), (SHAPES[name], False)):
        mine = {key: value for key, value in options.items() if key in known and (key in common) is own}
        try:
            parts.append(TypeAdapter(kind).validate_python(mine))
        except ValidationError as error:
            problems += [f"`{details['loc'][0]}`: {details['msg']}" for details in error.errors()]
    if not problems and parts[0].misbehaving != "none" and parts[0].misbehaving_clients > parts[0].clients:
        problems.append("`misbehaving_clients`: there are more of them than clients")
    if not problems and len(parts[0].weights) > parts[0].clients:
        problems.append("`weights`: there are more of them than clients")
    if not problems and len(parts[0].slo_ttft_s) != len(parts[0].slo_tpot_s):
        problems.append("`slo_ttft_s` and `slo_tpot_s`: give as many of one as of the other")
    if problems:
        raise WorkloadError("; ".join(problems))
    return parts[0], parts[1]


def _fields(shape: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(shape)


def _meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"


@dataclass(slots=True)
class _Client:
    """One that starts programs."""

    name: str
    number: int
    chance: Random
    write: Write
    mean_gap_s: float
    programs: int = 0


class _Source:
    """A workload in the making."""

    def __init__(self, name: str, seed: int, traffic: Traffic, shape: Shape) -> None:
        self._name = name
        self._seed = seed
        self._traffic = traffic
        self._table = RequestTable(BLOCK_TOKENS)
        self._limit = traffic.requests
        if traffic.requests is None and traffic.duration_s is None:
            self._limit = DEFAULT_REQUESTS
        self._misbehaving: set[str] = set()
        self._clients = self._make_clients(shape)

    def workload(self) -> Workload:
        self._write_programs()
        self._deal_traits()
        table, misbehaving = self._table, frozenset(self._misbehaving)
        if not len(table):
            raise WorkloadError(f"`{self._name}`: no request arrives within {self._traffic.duration_s} s")
        table.sort(self._limit)
        return Workload(
            self._name, BLOCK_TOKENS, table, table.weights, misbehaving, served_names=table.served_names
        )

    def _chance(self, whose: str) -> Random:
        return Random(f"{self._seed}/{self._name}/{whose}")

    def _make_clients(self, shape: Shape) -> list[_Client]:
        traffic, table = self._traffic, self._table
        rate = traffic.rate or shape.rate
        gap = traffic.clients * shape.requests_per_program() / rate
        good = bad = shape.begin(table, self._chance("all"))
        more = 1.0
        if traffic.misbehaving != "none":
            changed, more = shape.misbehaving(traffic.misbehaving)
            bad = good if changed == shape else changed.begin(table, self._chance("misbehaving"))
        well_behaved = traffic.clients - traffic.misbehaving_clients * (traffic.misbehaving != "none")
        clients, width = [], len(str(traffic.clients - 1))
        for index in range(traffic.clients):
            name = f"client-{index:0{width}}"
            number = table.client(name, traffic.weights[index % len(traffic.weights)])
            if index < well_behaved:
                clients.append(_Client(name, number, self._chance(name), good, gap))
            else:
                self._misbehaving.add(name)
                clients.append(_Client(name, number, self._chance(name), bad, gap / more))
        return clients

    def _write_programs(self) -> None:
        """In the order in which they start, until nothing earlier than what is kept can follow."""
        starts = [(self._gap(client), client.number) for client in self._clients]
        heapq.heapify(starts)
        look = self._limit
        while True:
            at, number = starts[0]
            if self._traffic.duration_s is not None and at >= self._traffic.duration_s:
                return
            if look is not None and self._limit is not None and len(self._table) >= look:
                missing = self._limit - self._table.arrived_by(at)
                if missing <= 0:
                    return
                look = len(self._table) + max(missing, len(self._table) // 50)
            client = self._clients[number]
            session = self._table.session(f"{client.name}/{client.programs}")
            client.write(number, at, session, client.chance)
            client.programs += 1
            heapq.heapreplace(starts, (at + self._gap(client), number))

    def _deal_traits(self) -> None:
        """Streams, answers, models, service levels, priorities: drawn apart, so that nothing else changes."""
        traffic, chance = self._traffic, self._chance("whole")
        names = [BASE_NAME, *(f"adapter-{number}" for number in range(1, traffic.adapters + 1))]
        classes: list[Targets | None] = [*map(Targets, traffic.slo_ttft_s, traffic.slo_tpot_s)]
        for row in range(len(self._table)):
            client = self._table.client_of(row)
            self._table.change(
                row,
                streams=chance.random() >= traffic.whole,
                sequences=traffic.sequences,
                served_name=names[client % len(names)],
                targets=classes[client % len(classes)] if classes else None,
                priority=traffic.priorities[client % len(traffic.priorities)],
            )

    def _gap(self, client: _Client) -> float:
        shape = self._traffic.arrival_cv**-2
        return client.chance.gammavariate(shape, client.mean_gap_s / shape)
