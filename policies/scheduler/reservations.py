"""Workers kept free for requests that have waited too long and fit on none.

A large request can be overtaken forever by small ones that fit into room too small for it. Once it is overdue,
one worker takes nothing else until the request starts there. Only one, and only an eighth of the fleet in all:
a request that needs an empty worker must not empty the fleet.

Invariants: a request holds at most one worker and a worker is held for at most one request; with no request
waiting nothing is reserved.
"""

from collections.abc import Sequence

from policies.model import RequestView, WorkerId, WorkerView

_SHARE = 8
"""One worker in this many may be reserved, at least one."""


class Reservations:
    """Which worker is kept free for which request."""

    def __init__(self) -> None:
        self._requests: dict[WorkerId, str] = {}
        self._workers: dict[str, WorkerId] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def of(self, request: RequestView) -> WorkerId | None:
        """The worker that is kept free for the request."""
        return self._workers.get(request.id)

    def blocked(self, request: RequestView) -> frozenset[WorkerId]:
        """Workers that are kept free for other requests."""
        if not self._requests:
            return frozenset()
        own = self._workers.get(request.id)
        return frozenset(worker for worker in self._requests if worker != own)

    def reserve(self, request: RequestView, workers: Sequence[WorkerView], fleet_size: int) -> None:
        """Keep one of `workers` free for the request: the one that needs the least to end before it is empty.

        Nothing if one of them is reserved for it already, or if as many are reserved as may be.
        """
        known = self._workers.get(request.id)
        if known is not None:
            if any(worker.id == known for worker in workers):
                return
            self.release(request)  # that one may not serve it any longer
        if len(self._workers) >= max(1, fleet_size // _SHARE):
            return
        free = [worker for worker in workers if worker.id not in self._requests]
        if free:
            chosen = min(free, key=lambda worker: (worker.sequences, worker.kv_reserved, worker.prefill_owed))
            self._requests[chosen.id] = request.id
            self._workers[request.id] = chosen.id

    def release(self, request: RequestView) -> None:
        """The request has left the queue; nothing if no worker was reserved for it."""
        worker = self._workers.pop(request.id, None)
        if worker is not None:
            del self._requests[worker]

    def remove_worker(self, worker: WorkerId) -> None:
        """The worker serves no longer; its request may reserve another one."""
        request = self._requests.pop(worker, None)
        if request is not None:
            del self._workers[request]
