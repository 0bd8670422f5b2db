"""The fleet at a glance: workers, clients, who waits and what was decided, in one value for a page or a terminal.

It is made when somebody looks, at most once in `_FRESH_S` however many look, in steps between which the loop
turns. What is said of a minute (shares, hits, speed) comes from the last requests that ended (`histories`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from policies.model import WorkerView
from router.control.control_plane import ControlPlane
from router.control.explanation import row
from router.control.histories import History
from router.control.parties.identity import Clients
from router.control.pools import Member, Pools

MINUTE_S = 60.0
_FRESH_S = 0.9
_PER_STEP = 256
_MOST_WAITING = 50
_MOST_CLIENTS = 200
_LAST = 30
"""Decisions that are shown."""


@dataclass(slots=True)
class _Minute:
    """What requests that ended within the last minute took, of a worker or of a client."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def add(self, history: History) -> None:
        self.requests += 1
        if history.usage is not None:
            self.input_tokens += history.usage.input_tokens
            self.output_tokens += history.usage.output_tokens
            self.cached_tokens += history.usage.cached_tokens or 0


@dataclass(slots=True)
class _Client:
    waiting: int = 0
    oldest: float | None = None
    running: int = 0
    minute: _Minute = field(default_factory=_Minute)


class Overview:
    """Makes the value; see the module."""

    def __init__(
        self,
        control: ControlPlane,
        pools: Pools,
        clients: Clients,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._control = control
        self._pools = pools
        self._clients = clients
        self._clock = clock
        self._wall = wall
        self._made_at = float("-inf")
        self._last: dict[str, Any] = {}
        self._making = asyncio.Lock()

    async def read(self) -> dict[str, Any]:
        """`time`, `workers`, `clients`, `waiting` (the oldest), `decisions` (the newest), `open` and `queued`."""
        async with self._making:
            if self._clock() - self._made_at >= _FRESH_S:
                self._last = await self._make()
                self._made_at = self._clock()
            return self._last

    async def _make(self) -> dict[str, Any]:
        now = self._clock()
        workers, clients = await self._minute(now)
        await self._under_way(clients)
        waiting = sorted(
            (request for pool in self._pools.by_model.values() for request in pool.scheduler.waiting()),
            key=lambda request: request.arrived,
        )
        queue = [request.id for request in islice(waiting, _MOST_WAITING)]
        told = {history.id: history for history, _ in self._control.under_way()}
        return {
            "time": self._wall(),
            "open": len(self._control),
            "queued": len(waiting),
            "workers": await self._workers(workers),
            "clients": self._client_rows(clients, now),
            "waiting": [self._row(told[one], now) for one in queue if one in told],
            "decisions": [self._row(one, now) for one in islice(self._control.histories.latest(), _LAST)],
        }

    def _row(self, history: History, now: float) -> dict[str, Any]:
        last = history.attempts[-1] if history.attempts else None
        usage = history.usage
        return {
            **row(history, now, self._wall),
            "reason": last.place.reason.value if last is not None else None,
            "matched_tokens": last.place.matched_tokens if last is not None else None,
            "cached_tokens": usage.cached_tokens if usage is not None else None,
        }

    async def _minute(self, now: float) -> tuple[dict[str, _Minute], dict[str, _Client]]:
        workers: dict[str, _Minute] = {}
        clients: dict[str, _Client] = {}
        for number, history in enumerate(list(self._control.histories.latest())):
            if history.ended_at is None or now - history.ended_at > MINUTE_S:
                break
            if history.attempts:
                worker = history.attempts[-1].place.placement.ranked
                workers.setdefault(worker, _Minute()).add(history)
            clients.setdefault(history.client, _Client()).minute.add(history)
            if number % _PER_STEP == 0:
                await asyncio.sleep(0)
        return workers, clients

    async def _under_way(self, clients: dict[str, _Client]) -> None:
        for number, (history, _) in enumerate(list(self._control.under_way())):
            client = clients.setdefault(history.client, _Client())
            if history.placed:
                client.running += 1
            else:
                client.waiting += 1
                client.oldest = history.arrived if client.oldest is None else min(client.oldest, history.arrived)
            if number % _PER_STEP == 0:
                await asyncio.sleep(0)

    def _client_rows(self, clients: dict[str, _Client], now: float) -> list[dict[str, Any]]:
        """Those with the most waiting, then the most served; of very many clients the first ones."""
        total = sum(one.minute.tokens for one in clients.values())
        first = sorted(
            clients.items(),
            key=lambda item: (
                -item[1].waiting,
                -item[1].minute.tokens,
                item[0],
            ),
        )[:_MOST_CLIENTS]
        pools = list(self._pools.by_model.values())
        rows = []
        for name, client in first:
            tokens = client.minute.tokens
            deficits = [owed for pool in pools if (owed := pool.scheduler.deficit(name)) is not None]
            rows.append(
                {
                    "client": name,
                    "waiting": client.waiting,
                    "oldest_wait_s": None if client.oldest is None else round(now - client.oldest, 3),
                    "running": client.running,
                    "tokens_last_minute": tokens,
                    "share": tokens / total if total else None,
                    "requests_last_minute": client.minute.requests,
                    "deficit": round(sum(deficits), 1) if deficits else None,
                    "nearest_limit": self._nearest_limit(name, now),
                }
            )
        return rows

    def _nearest_limit(self, name: str, now: float) -> dict[str, Any] | None:
        limits = self._clients.limits(name)
        usage = self._clients.quota.usage(name, limits, now)
        return min(usage["limits"], key=lambda one: one["remaining"] / one["limit"], default=None)

    async def _workers(self, minutes: dict[str, _Minute]) -> list[dict[str, Any]]:
        loads: dict[str, WorkerView] = {}
        for pool in list(self._pools.by_model.values()):
            loads |= {view.id: view for view in pool.scheduler.snapshot().workers}
            await asyncio.sleep(0)
        rows = []
        for number, member in enumerate(list(self._pools.members.values())):
            worker = member.worker.id
            rows.append(_worker(member, loads.get(worker), minutes.get(worker) or _Minute()))
            if number % _PER_STEP == 0:
                await asyncio.sleep(0)
        return rows


def _worker(member: Member, load: WorkerView | None, minute: _Minute) -> dict[str, Any]:
    worker = member.worker
    kv_tokens = load.facts.kv_tokens if load is not None else None
    return {
        "worker": worker.id,
        "url": worker.spec.url,
        "state": worker.state.value,
        "why": worker.why or None,
        "model": worker.model,
        "roles": sorted(worker.spec.roles),
        "requests": member.open,
        "batch": load.sequences if load is not None else 0,
        "slots": load.facts.slots if load is not None else None,
        "prefill_owed_tokens": load.prefill_owed if load is not None else 0,
        "kv_reserved_tokens": load.kv_reserved if load is not None else 0,
        "kv_share": load.kv_reserved / kv_tokens if load is not None and kv_tokens else None,
        "hit_share": minute.cached_tokens / minute.input_tokens if minute.input_tokens else None,
        "tokens_per_s": round(minute.tokens / MINUTE_S, 1),
        "requests_last_minute": minute.requests,
    }
