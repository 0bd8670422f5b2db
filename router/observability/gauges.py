"""What is true now, read from its owner when Prometheus asks: it costs the hot path nothing and cannot drift."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.model import WorkerId
from router.control.dispatcher import Pool
from router.control.pools import Member, Pools
from router.observability.transitions import Observed
from workers.fleet.worker import Exclusion, State

_HOTTEST = 5
_STALLED = "stalled"
"""The one reason for an exclusion that the scheduler knows and the fleet does not: the worker owes a sign of life
for much longer than it should take."""
Connections = tuple[WorkerId, int, int]
"""A worker, and how many connections to it are idle and busy."""


class Gauges(Collector):
    """Everything that the pools, their schedulers and the fleet can say of themselves."""

    def __init__(self, pools: Pools, connections: Callable[[], Iterable[Connections]], observed: Observed) -> None:
        self._pools = pools
        self._connections = connections
        self._observed = observed

    def describe(self) -> Iterable[Metric]:
        return [*_gauges().values(), *_totals().values()]

    def collect(self) -> Iterator[Metric]:
        gauges, totals = _gauges(), _totals()
        streams = 0
        for model, pool in self._pools.by_model.items():
            streams += pool.streams
            self._pool(model, pool, gauges, totals)
        gauges["open_streams"].add_metric([], streams)
        self._clients(gauges)
        members = list(self._pools.members.values())
        for member in members:
            _worker(member, gauges)
        for worker, idle, busy in self._connections():
            gauges["worker_connections"].add_metric([worker, "idle"], idle)
            gauges["worker_connections"].add_metric([worker, "busy"], busy)
        self._servers(members, gauges, totals)
        for rank, (_, count) in enumerate(Counter(self._observed.heads).most_common(_HOTTEST), 1):
            gauges["hot_prefix_share"].add_metric([str(rank)], count / len(self._observed.heads))
        yield from gauges.values()
        yield from totals.values()

    def _pool(
        self,
        model: str,
        pool: Pool,
        gauges: dict[str, GaugeMetricFamily],
        totals: dict[str, CounterMetricFamily],
    ) -> None:
        scheduler = pool.scheduler
        snapshot = scheduler.snapshot()
        gauges["queue_depth"].add_metric([model], snapshot.queued)
        gauges["routable_workers"].add_metric([model], len(self._pools.usable(model)))
        totals["policy_faults"].add_metric([model], scheduler.faults.count)
        for row in snapshot.workers:
            worker = [row.id]
            gauges["worker_requests"].add_metric(worker, row.requests)
            gauges["worker_sequences"].add_metric(worker, row.sequences)
            gauges["worker_prefill_owed_tokens"].add_metric(worker, row.prefill_owed)
            gauges["worker_prefill_room_tokens"].add_metric(worker, max(0, row.room.prefill_free))
            gauges["worker_kv_reserved_tokens"].add_metric(worker, row.kv_reserved)
            gauges["worker_prefix_held_tokens"].add_metric(worker, scheduler.prefixes.held_tokens(row.id))
            if row.id in self._pools.members:
                gauges["worker_excluded"].add_metric([row.id, _STALLED], float(row.stalled))
            if row.room.slots_free is not None:
                gauges["worker_slots_free"].add_metric(worker, max(0, row.room.slots_free))
        for width, stats in scheduler.prefixes.stats().items():
            tree = [f"{model}/{width}"]
            gauges["prefix_tree_nodes"].add_metric(tree, stats.nodes)
            gauges["prefix_tree_bytes"].add_metric(tree, stats.bytes)
            totals["prefix_tree_evicted_units"].add_metric(tree, stats.evicted)
        entries = {**scheduler.prefixes.sizes(), "answer_lengths": len(scheduler.lengths)}
        for structure, count in entries.items():
            gauges["entries"].add_metric([model, structure], count)
        measured = scheduler.heatmap.measured
        for tokens, gains in zip(measured.prefill_tokens, scheduler.heatmap.gains, strict=True):
            for ratio, gain in zip(measured.ratios, gains, strict=True):
                gauges["heatmap_gain"].add_metric([model, str(tokens), f"{ratio:g}"], gain)
        for client in sorted(self._observed.clients):
            deficit = scheduler.deficit(client)
            if deficit is not None:
                gauges["client_deficit"].add_metric([model, client], deficit)

    def _clients(self, gauges: dict[str, GaugeMetricFamily]) -> None:
        """Who waits, and for how long already: a histogram shows a wait only when it is over."""
        queued: Counter[str] = Counter()
        oldest: dict[str, float] = {}
        for pool in self._pools.by_model.values():
            now = pool.loop.time()
            for request in pool.scheduler.waiting():
                label = self._observed.label(request.client)
                queued[label] += 1
                oldest[label] = max(oldest.get(label, 0.0), now - request.arrived)
        for client in sorted({*self._observed.clients, *queued}):
            gauges["client_queued"].add_metric([client], queued[client])
            gauges["client_oldest_wait_seconds"].add_metric([client], oldest.get(client, 0.0))

    def _servers(
        self,
        members: list[Member],
        gauges: dict[str, GaugeMetricFamily],
        totals: dict[str, CounterMetricFamily],
    ) -> None:
        """What outlives a restart, by URL; and how many workers are in which state."""
        states = Counter(member.worker.state for member in members)
        for state in State:
            gauges["workers"].add_metric([state.value], states[state])
        epochs: dict[str, int] = {}
        for member in members:
            url = member.worker.spec.url
            epochs[url] = max(epochs.get(url, 0), member.worker.epoch)
        self._observed.transitions.keep(epochs)
        for url, epoch in epochs.items():
            gauges["worker_epoch"].add_metric([url], epoch)
            counts = self._observed.transitions.of(url)
            for state in State:
                totals["worker_transitions"].add_metric([url, state.value], counts[state])


def _gauges() -> dict[str, GaugeMetricFamily]:
    return {
        name: GaugeMetricFamily(f"fairlead_{name}", text, labels=labels)
        for name, text, labels in (
            ("open_streams", "Streamed requests inside the gateway", []),
            ("queue_depth", "Requests that wait for room", ["model"]),
            ("routable_workers", "Workers that may be given requests", ["model"]),
            ("workers", "Workers by state", ["state"]),
            ("client_queued", "Requests that wait for room", ["client"]),
            ("client_oldest_wait_seconds", "How long the longest waiting of them has waited", ["client"]),
            ("client_deficit", "Service that a client is owed, or owes (negative)", ["model", "client"]),
            ("hot_prefix_share", "Share of recent requests that begin alike, most common first", ["rank"]),
            ("worker_requests", "Requests in flight", ["worker"]),
            ("worker_sequences", "Sequences in flight", ["worker"]),
            ("worker_prefill_owed_tokens", "Prompt tokens sent and not computed yet", ["worker"]),
            ("worker_prefill_room_tokens", "Prompt tokens that may be sent now", ["worker"]),
            ("worker_slots_free", "Sequences that may be started, where a bound is known", ["worker"]),
            ("worker_kv_reserved_tokens", "KV tokens of everything in flight", ["worker"]),
            ("worker_prefix_held_tokens", "Prompt tokens expected in the worker's cache", ["worker"]),
            ("worker_state", "1 for the state that the worker is in", ["worker", "state"]),
            ("worker_excluded", "1 for why it gets no requests, or only as the last resort", ["worker", "reason"]),
            ("worker_epoch", "Lives of the worker's process that were noticed, less one", ["server"]),
            ("worker_scrape_stale", "1 if the worker's own metrics are missing or old", ["worker"]),
            ("worker_scrape_age_seconds", "Age of the last reading of the worker's own metrics", ["worker"]),
            ("worker_waiting", "Requests waiting inside vLLM, by its own metrics while fresh", ["worker"]),
            ("worker_kv_usage_ratio", "KV cache in use, by its own metrics while fresh", ["worker"]),
            ("worker_connections", "Connections to the worker", ["worker", "state"]),
            (
                "heatmap_gain",
                "What a prefill/decode pair gains for prompts of such a length and answers of such a share of it",
                ["model", "prompt_tokens", "answer_ratio"],
            ),
            ("entries", "Entries of what grows with traffic, all of it bounded", ["model", "structure"]),
            ("prefix_tree_nodes", "Nodes of the prefix tree", ["tree"]),
            ("prefix_tree_bytes", "Bytes of prompt held by the prefix tree", ["tree"]),
        )
    }


def _totals() -> dict[str, CounterMetricFamily]:
    return {
        name: CounterMetricFamily(f"fairlead_{name}", text, labels=labels)
        for name, text, labels in (
            ("prefix_tree_evicted_units", "Units dropped because a cache must have dropped them", ["tree"]),
            ("policy_faults", "Exceptions of policies; the least loaded worker took the request", ["model"]),
            ("worker_transitions", "How often a worker came into a state", ["server", "state"]),
        )
    }


def _worker(member: Member, gauges: dict[str, GaugeMetricFamily]) -> None:
    worker, scrape = member.worker, member.worker.scrape
    for state in State:
        gauges["worker_state"].add_metric([worker.id, state.value], float(worker.state is state))
    for reason in Exclusion:
        gauges["worker_excluded"].add_metric([worker.id, reason.value], float(reason is worker.excluded))
    gauges["worker_scrape_stale"].add_metric([worker.id], float(worker.stale))
    if scrape is not None:
        if member.pool is not None:
            gauges["worker_scrape_age_seconds"].add_metric([worker.id], member.pool.loop.time() - scrape.at)
        if not worker.stale:
            gauges["worker_waiting"].add_metric([worker.id], scrape.waiting)
            gauges["worker_kv_usage_ratio"].add_metric([worker.id], scrape.kv_usage)
