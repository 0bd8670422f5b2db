"""From workers to pools: which scheduler a model name belongs to, and what the edge knows of workers.

A pool is the workers that share capacity for one base model; every name they answer to (aliases, LoRA adapters)
is a served name of that pool. The fleet tells what happens to workers; here it becomes events of the right
scheduler.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.model import Reading, Stage, WorkerFacts, WorkerId
from policies.prefixes.index import Prefixes
from policies.scheduler.scheduler import Scheduler
from router.control.dispatcher import Pool
from router.port import Route, RouteTable, WorkerAddress
from workers.fleet.worker import FleetEvent, State, Worker, WorkerLeft


@dataclass(slots=True, eq=False)
class Member:
    """A worker and its pool."""

    worker: Worker
    address: WorkerAddress
    pool: Pool | None = None
    open: int = 0
    """Requests that are under way there."""


class Pools:
    """All pools, kept in step with the fleet. `rested` is told when a draining worker has nothing left to do."""

    def __init__(
        self,
        make_scheduler: Callable[[], Scheduler],
        rested: Callable[[WorkerId], None],
        aliases: Mapping[str, str],
    ) -> None:
        self._make_scheduler = make_scheduler
        self._rested = rested
        self.aliases = dict(aliases)
        self.keys_needed = False
        self.by_model: dict[str, Pool] = {}
        self.members: dict[WorkerId, Member] = {}
        self._by_served_name: dict[str, Pool] = {}
        self._expected: frozenset[str] = frozenset()
        """Names that workers are to serve and do not yet."""
        self._table: RouteTable | None = None
        """None: something has changed since it was made."""

    # -- finding

    def find(self, served_name: str) -> Pool | None:
        """The pool whose workers know this name."""
        return self._by_served_name.get(served_name)

    def routes(self) -> RouteTable:
        """What the edge knows of models and workers."""
        table = self._table
        if table is None:
            names = {name: Route(pool.model, name) for name, pool in self._by_served_name.items()}
            for alias, target in self.aliases.items():
                pool = self._by_served_name.get(target)
                if pool is not None:
                    names[alias] = Route(pool.model, target, rewrite=target)
            workers = {worker: member.address for worker, member in self.members.items()}
            expected = frozenset(self._expected - names.keys())
            expected |= {alias for alias, target in self.aliases.items() if target in expected}
            table = self._table = RouteTable(
                tuple(sorted(self.by_model)), names, workers, self.keys_needed, expected
            )
        return table

    def configure(self, aliases: Mapping[str, str], *, keys_needed: bool) -> None:
        """What the configuration says of routes."""
        self.aliases, self.keys_needed, self._table = dict(aliases), keys_needed, None

    def usable(self, served_name: str) -> list[Member]:
        """The workers that may be given a request for this name."""
        return [m for m in self.members.values() if m.worker.routable and served_name in m.worker.served_names]

    def prefixes(self, worker: WorkerId) -> Prefixes | None:
        """What is known of the caches of a worker's pool; None if it is in none, or not any more."""
        member = self.members.get(worker)
        return None if member is None or member.pool is None else member.pool.scheduler.prefixes

    def vacate(self, member: Member) -> None:
        """A request on this worker has ended; a draining one is let go when the last of it has."""
        member.open -= 1
        self._let_go(member)

    # -- following the fleet

    def on_fleet(self, event: FleetEvent) -> None:
        """A worker joined, changed or left."""
        if isinstance(event, WorkerLeft):
            self._leave(event.id)
            return
        worker = event.worker
        member = self.members.get(worker.id)
        address = _address(worker)
        if member is None:
            member = self.members[worker.id] = Member(worker, address)
            self._table = None
        elif member.address != address:
            member.address = address
            self._table = None
        member.worker = worker
        self._assign(member)
        self._let_go(member)

    def _let_go(self, member: Member) -> None:
        if member.open == 0 and member.worker.state is State.DRAINING:
            self._rested(member.worker.id)

    def close(self) -> None:
        for pool in self.by_model.values():
            pool.close()

    def _assign(self, member: Member) -> None:
        """Put the worker into the pool of its model, which may just have become known or have changed."""
        worker = member.worker
        home = None if worker.model is None else self._pool(worker.model)
        if member.pool is not home and member.pool is not None:
            member.pool.left(worker.id)
        if home is not None:
            (home.changed if member.pool is home else home.joined)(facts(worker))
        member.pool = home
        self._index()

    def _leave(self, worker: WorkerId) -> None:
        member = self.members.pop(worker, None)
        if member is None:
            return
        self._table = None
        if member.pool is not None:
            member.pool.left(worker)
        self._index()

    def _pool(self, model: str) -> Pool:
        pool = self.by_model.get(model)
        if pool is None:
            pool = self.by_model[model] = Pool(model, self._make_scheduler(), asyncio.get_running_loop())
        return pool

    def _index(self) -> None:
        """Which name leads where. A pool that has lost its last worker is forgotten."""
        homes = {id(member.pool) for member in self.members.values()}
        for model, pool in list(self.by_model.items()):
            if id(pool) not in homes:
                pool.close()
                del self.by_model[model]
        names = dict(self.by_model)
        for member in self.members.values():
            if member.pool is not None:
                for name in member.worker.served_names:
                    names.setdefault(name, member.pool)
        expected = frozenset[str]().union(*(member.worker.expected for member in self.members.values()))
        if names != self._by_served_name or expected != self._expected:
            self._table = None
        self._by_served_name, self._expected = names, expected


def facts(worker: Worker) -> WorkerFacts:
    """A worker as the scheduler knows it."""
    spec, scrape = worker.spec, worker.scrape
    return WorkerFacts(
        id=worker.id,
        served_names=worker.served_names,
        stages=frozenset(Stage(role) for role in spec.roles),
        usable=worker.routable,
        suspect=worker.state is State.SUSPECT,
        slots=spec.max_num_seqs,
        adapters=worker.adapters,
        kv_tokens=spec.kv_tokens or (scrape.kv_tokens if scrape is not None else None),
        block_size=scrape.block_size if scrape is not None else None,
        max_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=worker.max_model_len,
        reading=None if scrape is None or worker.stale else Reading(scrape.at, scrape.running, scrape.waiting),
    )


def _address(worker: Worker) -> WorkerAddress:
    """A worker as the edge knows it."""
    published = worker.spec.kv_events
    return WorkerAddress(
        id=worker.id,
        url=worker.spec.url,
        headers=_headers(worker),
        served_names=worker.served_names,
        routable=worker.routable,
        tls=worker.spec.tls,
        host_name=worker.spec.host_name,
        silence_limit_s=worker.silence_limit_s,
        max_model_len=worker.max_model_len,
        kv_events=None if published is None else bool(published),
    )


def _headers(worker: Worker) -> tuple[tuple[bytes, bytes], ...]:
    headers = []
    if worker.spec.api_key is not None:
        headers.append((b"authorization", b"Bearer " + worker.spec.api_key.encode()))
    if worker.spec.data_parallel > 1:
        headers.append((b"x-data-parallel-rank", str(worker.rank).encode()))
    return tuple(headers)
