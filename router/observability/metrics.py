"""What Prometheus sees: everything named `fairlead_*`; base models, workers and configured clients from 0 on.

What happens is counted here as it happens; what *is* (queues, room, worker states, trees) is read from its owner
when Prometheus asks, see `gauges`.

Invariants: there are series for what exists and for nothing else.
- Models are the served names of the fleet: base models at once, adapters from their first request on; requests for
  any other name count as the empty string.
- Workers come and go with the fleet.
- Clients are accounts, so the `user`s of an API key count as its client. The configured ones have a label each, of
  others the first `max_clients`; the rest counts as `other`.
- What has left takes its series along, and its last requests do not bring them back.
- Models and clients are never multiplied by each other.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from policies.model import AttemptFailure, Outcome, Usage
from router.observability.continuation_series import ContinuationSeries
from router.observability.exposition import Snapshot
from router.observability.loop_delay import LoopDelay
from router.observability.page import Page, sliced
from router.observability.series import ClientSeries, ModelSeries, WorkerSeries
from router.observability.transitions import Observed, Transitions
from router.port import Dispatch, RouteTable
from workers.bounds.bounded_map import BoundedMap
from workers.fleet.worker import FleetEvent, WorkerLeft

_ANONYMOUS = "anonymous"
_OTHER = "other"
_HEADS = 1000
"""Prefixes are compared by their first bytes, among this many requests."""
_REMOVED_CLIENTS = 10_000
"""Clients taken out of the configuration that are remembered, so that their last requests bring no series back."""
_ACCEPTED, _REFUSED = "accepted", "refused"
_PER_STEP = 8
"""Models, workers or clients that a scrape copies at a time: some 30 rows each."""


class Metrics:
    """The counters of one gateway, and the page that shows them.

    `clients` are the configured ones with their weights; `service_weights` is what a prompt token that had to be
    computed and an output token count as service.
    """

    metrics = (*ModelSeries.METRICS, *ClientSeries.METRICS, *WorkerSeries.METRICS)

    def __init__(
        self,
        version: str,
        *,
        max_clients: int = 100,
        clients: Mapping[str, float] | None = None,
        service_weights: tuple[float, float] = (1.0, 2.0),
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each series began: twice as many lines
        library = self._library = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=library)
        self.service_weights = service_weights
        self.max_clients = max_clients
        self._configured: dict[str, ClientSeries] = {}
        self._unconfigured: dict[str, ClientSeries] = {}
        self._shared = self._other = ClientSeries()
        """Of all that have no label of their own."""
        self._removed: BoundedMap[str, None] = BoundedMap(_REMOVED_CLIENTS)
        self._models: dict[str, ModelSeries] = {}
        self._served: frozenset[str] = frozenset()
        """Names that may have series."""
        self._table = RouteTable()
        self._workers: dict[str, WorkerSeries] = {}
        self._heads: deque[int] = deque(maxlen=_HEADS)
        self._transitions = Transitions()
        self.loop_delay = LoopDelay(library)
        self._reloads = Counter(
            "fairlead_config_reloads", "Configurations read while running", ["result"], registry=library
        )
        for result in (_ACCEPTED, _REFUSED):
            self._reloads.labels(result)
        self._reload_good = self._gauge("config_last_reload_successful", "0 if the last configuration was refused")
        self._reload_good.set(1)
        self._config_since = self._gauge("config_timestamp_seconds", "Since when this configuration is in force")
        self._config_since.set(time.time())
        self.open = self._gauge("open_requests", "Requests inside the gateway")
        self._held = self._gauge("held_bytes", "Bodies and unread answers of all requests, in bytes", "what")
        self._gauge("build_info", "Always 1", "version").labels(version).set(1)
        self.page = Page(library)
        self.continuations = ContinuationSeries()
        self.page.add(self)
        self.page.add(self.continuations)
        self._know_clients(clients or {})

    def held(self, what: str, read: Callable[[], float]) -> None:
        """Where to read how many bytes are held of this."""
        self._held.labels(what).set_function(read)

    @property
    def observed(self) -> Observed:
        """What the counters know that is shown as a state."""
        return Observed(self._label, self._labels, self._transitions, self._heads)

    # -- what there is

    def follow(self, event: FleetEvent) -> None:
        """A worker joined, changed or left: its series come and go with it."""
        if isinstance(event, WorkerLeft):
            self._workers.pop(event.id, None)
            self._transitions.forget(event.id)
        else:
            self._workers.setdefault(event.worker.id, WorkerSeries())
            self._transitions.saw(event.worker)

    def follow_routes(self, table: RouteTable) -> None:
        """Which names are served now: base models begin at 0, and what is served no more takes its series along.

        A name whose worker restarts keeps them: it is expected to be back.
        """
        if table is self._table:
            return
        self._table = table
        self._served = frozenset(route.served_name for route in table.names.values()) | table.expected
        for name in self._models.keys() - self._served:
            if name:
                del self._models[name]
        for name in table.models:
            self._model(name)

    def reconfigure(self, clients: Mapping[str, float], *, max_clients: int) -> None:
        """The configured clients are these now. New ones begin at 0; the series of those that are gone end.

        So do those of all others, whom the new keys may not know any more; with their next request they are back.
        """
        self.max_clients = max_clients
        if clients != {name: series.weight for name, series in self._configured.items()}:
            self._know_clients(clients)

    # -- what happens

    def attempt_failed(self, worker: str, reason: AttemptFailure) -> None:
        """An attempt on a worker, which may have left meanwhile, has failed."""
        known = self._workers.get(worker)
        if known is not None:
            known.failures[reason] += 1

    def config_read(self, *, accepted: bool) -> None:
        """The configuration was read again while running."""
        self._reloads.labels(_ACCEPTED if accepted else _REFUSED).inc()
        self._reload_good.set(accepted)
        if accepted:
            self._config_since.set(time.time())

    def finished(
        self,
        *,
        served_name: str,
        client: str,
        weight: float,
        outcome: Outcome,
        streamed: bool,
        dispatch: Dispatch | None,
        ttft_s: float | None,
        e2e_s: float,
        usage: Usage | None,
        prompt_head: int | None = None,
    ) -> None:
        """One request of a client's account has ended. None stands for what it never came to."""
        of_client = self._configured.get(client) or self._client(client)
        of_model = self._models.get(served_name) or self._model(served_name)
        of_client.outcomes[outcome] += 1
        of_model.outcomes[outcome] += 1
        of_model.e2e.observe(e2e_s)
        if of_client.weight is None and of_client is not self._other:
            of_client.weight = weight
        if outcome is Outcome.CANCELLED:
            of_model.cancelled += 1
        if dispatch is not None:
            of_client.queued.observe(dispatch.waited_s)
            self._was_placed(of_model, dispatch)
            if prompt_head is not None:
                self._heads.append(prompt_head)
        if usage is not None:
            self._used(of_model, of_client, usage, None if dispatch is None else dispatch.matched_tokens)
        if streamed and ttft_s is not None:
            of_model.ttft.observe(ttft_s)
            if usage is not None and usage.output_tokens > 1:
                of_model.tpot.observe((e2e_s - ttft_s) / (usage.output_tokens - 1))

    def read(self, into: Snapshot) -> Iterator[None]:
        """What was counted, a few models, clients and workers at a time."""
        for models in sliced(self._models.items(), _PER_STEP):
            for model, of_model in models:
                of_model.read(into, model)
            yield
        clients = {**self._configured, **self._unconfigured}
        if any(self._other.outcomes.values()):
            clients[_OTHER] = self._other
        for some in sliced(clients.items(), _PER_STEP):
            for client, of_client in some:
                of_client.read(into, client)
            yield
        for workers in sliced(self._workers.items(), _PER_STEP):
            for worker, of_worker in workers:
                of_worker.read(into, worker)
            yield

    def _was_placed(self, of_model: ModelSeries, dispatch: Dispatch) -> None:
        of_model.queued.observe(dispatch.waited_s)
        of_model.decisions[dispatch.reason] += 1
        of_model.predicted += dispatch.matched_tokens
        of_model.matched.observe(min(1.0, dispatch.matched_tokens / max(1, dispatch.input_tokens - 1)))
        worker = self._workers.get(dispatch.worker)
        if worker is not None:
            worker.placements += 1

    def _used(self, of_model: ModelSeries, of_client: ClientSeries, usage: Usage, predicted: int | None) -> None:
        extend_weight, output_weight = self.service_weights
        cached = usage.cached_tokens or 0
        for series in (of_model, of_client):
            series.input += usage.input_tokens
            series.output += usage.output_tokens
            series.cached += cached
        computed = max(0, usage.input_tokens - cached)
        of_client.service += extend_weight * computed + output_weight * usage.output_tokens
        if usage.cached_tokens is not None and predicted is not None:
            of_model.checked += usage.input_tokens
            if predicted > cached:
                of_model.overestimated += predicted - cached
            else:
                of_model.underestimated += cached - predicted

    # -- whose series

    def _know_clients(self, clients: Mapping[str, float]) -> None:
        """Make the configured clients these."""
        known = self._configured | self._unconfigured
        self._unconfigured = {}
        for name in self._configured.keys() - clients.keys():
            self._removed[name] = None
        for name in clients:
            self._removed.pop(name, None)
        self._configured = {name: known.get(name) or ClientSeries() for name in clients}
        for name, weight in clients.items():
            self._configured[name].weight = weight
        self._other = self._configured.get(_OTHER, self._shared)
        if not clients:
            self._client(_ANONYMOUS)

    def _label(self, client: str) -> str:
        """The label of a client's account."""
        return client if client in self._configured or self._client(client) is not self._other else _OTHER

    def _labels(self) -> list[str]:
        """Clients that have a label of their own."""
        return sorted((*self._configured, *self._unconfigured))

    def _client(self, client: str) -> ClientSeries:
        """The series of a client that is not configured."""
        found = self._unconfigured.get(client)
        if found is None:
            if len(self._unconfigured) >= self.max_clients or client == _OTHER or client in self._removed:
                return self._other
            found = self._unconfigured[client] = ClientSeries()
        return found

    def _model(self, name: str) -> ModelSeries:
        """The series of a served name; of the empty string for one that is served no more."""
        if name not in self._served:
            name = ""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelSeries()
        return found

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fairlead_{name}", text, labels, registry=self._library)
