"""What Prometheus sees: everything named `fairlead_*`, registered at the start, known label sets at 0.

What happens to requests is counted as it happens; what *is* (queues, room, worker states, trees) is read from its
owner when Prometheus asks, so it costs the hot path nothing and cannot drift.

Label values are bounded: model names are those of the fleet (any other counts as the empty string), workers come
and go with the fleet, clients beyond `max_clients` count as `other`.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from policies.model import LegFailure, Outcome, Reason, Usage
from router.pools import Member, Pools
from workers.worker import State

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DELAY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_OTHER = "other"


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self, version: str, *, max_clients: int = 100, clients: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody reads
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._max_clients = max_clients
        self._clients = {*clients}
        self._models: set[str] = set()
        self._cells: dict[tuple[str, str], _Cells] = {}
        self._requests = self._counter("requests", "Requests by how they ended", "model", "client", "outcome")
        self._tokens = self._counter("tokens", "Tokens as workers report them", "model", "client", "kind")
        self._decisions = self._counter("decisions", "Placements by reason", "model", "reason")
        self._failures = self._counter("leg_failures", "Attempts on a worker that failed", "worker", "reason")
        self._cancelled = self._counter("cancellations", "Requests whose client left", "model")
        self._predicted = self._counter("predicted_cached_tokens", "Prompt tokens expected in a cache", "model")
        self._ttft = self._histogram("time_to_first_token", "From arrival to the first token", _LATENCY, "model")
        self._tpot = self._histogram("time_per_output_token", "After the first one", _PER_TOKEN, "model")
        self._e2e = self._histogram("request_duration", "From arrival to the last byte", _LATENCY, "model")
        self._wait = self._histogram("queue_wait", "From arrival to the decision", _WAIT, "model")
        self.loop_delay = self._histogram("event_loop_delay", "How late the event loop runs a timer", _DELAY)
        self.open = Gauge("fairlead_open_requests", "Requests inside the gateway", registry=self.registry)
        info = Gauge("fairlead_build_info", "Always 1", ["version"], registry=self.registry)
        info.labels(version).set(1)

    def watch(self, pools: Pools, open_requests: Callable[[], int]) -> None:
        """Show the state of these pools, and initialise the label sets of whatever joins them."""
        self.open.set_function(open_requests)
        self.registry.register(_State(pools))

    def know_model(self, model: str) -> None:
        """Start every series of a model at 0."""
        if model not in self._models:
            self._models.add(model)
            for client in sorted(self._clients) or ["anonymous"]:
                self._cell(model, client)
            for reason in Reason:
                self._decisions.labels(model, reason.value)

    def know_worker(self, worker: str) -> None:
        for reason in LegFailure:
            self._failures.labels(worker, reason.value)

    def forget_worker(self, worker: str) -> None:
        """Drop the series of a worker that has left: it will not come back under this name."""
        for reason in LegFailure:
            self._failures.remove(worker, reason.value)

    def leg_failed(self, worker: str, reason: LegFailure) -> None:
        self._failures.labels(worker, reason.value).inc()

    def finished(
        self,
        *,
        line: str,
        client: str,
        outcome: Outcome,
        streamed: bool,
        waited_s: float | None,
        ttft_s: float | None,
        e2e_s: float,
        usage: Usage | None,
        predicted_cached: int | None,
        reason: Reason | None,
    ) -> None:
        """One request has ended. None stands for what it never came to."""
        cell = self._cell(line, client)
        cell.outcomes[outcome].inc()
        cell.e2e.observe(e2e_s)
        if outcome is Outcome.CANCELLED:
            cell.cancelled.inc()
        if waited_s is not None:
            cell.wait.observe(waited_s)
        if reason is not None:
            self._decisions.labels(line, reason.value).inc()
        if predicted_cached:
            cell.predicted.inc(predicted_cached)
        if usage is not None:
            cell.input.inc(usage.input_tokens)
            cell.output.inc(usage.output_tokens)
            cell.cached.inc(usage.cached_tokens or 0)
        if streamed and ttft_s is not None:
            cell.ttft.observe(ttft_s)
            if usage is not None and usage.output_tokens > 1:
                cell.tpot.observe((e2e_s - ttft_s) / (usage.output_tokens - 1))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _cell(self, line: str, client: str) -> "_Cells":
        cell = self._cells.get((line, client))
        if cell is None:
            label = self._client_label(client)
            cell = _Cells(self, line, label)
            if label == client:  # the others share one, and are not remembered
                self._cells[line, client] = cell
        return cell

    def _client_label(self, client: str) -> str:
        if client in self._clients:
            return client
        if len(self._clients) >= self._max_clients:
            return _OTHER
        self._clients.add(client)
        return client

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fairlead_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"fairlead_{name}_seconds", text, labels, buckets=buckets, registry=self.registry)


class _Cells:
    """The children of one model and client, looked up once: labels() costs more than the counting."""

    __slots__ = (
        "cached",
        "cancelled",
        "e2e",
        "input",
        "outcomes",
        "output",
        "predicted",
        "tpot",
        "ttft",
        "wait",
    )

    def __init__(self, metrics: Metrics, line: str, client: str) -> None:
        self.outcomes = {o: metrics._requests.labels(line, client, o.value) for o in Outcome}  # noqa: SLF001
        tokens = metrics._tokens  # noqa: SLF001 - the two classes are one thing
        self.input = tokens.labels(line, client, "input")
        self.output = tokens.labels(line, client, "output")
        self.cached = tokens.labels(line, client, "cached")
        self.cancelled = metrics._cancelled.labels(line)  # noqa: SLF001
        self.predicted = metrics._predicted.labels(line)  # noqa: SLF001
        self.ttft = metrics._ttft.labels(line)  # noqa: SLF001
        self.tpot = metrics._tpot.labels(line)  # noqa: SLF001
        self.e2e = metrics._e2e.labels(line)  # noqa: SLF001
        self.wait = metrics._wait.labels(line)  # noqa: SLF001


class _State(Collector):
    """What is true now, read when asked."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def describe(self) -> Iterable[Metric]:
        return [*self._gauges().values(), *self._totals().values()]

    def collect(self) -> Iterator[Metric]:
        gauges, totals = self._gauges(), self._totals()
        for model, pool in self._pools.by_model.items():
            snapshot = pool.scheduler.snapshot()
            gauges["queue_depth"].add_metric([model], snapshot.queued)
            totals["policy_faults"].add_metric([model], pool.scheduler.faults.count)
            for row in snapshot.workers:
                gauges["worker_requests"].add_metric([row.id], row.requests)
                gauges["worker_prefill_owed_tokens"].add_metric([row.id], row.prefill_owed)
                gauges["worker_prefill_room_tokens"].add_metric([row.id], max(0, row.room.prefill_free))
                gauges["worker_kv_reserved_tokens"].add_metric([row.id], row.kv_reserved)
                if row.room.slots_free is not None:
                    gauges["worker_slots_free"].add_metric([row.id], max(0, row.room.slots_free))
            for line, stats in pool.scheduler.prefixes.stats().items():
                gauges["prefix_tree_nodes"].add_metric([line], stats.nodes)
                gauges["prefix_tree_bytes"].add_metric([line], stats.bytes)
                totals["prefix_tree_evicted_units"].add_metric([line], stats.evicted)
        for member in self._pools.members.values():
            _worker(member, gauges)
        yield from gauges.values()
        yield from totals.values()

    def _gauges(self) -> dict[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(f"fairlead_{name}", text, labels=labels)
            for name, text, labels in (
                ("queue_depth", "Requests that wait for room", ["model"]),
                ("worker_requests", "Requests in flight", ["worker"]),
                ("worker_prefill_owed_tokens", "Prompt tokens sent and not computed yet", ["worker"]),
                ("worker_prefill_room_tokens", "Prompt tokens that may be sent now", ["worker"]),
                ("worker_slots_free", "Sequences that may be started, where a bound is known", ["worker"]),
                ("worker_kv_reserved_tokens", "KV tokens of everything in flight", ["worker"]),
                ("worker_state", "1 for the state that the worker is in", ["worker", "state"]),
                ("worker_scrape_stale", "1 if the worker's own metrics are missing or old", ["worker"]),
                ("worker_waiting", "Requests waiting inside vLLM, by its own metrics", ["worker"]),
                ("worker_kv_usage_ratio", "KV cache in use, by its own metrics", ["worker"]),
                ("worker_connections", "Connections to the worker", ["worker", "state"]),
                ("prefix_tree_nodes", "Nodes of the prefix tree", ["tree"]),
                ("prefix_tree_bytes", "Bytes of prompt held by the prefix tree", ["tree"]),
            )
        }

    def _totals(self) -> dict[str, CounterMetricFamily]:
        return {
            name: CounterMetricFamily(f"fairlead_{name}", text, labels=labels)
            for name, text, labels in (
                (
                    "prefix_tree_evicted_units",
                    "Units dropped because a worker's cache must have dropped them",
                    ["tree"],
                ),
                ("policy_faults", "Exceptions of policies; the least loaded worker took the request", ["model"]),
            )
        }


def _worker(member: Member, gauges: dict[str, GaugeMetricFamily]) -> None:
    worker, scrape = member.worker, member.worker.scrape
    for state in State:
        gauges["worker_state"].add_metric([worker.id, state.value], float(worker.state is state))
    gauges["worker_scrape_stale"].add_metric([worker.id], float(worker.stale))
    if scrape is not None:
        gauges["worker_waiting"].add_metric([worker.id], scrape.waiting)
        gauges["worker_kv_usage_ratio"].add_metric([worker.id], scrape.kv_usage)
    upstream = member.upstream
    gauges["worker_connections"].add_metric([worker.id, "idle"], upstream.idle)
    gauges["worker_connections"].add_metric([worker.id, "busy"], upstream.open - upstream.idle)
