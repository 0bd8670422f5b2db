"""What Prometheus sees of the workers' caches: how they are known, and what was heard of them."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.prefixes.trust import Trust
from router.control.pools import Pools
from workers.fleet.fleet import Fleet

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


class CacheMetrics(Collector):
    """Read from their owners when Prometheus asks; by worker, for as long as it is in the fleet."""

    def __init__(self, pools: Pools, fleet: Fleet) -> None:
        self._pools = pools
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        families = _families()
        for model, pool in self._pools.by_model.items():
            for (trust, right), count in pool.scheduler.prefixes.predictions.items():
                labels = [model, trust.value, "right" if right else "wrong"]
                families["cache_predictions"].add_metric(labels, count)
        for worker in self._pools.members:
            prefixes = self._pools.prefixes(worker)
            reports = None if prefixes is None else prefixes.reports
            trust = Trust.PREDICTED if reports is None else reports.trust(worker)
            for each in Trust:
                families["worker_prefix_index"].add_metric([worker, each.value], float(each is trust))
            if reports is not None and (tally := reports.tally(worker)) is not None:
                families["worker_kv_blocks"].add_metric([worker], reports.blocks.held_blocks(worker))
                _count(families["kv_event_blocks"], worker, tally, _BLOCKS)
        for worker, counts in self._fleet.kv_counts().items():
            _count(families["kv_event_batches"], worker, counts, _BATCHES)
            _count(families["kv_event_trouble"], worker, counts, _TROUBLE)
        yield from families.values()


def _count(family: Metric, worker: str, counts: object, names: Mapping[str, str]) -> None:
    for label, name in names.items():
        family.add_metric([worker, label], getattr(counts, name))  # type: ignore[attr-defined]


def _families() -> dict[str, CounterMetricFamily | GaugeMetricFamily]:
    return {
        **{
            name: GaugeMetricFamily(f"fairlead_{name}", text, labels=labels)
            for name, text, labels in (
                ("worker_prefix_index", "1 for how the worker's cache is known", ["worker", "index"]),
                ("worker_kv_blocks", "Blocks in the worker's cache, as it reports them", ["worker"]),
            )
        },
        **{
            name: CounterMetricFamily(f"fairlead_{name}", text, labels=labels)
            for name, text, labels in (
                ("kv_event_batches", "Batches of KV events", ["worker", "kind"]),
                ("kv_event_blocks", "Blocks in KV events by what became of them", ["worker", "kind"]),
                ("kv_event_trouble", "What was wrong with KV events", ["worker", "kind"]),
                (
                    "cache_predictions",
                    "Answers whose cached tokens had been foretold to the token, or not",
                    ["model", "index", "result"],
                ),
            )
        },
    }
