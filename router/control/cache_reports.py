"""What workers report of their KV caches, handed to the prefix index of their pool.

The fleet listens and calls in, in slices that a stream does not notice; here a report finds its pool, and what
cannot be true is said once: traffic goes on with predictions, as for a worker that reports nothing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policies.model import WorkerId
from policies.prefixes.index import Prefixes
from policies.prefixes.trust import Trust
from workers.fleet.worker import FleetEvent, WorkerLeft
from workers.kv_events.decode import AllBlocksCleared, BlocksRemoved, BlocksStored, KvEvent

_log = logging.getLogger("fairlead.kv_events")

_SAYING = {
    Trust.EXACT: "its cache is known exactly, from its reports",
    Trust.PARTIAL: "its cache is known in part: reports and predictions together, until it has been emptied",
    Trust.PREDICTED: "its cache is predicted",
}


@dataclass(slots=True)
class _Waiting:
    """What a worker said that has no pool."""

    missed: bool = False
    """Some of its reports found no prefix index."""
    behind: bool = True


class CacheReports:
    """The fleet's `KvListener`. `find`: the index of a worker's pool, None as long as it is in none."""

    def __init__(self, find: Callable[[WorkerId], Prefixes | None]) -> None:
        self._find = find
        self._waiting: dict[WorkerId, _Waiting] = {}
        """Who reports and has no pool yet."""
        self._said: dict[WorkerId, Trust] = {}
        self._refused: set[WorkerId] = set()

    # -- the fleet's listener

    def on_following(self, worker_id: str) -> None:
        """It reports from now on, from the beginning of its cache unless `on_lost` follows at once."""
        self._waiting[worker_id] = _Waiting()
        self._begin(worker_id)

    def on_caught_up(self, worker_id: str) -> None:
        """Its reports are no longer of the past."""
        prefixes = self._begin(worker_id)
        if prefixes is not None:
            prefixes.reports.caught_up(worker_id)
            self._say(worker_id, prefixes)
        elif (waiting := self._waiting.get(worker_id)) is not None:
            waiting.behind = False

    def on_batch(self, worker_id: str, events: Sequence[KvEvent]) -> None:
        prefixes = self._begin(worker_id)
        if prefixes is None:
            self._missed(worker_id)
            return
        try:
            for event in events:
                _apply(prefixes, worker_id, event)
        except ValueError as error:
            self._refuse(worker_id, error)
            prefixes.reports.lost(worker_id)
        self._say(worker_id, prefixes)

    def on_lost(self, worker_id: str, why: str) -> None:  # noqa: ARG002 - the caller has said why
        prefixes = self._begin(worker_id)
        if prefixes is None:
            self._missed(worker_id, behind=True)
        else:
            prefixes.reports.lost(worker_id, replaying=True)
            self._say(worker_id, prefixes)

    # -- the fleet

    def follow(self, event: FleetEvent) -> None:
        """A worker joined, changed or left; after its pool has heard of it."""
        if isinstance(event, WorkerLeft):
            self._waiting.pop(event.id, None)
            self._said.pop(event.id, None)
            self._refused.discard(event.id)
            return
        prefixes = self._begin(event.worker.id)
        if prefixes is not None:
            self._say(event.worker.id, prefixes)

    # -- inside

    def _begin(self, worker: WorkerId) -> Prefixes | None:
        """The index that its reports go to, which learns now that there will be some."""
        prefixes = self._find(worker)
        if prefixes is not None and worker in self._waiting:
            waiting = self._waiting.pop(worker)
            prefixes.reports.start(worker)
            if waiting.missed:
                prefixes.reports.lost(worker)
            if not waiting.behind:
                prefixes.reports.caught_up(worker)
            self._say(worker, prefixes)
        return prefixes

    def _missed(self, worker: WorkerId, *, behind: bool = False) -> None:
        waiting = self._waiting.setdefault(worker, _Waiting(behind=False))
        waiting.missed = True
        waiting.behind |= behind

    def _refuse(self, worker: WorkerId, error: ValueError) -> None:
        if worker not in self._refused:
            self._refused.add(worker)
            _log.warning("KV events of %s: one of them cannot be true: %s", worker, error)

    def _say(self, worker: WorkerId, prefixes: Prefixes) -> None:
        """Say what is known of a cache, once for each time it changes."""
        index = prefixes.reports.trust(worker)
        if prefixes.reports.replaying(worker) or index is self._said.get(worker, Trust.PREDICTED):
            return
        self._said[worker] = index
        doubt = prefixes.reports.distrust_reason(worker)
        if doubt is None:
            _log.info("worker %s: %s", worker, _SAYING[index])
        else:
            _log.warning("worker %s: its KV events are not believed: %s; %s", worker, doubt, _SAYING[index])


def _apply(prefixes: Prefixes, worker: WorkerId, event: KvEvent) -> None:
    if isinstance(event, BlocksStored):
        prefixes.stored(worker, event)
    elif isinstance(event, BlocksRemoved):
        prefixes.removed(worker, event)
    elif isinstance(event, AllBlocksCleared):
        prefixes.cleared(worker)
