"""What is true now, read from its owner when Prometheus asks: it costs the hot path nothing and cannot drift.

Invariant: a worker has rows only while it is a member of the fleet, whatever schedulers and connections still have
of it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from policies.model import WorkerId
from router.control.dispatcher import Pool
from router.control.pools import Member, Pools
from router.observability.exposition import Metric, Snapshot, counter, gauge
from router.observability.page import sliced
from router.observability.transitions import Observed
from workers.fleet.worker import Exclusion, State

_HOTTEST = 5
_WORKERS_PER_STEP = 16
"""Workers that a scrape copies at a time: some 25 rows each."""
_STALLED = "stalled"
"""The one reason for an exclusion that the scheduler knows and the fleet does not: the worker owes a sign of life
for much longer than it should take."""
_ALL_MODELS = ""
"""The label `model` of a table that is not one model's."""

Connections = tuple[WorkerId, int, int]
"""A worker, and how many connections to it are idle and busy."""

_OPEN_STREAMS = gauge("open_streams", "Streamed requests inside the gateway")
_QUEUE_DEPTH = gauge("queue_depth", "Requests that wait for room", "model")
_ROUTABLE = gauge("routable_workers", "Workers that may be given requests", "model")
_POLICY_FAULTS = counter(
    "policy_faults", "Exceptions of policies; the least loaded worker took the request", "model"
)
_ENTRIES = gauge("entries", "Entries of what grows with traffic, all of it bounded", "model", "structure")
_TREE_NODES = gauge("prefix_tree_nodes", "Nodes of the prefix tree", "tree")
_TREE_BYTES = gauge("prefix_tree_bytes", "Bytes of prompt held by the prefix tree", "tree")
_TREE_EVICTED = counter(
    "prefix_tree_evicted_units", "Units dropped because a cache must have dropped them", "tree"
)
_HEATMAP_GAIN = gauge(
    "heatmap_gain",
    "What a prefill/decode pair gains for prompts of such a length and answers of such a share of it",
    *("model", "prompt_tokens", "answer_ratio"),
)
_HOT_PREFIX = gauge("hot_prefix_share", "Share of recent requests that begin alike, most common first", "rank")

_CLIENT_QUEUED = gauge("client_queued", "Requests that wait for room", "client")
_CLIENT_OLDEST = gauge("client_oldest_wait_seconds", "How long the longest waiting of them has waited", "client")
_CLIENT_DEFICIT = gauge("client_deficit", "Service that a client is owed, or owes (negative)", "model", "client")

_REQUESTS = gauge("worker_requests", "Requests in flight", "worker")
_SEQUENCES = gauge("worker_sequences", "Sequences in flight", "worker")
_PREFILL_OWED = gauge("worker_prefill_owed_tokens", "Prompt tokens sent and not computed yet", "worker")
_PREFILL_ROOM = gauge("worker_prefill_room_tokens", "Prompt tokens that may be sent now", "worker")
_SLOTS_FREE = gauge("worker_slots_free", "Sequences that may be started, where a bound is known", "worker")
_KV_RESERVED = gauge("worker_kv_reserved_tokens", "KV tokens of everything in flight", "worker")
_PREFIX_HELD = gauge("worker_prefix_held_tokens", "Prompt tokens expected in the worker's cache", "worker")
_STATE = gauge("worker_state", "1 for the state that the worker is in", "worker", "state")
_EXCLUDED = gauge(
    "worker_excluded", "1 for why it gets no requests, or only as the last resort", "worker", "reason"
)
_SCRAPE_STALE = gauge("worker_scrape_stale", "1 if the worker's own metrics are missing or old", "worker")
_SCRAPE_AGE = gauge("worker_scrape_age_seconds", "Age of the last reading of the worker's own metrics", "worker")
_WAITING = gauge("worker_waiting", "Requests waiting inside vLLM, by its own metrics while fresh", "worker")
_KV_USAGE = gauge("worker_kv_usage_ratio", "KV cache in use, by its own metrics while fresh", "worker")
_CONNECTIONS = gauge("worker_connections", "Connections to the worker", "worker", "state")

_WORKERS = gauge("workers", "Workers by state", "state")
_EPOCH = gauge("worker_epoch", "Lives of the worker's process that were noticed, less one", "server")
_TRANSITIONS = counter("worker_transitions", "How often a worker came into a state", "server", "state")


