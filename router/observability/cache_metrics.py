"""What Prometheus sees of the workers' caches: how they are known, and what was heard of them."""

from collections.abc import Iterator, Mapping

from policies.prefixes.trust import Trust
from router.control.pools import Pools
from router.observability.exposition import Metric, Snapshot, counter, gauge
from router.observability.page import sliced
from workers.fleet.fleet import Fleet

_WORKERS_PER_STEP = 16
_BATCHES = {
    "applied": "batches",
    "repeated": "repeated",
    "known_before": "known",
}
_TROUBLE = {"gap": "gaps", "lost": "lost", "garbled": "garbled", "unknown_event": "unknown"}
_BLOCKS = {
    "stored": "stored",
    "removed": "removed",
    "unknown_parent": "unknown_parent",
    "unknown_removed": "unknown_removed",
    "passed_over": "passed_over",
}
_INDEX = gauge("worker_prefix_index", "1 for how the worker's cache is known", "worker", "index")
_KV_BLOCKS = gauge("worker_kv_blocks", "Blocks in the worker's cache, as it reports them", "worker")
_EVENT_BATCHES = counter("kv_event_batches", "Batches of KV events", "worker", "kind")
_EVENT_BLOCKS = counter("kv_event_blocks", "Blocks in KV events by what became of them", "worker", "kind")
_EVENT_TROUBLE = counter("kv_event_trouble", "What was wrong with KV events", "worker", "kind")
_PREDICTIONS = counter(
    "cache_predictions",
    "Answers whose cached tokens were predicted to the token (right), or not (wrong)",
    *("model", "index", "result"),
)


class CacheMetrics:
    """Read from their owners when Prometheus asks; by worker, for as long as it is in the fleet."""

    metrics: tuple[Metric, ...] = (_INDEX, _KV_BLOCKS, _EVENT_BATCHES, _EVENT_BLOCKS, _EVENT_TROUBLE, _PREDICTIONS)

    def __init__(self, pools: Pools, fleet: Fleet) -> None:
        self._pools = pools
        self._fleet = fleet

    def read(self, into: Snapshot) -> Iterator[None]:
        """A few workers at a time."""
        for model, pool in self._pools.by_model.items():
            for (trust, right), count in pool.scheduler.prefixes.predictions.items():
                into.add(_PREDICTIONS, count, model, trust.value, "right" if right else "wrong")
        for workers in sliced(self._pools.members, _WORKERS_PER_STEP):
            yield
            for worker in workers:
                self._worker(into, worker)
        for counted in sliced(self._fleet.kv_counts().items(), _WORKERS_PER_STEP):
            yield
            for worker, counts in counted:
                if worker in self._pools.members:
                    _count(into, _EVENT_BATCHES, worker, counts, _BATCHES)
                    _count(into, _EVENT_TROUBLE, worker, counts, _TROUBLE)

    def _worker(self, into: Snapshot, worker: str) -> None:
        prefixes = self._pools.prefixes(worker)
        reports = None if prefixes is None else prefixes.reports
        trust = Trust.PREDICTED if reports is None else reports.trust(worker)
        for each in Trust:
            into.add(_INDEX, float(each is trust), worker, each.value)
        if reports is not None and (tally := reports.tally(worker)) is not None:
            into.add(_KV_BLOCKS, reports.blocks.held_blocks(worker), worker)
            _count(into, _EVENT_BLOCKS, worker, tally, _BLOCKS)


def _count(into: Snapshot, metric: Metric, worker: str, counts: object, names: Mapping[str, str]) -> None:
    for label, name in names.items():
        into.add(metric, getattr(counts, name), worker, label)
