"""The edge's way to each worker: one pool of connections per origin, kept in step with control's route table.

Invariants: `_upstreams` has exactly the origins of the workers in the table, each with its certificates; that of a
worker that has left the table, or whose certificates were renewed, is closed once what still runs there has ended;
what is silent at an origin is given up only if every worker there is known not to work.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from policies.model import WorkerId
from router.port import RouteTable, WorkerAddress
from workers.http.tls import TlsFiles
from workers.http.upstream import Timeouts, Upstream

_Origin = tuple[str, str | None, TlsFiles | None]
"""URL, name and certificates."""


@dataclass(slots=True)
class WorkerConnection:
    """A worker, and the connections to its origin."""

    address: WorkerAddress
    upstream: Upstream

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What every request to it carries."""
        return self.address.headers

    @property
    def busy(self) -> int:
        """Requests under way at its origin."""
        return self.upstream.open - self.upstream.idle


class WorkerConnections:
    """All of them, by worker. `connect` makes the pool of an origin."""

    def __init__(self, connect: Callable[[WorkerAddress], Upstream]) -> None:
        self._connect = connect
        self._table = RouteTable()
        self._by_worker: dict[WorkerId, WorkerConnection] = {}
        self._upstreams: dict[_Origin, Upstream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[WorkerConnection]:
        return iter(self._by_worker.values())

    def counts(self) -> list[tuple[WorkerId, int, int]]:
        """Each worker with its idle and busy connections."""
        return [(worker, each.upstream.idle, each.busy) for worker, each in self._by_worker.items()]

    def get(self, worker: WorkerId) -> WorkerConnection | None:
        """The way to a worker; None if it has left."""
        return self._by_worker.get(worker)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Other timeouts from now on, for every origin that there is."""
        for upstream in self._upstreams.values():
            upstream.set_timeouts(timeouts)

    def usable(self, served_name: str) -> list[WorkerConnection]:
        """Those of the workers that may be asked something about this model."""
        return [w for w in self if w.address.routable and served_name in w.address.served_names]

    def follow(self, table: RouteTable) -> None:
        """Control has a new table, or the same one."""
        if table is self._table:
            return
        self._table = table
        for worker in self._by_worker.keys() - table.workers.keys():
            del self._by_worker[worker]
        for worker, address in table.workers.items():
            found = self._by_worker.get(worker)
            if found is None or _origin(found.address) != _origin(address):
                self._by_worker[worker] = found = WorkerConnection(address, self._upstream(address))
            found.address = address
        limits: dict[_Origin, float] = {}
        for address in table.workers.values():
            origin = _origin(address)
            limits[origin] = max(limits.get(origin, 0.0), address.silence_limit_s)
        for origin, limit_s in limits.items():
            self._upstreams[origin].silence_limit_s = limit_s
        for origin in self._upstreams.keys() - limits.keys():
            task = asyncio.ensure_future(_drop(self._upstreams.pop(origin)))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        await asyncio.gather(*(upstream.aclose() for upstream in self._upstreams.values()), *self._closing)

    def _upstream(self, address: WorkerAddress) -> Upstream:
        origin = _origin(address)
        if origin not in self._upstreams:
            self._upstreams[origin] = self._connect(address)
        return self._upstreams[origin]


def _origin(address: WorkerAddress) -> _Origin:
    return address.url, address.host_name, address.tls


async def _drop(upstream: Upstream) -> None:
    """Close the connections to a worker that has left, once what runs there has ended."""
    while upstream.open > upstream.idle:  # noqa: ASYNC110 - rare, and nothing waits for it
        await asyncio.sleep(0.1)
    await upstream.aclose()