class Gauges:
    """Everything that the pools, their schedulers and the fleet can say of themselves.

    `tables`: sizes of what grows with traffic and is shared by all models, by name.
    """

    metrics: tuple[Metric, ...] = (
        *(_OPEN_STREAMS, _QUEUE_DEPTH, _ROUTABLE, _POLICY_FAULTS, _ENTRIES),
        *(_TREE_NODES, _TREE_BYTES, _TREE_EVICTED, _HEATMAP_GAIN, _HOT_PREFIX),
        *(_CLIENT_QUEUED, _CLIENT_OLDEST, _CLIENT_DEFICIT),
        *(_REQUESTS, _SEQUENCES, _PREFILL_OWED, _PREFILL_ROOM, _SLOTS_FREE, _KV_RESERVED, _PREFIX_HELD),
        *(_STATE, _EXCLUDED, _SCRAPE_STALE, _SCRAPE_AGE, _WAITING, _KV_USAGE, _CONNECTIONS),
        *(_WORKERS, _EPOCH, _TRANSITIONS),
    )

    def __init__(
        self,
        pools: Pools,
        connections: Callable[[], Iterable[Connections]],
        observed: Observed,
        tables: Mapping[str, Callable[[], int]],
    ) -> None:
        self._pools = pools
        self._connections = connections
        self._observed = observed
        self._tables = tables

    def read(self, into: Snapshot) -> Iterator[None]:
        """Step by step: each pool, its clients and workers; who waits; each worker; what outlives workers."""
        pools = list(self._pools.by_model.items())
        into.add(_OPEN_STREAMS, sum(pool.streams for _, pool in pools))
        for structure, size in self._tables.items():
            into.add(_ENTRIES, size(), _ALL_MODELS, structure)
        for model, pool in pools:
            yield
            self._pool(into, model, pool)
            yield from self._deficits(into, model, pool)
            yield from self._loads(into, pool)
        yield from self._waiting(into, [pool for _, pool in pools])
        for members in sliced(self._pools.members.values(), _WORKERS_PER_STEP):
            yield
            for member in members:
                _worker(into, member)
        yield
        for worker, idle, busy in self._connections():
            if worker in self._pools.members:
                into.add(_CONNECTIONS, idle, worker, "idle")
                into.add(_CONNECTIONS, busy, worker, "busy")
        yield
        self._servers(into)
        for rank, (_, count) in enumerate(Counter(self._observed.heads).most_common(_HOTTEST), 1):
            into.add(_HOT_PREFIX, count / len(self._observed.heads), str(rank))
        yield

    def _pool(self, into: Snapshot, model: str, pool: Pool) -> None:
        scheduler = pool.scheduler
        into.add(_QUEUE_DEPTH, scheduler.queued, model)
        into.add(_ROUTABLE, len(self._pools.usable(model)), model)
        into.add(_POLICY_FAULTS, scheduler.faults.count, model)
        for structure, size in scheduler.sizes().items():
            into.add(_ENTRIES, size, model, structure)
        for width, stats in scheduler.prefixes.stats().items():
            tree = f"{model}/{width}"
            into.add(_TREE_NODES, stats.nodes, tree)
            into.add(_TREE_BYTES, stats.bytes, tree)
            into.add(_TREE_EVICTED, stats.evicted, tree)
        measured = scheduler.heatmap.measured
        for tokens, gains in zip(measured.prefill_tokens, scheduler.heatmap.gains, strict=True):
            for ratio, gain in zip(measured.ratios, gains, strict=True):
                into.add(_HEATMAP_GAIN, gain, model, str(tokens), f"{ratio:g}")

    def _deficits(self, into: Snapshot, model: str, pool: Pool) -> Iterator[None]:
        for clients in sliced(self._observed.clients()):
            yield
            for client in clients:
                deficit = pool.scheduler.deficit(client)
                if deficit is not None:
                    into.add(_CLIENT_DEFICIT, deficit, model, client)

    def _loads(self, into: Snapshot, pool: Pool) -> Iterator[None]:
        """What the scheduler knows of its workers."""
        yield
        scheduler = pool.scheduler
        for rows in sliced(scheduler.snapshot().workers, _WORKERS_PER_STEP):
            yield
            for row in rows:
                worker = row.id
                if worker not in self._pools.members:
                    continue
                into.add(_REQUESTS, row.requests, worker)
                into.add(_SEQUENCES, row.sequences, worker)
                into.add(_PREFILL_OWED, row.prefill_owed, worker)
                into.add(_PREFILL_ROOM, max(0, row.room.prefill_free), worker)
                into.add(_KV_RESERVED, row.kv_reserved, worker)
                into.add(_PREFIX_HELD, scheduler.prefixes.held_tokens(worker), worker)
                into.add(_EXCLUDED, float(row.stalled), worker, _STALLED)
                if row.room.slots_free is not None:
                    into.add(_SLOTS_FREE, max(0, row.room.slots_free), worker)

    def _waiting(self, into: Snapshot, pools: list[Pool]) -> Iterator[None]:
        """Who waits, and for how long already: a histogram shows a wait only when it is over."""
        queued: Counter[str] = Counter()
        oldest: dict[str, float] = {}
        for pool in pools:
            yield
            now = pool.loop.time()
            for requests in sliced(pool.scheduler.waiting()):
                for request in requests:
                    label = self._observed.label(request.party[0] if request.party else request.client)
                    queued[label] += 1
                    oldest[label] = max(oldest.get(label, 0.0), now - request.arrived)
                yield
        for clients in sliced({*self._observed.clients(), *queued}):
            for client in clients:
                into.add(_CLIENT_QUEUED, queued[client], client)
                into.add(_CLIENT_OLDEST, oldest.get(client, 0.0), client)
            yield

    def _servers(self, into: Snapshot) -> None:
        """What outlives a restart, by URL; and how many workers are in which state."""
        members = self._pools.members.values()
        states = Counter(member.worker.state for member in members)
        for state in State:
            into.add(_WORKERS, states[state], state.value)
        epochs: dict[str, int] = {}
        for member in members:
            url = member.worker.spec.url
            epochs[url] = max(epochs.get(url, 0), member.worker.epoch)
        self._observed.transitions.keep(epochs)
        for url, epoch in epochs.items():
            into.add(_EPOCH, epoch, url)
            counts = self._observed.transitions.of(url)
            for state in State:
                into.add(_TRANSITIONS, counts[state], url, state.value)


def _worker(into: Snapshot, member: Member) -> None:
    """What the fleet knows of a worker."""
    worker, scrape = member.worker, member.worker.scrape
    for state in State:
        into.add(_STATE, float(worker.state is state), worker.id, state.value)
    for reason in Exclusion:
        into.add(_EXCLUDED, float(worker.excluded is reason), worker.id, reason.value)
    into.add(_SCRAPE_STALE, float(worker.stale), worker.id)
    if scrape is not None:
        if member.pool is not None:
            into.add(_SCRAPE_AGE, member.pool.loop.time() - scrape.at, worker.id)
        if not worker.stale:
            into.add(_WAITING, scrape.waiting, worker.id)
            into.add(_KV_USAGE, scrape.kv_usage, worker.id)
