"""Which workers' KV events are followed, and where from."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import zmq

from workers.kv_events.sources import KvSource
from workers.kv_events.subscription import KvCounts, KvEventsSettings, KvListener, Subscription
from workers.kv_events.work_slices import WorkSlices


class Subscriptions:
    """The subscriptions by worker id, on the running event loop; to be closed."""

    def __init__(self, listener: KvListener, settings: KvEventsSettings) -> None:
        self._listener = listener
        self._settings = settings
        self._slices = WorkSlices(settings.slice_blocks)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._subscriptions: dict[str, tuple[Subscription, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def follow(self, worker_id: str, source: KvSource) -> None:
        """Subscribe to a worker, or go on where it is followed from there already."""
        known = self._subscriptions.get(worker_id)
        if known is not None:
            if known[0].source == source:
                return
            self.stop(worker_id, "its events are published elsewhere now")
        if self._context is None:
            self._context = zmq.Context()  # a thread of its own, so only where something is published
        subscription = Subscription(
            worker_id, source, self._listener, self._settings, context=self._context, slices=self._slices
        )
        task = asyncio.create_task(subscription.run(), name=f"kv events {worker_id}")
        self._subscriptions[worker_id] = (subscription, task)

    def stop(self, worker_id: str, why: str) -> None:
        """End the subscription of a worker that stays; what it has reported is void."""
        if worker_id in self._subscriptions:
            self.leave(worker_id)
            self._listener.on_lost(worker_id, why)

    def leave(self, worker_id: str) -> None:
        """End a subscription, if there is one: the listener is not called for this worker any more."""
        found = self._subscriptions.pop(worker_id, None)
        if found is not None:
            task = found[1]
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def counts(self) -> Mapping[str, KvCounts]:
        """Totals by worker id, of those who are followed."""
        return {worker_id: replace(found.counts) for worker_id, (found, _) in self._subscriptions.items()}

    async def aclose(self) -> None:
        for worker_id in list(self._subscriptions):
            self.leave(worker_id)
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._context is not None:
            self._context.term()
            self._context = None
