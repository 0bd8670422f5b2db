"""From workers to pools: which scheduler a model name belongs to, and how each worker is reached.

A pool is the workers that share capacity for one base model; every name they answer to (aliases, LoRA adapters)
is a line of that pool. The fleet tells what happens to workers; here it becomes events of the right scheduler.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from policies.model import Reading, Stage, WorkerFacts, WorkerId
from policies.prefixes.index import Prefixes
from policies.scheduler.scheduler import Scheduler
from router.control.dispatcher import Pool
from router.edge.errors import BadRequest, NoSuchModel, Unavailable
from workers.fleet.worker import FleetEvent, State, Worker, WorkerLeft
from workers.http.upstream import Upstream


@dataclass(slots=True, eq=False)
class Member:
    """A worker of a pool, and the way to it."""

    worker: Worker
    upstream: Upstream
    pool: Pool | None = None
    open: int = 0
    """Requests that are under way there."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What every request to it carries: its own key, and the rank behind a shared URL."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model name leads."""

    pool: Pool
    line: str
    """The name that the pool's workers know."""
    rewrite: str | None
    """The name to put into the body, where the client used the router's own alias."""


class Pools:
    """All pools, kept in step with the fleet."""

    def __init__(
        self,
        make_scheduler: Callable[[], Scheduler],
        connect: Callable[[str], Upstream],
        rested: Callable[[WorkerId], None],
        aliases: dict[str, str],
    ) -> None:
        self._make_scheduler = make_scheduler
        self._connect = connect
        self._rested = rested
        self.aliases = aliases
        self.by_model: dict[str, Pool] = {}
        self.members: dict[WorkerId, Member] = {}
        self._lines: dict[str, Pool] = {}
        self._upstreams: dict[str, Upstream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # -- finding

    def route(self, model: str | None) -> Route:
        """The pool of a model name; none, or as for vLLM an empty one, means the only model.

        Raises in the words that vLLM would use.
        """
        if not model:
            return self._only()
        target = self.aliases.get(model, model)
        pool = self._lines.get(target)
        if pool is None:
            if not self._lines:
                raise Unavailable("No worker has been reached yet, so no model is known.", retry_after_s=2)
            raise NoSuchModel(
                f"The model `{model}` does not exist. Valid aliases: {', '.join(self.names())}.", param="model"
            )
        return Route(pool, target, target if target != model else None)

    def names(self) -> list[str]:
        """Every model name that a client may use."""
        aliases = [alias for alias, target in self.aliases.items() if target in self._lines]
        return sorted({*self._lines, *aliases})

    def _only(self) -> Route:
        if not self.by_model:
            raise Unavailable("No worker has been reached yet, so no model is known.", retry_after_s=2)
        if len(self.by_model) > 1:
            raise BadRequest(
                f"`model` is missing, and there are several: {', '.join(sorted(self.by_model))}.", param="model"
            )
        ((name, pool),) = self.by_model.items()
        return Route(pool, name, None)

    def usable(self, line: str) -> list[Member]:
        """The workers that may be given a request for this line."""
        return [m for m in self.members.values() if m.worker.routable and line in m.worker.lines]

    def prefixes(self, worker: WorkerId) -> Prefixes | None:
        """What is known of the caches of a worker's pool; None if it is in none, or not any more."""
        member = self.members.get(worker)
        return None if member is None or member.pool is None else member.pool.scheduler.prefixes

    def busy(self, member: Member) -> "_Busy":
        """Something is under way on a worker; a draining one is let go when the last of it has ended."""
        return _Busy(member, self._let_go)

    # -- following the fleet

    def on_fleet(self, event: FleetEvent) -> None:
        """A worker joined, changed or left."""
        if isinstance(event, WorkerLeft):
            self._leave(event.id)
            return
        worker = event.worker
        member = self.members.get(worker.id)
        if member is None:
            member = self.members[worker.id] = Member(
                worker, self._upstream(worker.spec.url), headers=_headers(worker)
            )
        member.worker = worker
        member.upstream.silence_limit_s = worker.silence_limit_s
        self._assign(member)
        self._let_go(member)

    def _let_go(self, member: Member) -> None:
        if member.open == 0 and member.worker.state is State.DRAINING:
            self._rested(member.worker.id)

    async def aclose(self) -> None:
        for pool in self.by_model.values():
            pool.close()
        await asyncio.gather(*(upstream.aclose() for upstream in self._upstreams.values()), *self._closing)

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
        if member.pool is not None:
            member.pool.left(worker)
        url = member.worker.spec.url
        if not any(other.worker.spec.url == url for other in self.members.values()):
            task = asyncio.ensure_future(self._drop(self._upstreams.pop(url)))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._index()

    async def _drop(self, upstream: Upstream) -> None:
        """Close the connections to a worker that has left, once what runs there has ended."""
        while upstream.open > upstream.idle:  # noqa: ASYNC110 - rare, and nobody waits for it
            await asyncio.sleep(0.1)
        await upstream.aclose()

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
        lines = dict(self.by_model)
        for member in self.members.values():
            if member.pool is not None:
                for line in member.worker.lines:
                    lines.setdefault(line, member.pool)
        self._lines = lines

    def _upstream(self, url: str) -> Upstream:
        if url not in self._upstreams:
            self._upstreams[url] = self._connect(url)
        return self._upstreams[url]


class _Busy:
    """A context; written out, because a generator's costs five times as much."""

    __slots__ = ("_let_go", "_member")

    def __init__(self, member: Member, let_go: Callable[[Member], None]) -> None:
        self._member = member
        self._let_go = let_go

    def __enter__(self) -> None:
        self._member.open += 1

    def __exit__(self, *_: object) -> None:
        self._member.open -= 1
        self._let_go(self._member)


def facts(worker: Worker) -> WorkerFacts:
    """A worker as the scheduler knows it."""
    spec, scrape = worker.spec, worker.scrape
    return WorkerFacts(
        id=worker.id,
        served_names=worker.lines,
        stages=frozenset(Stage(role) for role in spec.roles),
        usable=worker.routable,
        suspect=worker.state is State.SUSPECT,
        slots=spec.max_num_seqs,
        adapters=worker.adapters,
        kv_tokens=spec.kv_tokens or (scrape.kv_tokens if scrape is not None else None),
        block_size=scrape.block_size if scrape is not None else None,
        max_batched_tokens=spec.max_num_batched_tokens,
        reading=None if scrape is None or worker.stale else Reading(scrape.at, scrape.running, scrape.waiting),
    )


def _headers(worker: Worker) -> tuple[tuple[bytes, bytes], ...]:
    headers = []
    if worker.spec.api_key is not None:
        headers.append((b"authorization", b"Bearer " + worker.spec.api_key.encode()))
    if worker.spec.data_parallel > 1:
        headers.append((b"x-data-parallel-rank", str(worker.rank).encode()))
    return tuple(headers)
