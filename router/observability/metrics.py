"""What Prometheus sees: everything named `fairlead_*`, registered at the start, known label sets at 0.

What happens is counted here as it happens; what *is* (queues, room, worker states, trees) is read from its owner
when Prometheus asks, see `gauges`.

Label values are bounded: model names are those of the fleet (any other counts as the empty string), workers come
and go with the fleet, clients beyond `max_clients` count as `other`.
"""

import time
from collections import deque
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from policies.model import AttemptFailure, Outcome, Reason, Usage
from router.observability.counters import Spreads, Total, Totals
from router.observability.loop_delay import LoopDelay
from router.observability.transitions import Observed, Transitions
from router.port import Dispatch
from workers.fleet.worker import FleetEvent, WorkerLeft

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CLIENT_WAIT = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Coarser, as there are many clients."""
_SHARE = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_OTHER = "other"
_HEADS = 1000
"""Prefixes are compared by their first bytes, among so many requests."""
_ACCEPTED, _REFUSED = "accepted", "refused"


class Metrics:
    """The counters of one gateway, in a registry of their own.

    `clients` are the configured ones with their weights; `service_weights` is what a prompt token that had to be
    computed and an output token count as service.
    """

    def __init__(
        self,
        version: str,
        *,
        max_clients: int = 100,
        clients: Mapping[str, float] | None = None,
        service_weights: tuple[float, float] = (1.0, 2.0),
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody reads
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.service_weights = service_weights
        self._max_clients = max_clients
        self._clients: set[str] = set()
        self._weights: dict[str, float] = {}
        self._models: set[str] = set()
        self._workers: dict[str, Total] = {}
        self._cells: dict[tuple[str, str], _Cells] = {}
        self._heads: deque[int] = deque(maxlen=_HEADS)
        self._transitions = Transitions()
        self._requests = self._counter("requests", "Requests by how they ended", "model", "client", "outcome")
        self._tokens = self._counter("tokens", "Tokens as workers report them", "model", "client", "kind")
        self._service = self._counter(
            "client_service", "Work caused: weighted computed and output tokens", "client"
        )
        self._weight = self._gauge("client_weight", "Share of the fleet relative to other clients", "client")
        self._decisions = self._counter("decisions", "Placements by reason", "model", "reason")
        self._placed = self._counter(
            "worker_placements", "Requests by the last worker they were given to", "worker"
        )
        self._failures = self._counter("attempt_failures", "Attempts on a worker that failed", "worker", "reason")
        self._cancelled = self._counter("cancellations", "Requests whose client left", "model")
        self._predicted = self._counter("predicted_cached_tokens", "Prompt tokens expected in a cache", "model")
        self._checked = self._counter(
            "checked_prompt_tokens", "Prompt tokens of which the worker said whether they were cached", "model"
        )
        self._wrong = self._counter(
            "mispredicted_cached_tokens", "Of these, those expected otherwise", "model", "direction"
        )
        self._share = self._histogram("matched_share", "Share of the prompt expected in a cache", _SHARE, "model")
        self._ttft = self._seconds("time_to_first_token", "From arrival to the first token", _LATENCY, "model")
        self._tpot = self._seconds("time_per_output_token", "After the first one", _PER_TOKEN, "model")
        self._e2e = self._seconds("request_duration", "From arrival to the last byte", _LATENCY, "model")
        self._wait = self._seconds("queue_wait", "From arrival to the decision", _WAIT, "model")
        self._client_wait = self._seconds("client_queue_wait", "The same by client", _CLIENT_WAIT, "client")
        self.loop_delay = LoopDelay(self.registry)
        self._reloads = self._counter("config_reloads", "Configurations read while running", "result")
        self._reload_good = self._gauge("config_last_reload_successful", "0 if the last configuration was refused")
        self._config_since = self._gauge("config_timestamp_seconds", "Since when this configuration is in force")
        self.open = self._gauge("open_requests", "Requests inside the gateway")
        self._gauge("build_info", "Always 1", "version").labels(version).set(1)
        self._start(clients or {})

    @property
    def observed(self) -> Observed:
        """What the counters know that is shown as a state."""
        return Observed(self._client_label, self._clients, self._transitions, self._heads)

    def follow(self, event: FleetEvent) -> None:
        """A worker joined, changed or left: its series come and go with it."""
        if isinstance(event, WorkerLeft):
            self.forget_worker(event.id)
            return
        self.know_worker(event.worker.id)
        for line in event.worker.served_names:
            self.know_model(line)
        self._transitions.saw(event.worker)

    def know_model(self, model: str) -> None:
        """Start every series of a model at 0."""
        if model not in self._models:
            self._models.add(model)
            for client in sorted(self._clients) or ["anonymous"]:
                self._cell(model, client)

    def know_worker(self, worker: str) -> None:
        self._workers[worker] = self._placed.labels(worker)
        for reason in AttemptFailure:
            self._failures.labels(worker, reason.value)

    def forget_worker(self, worker: str) -> None:
        """Drop the series of a worker that has left: it will not come back under this name."""
        self._workers.pop(worker, None)
        self._placed.remove(worker)
        for reason in AttemptFailure:
            self._failures.remove(worker, reason.value)
        self._transitions.forget(worker)

    def attempt_failed(self, worker: str, reason: AttemptFailure) -> None:
        self._failures.labels(worker, reason.value).inc()

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
        """One request has ended. None stands for what it never came to."""
        cell = self._cell(served_name, client)
        cell.outcomes[outcome].inc()
        cell.e2e.observe(e2e_s)
        if weight != self._weights.get(client) and cell.client != _OTHER:
            self._weigh(client, weight)
        if outcome is Outcome.CANCELLED:
            cell.cancelled.inc()
        if dispatch is not None:
            self._was_placed(cell, dispatch)
            if prompt_head is not None:
                self._heads.append(prompt_head)
        if usage is not None:
            self._used(cell, usage, None if dispatch is None else dispatch.matched_tokens)
        if streamed and ttft_s is not None:
            cell.ttft.observe(ttft_s)
            if usage is not None and usage.output_tokens > 1:
                cell.tpot.observe((e2e_s - ttft_s) / (usage.output_tokens - 1))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _start(self, clients: Mapping[str, float]) -> None:
        """What is known before anything has happened."""
        self._reload_good.set(1)
        self._config_since.set(time.time())
        for result in (_ACCEPTED, _REFUSED):
            self._reloads.labels(result)
        for client, weight in clients.items():
            self._clients.add(client)
            self._weigh(client, weight)

    def _was_placed(self, cell: "_Cells", dispatch: Dispatch) -> None:
        cell.wait.observe(dispatch.waited_s)
        cell.client_wait.observe(dispatch.waited_s)
        cell.decisions[dispatch.reason].inc()
        placed = self._workers.get(dispatch.worker)
        if placed is not None:  # one that has left must not come back as a series
            placed.inc()
        cell.predicted.inc(dispatch.matched_tokens)
        cell.share.observe(min(1.0, dispatch.matched_tokens / max(1, dispatch.input_tokens - 1)))

    def _used(self, cell: "_Cells", usage: Usage, predicted: int | None) -> None:
        extend_weight, output_weight = self.service_weights
        cached = usage.cached_tokens or 0
        cell.input.inc(usage.input_tokens)
        cell.output.inc(usage.output_tokens)
        cell.cached.inc(cached)
        cell.service.inc(extend_weight * max(0, usage.input_tokens - cached) + output_weight * usage.output_tokens)
        if usage.cached_tokens is not None and predicted is not None:
            cell.checked.inc(usage.input_tokens)
            cell.wrong[predicted > cached].inc(abs(predicted - cached))

    def _weigh(self, client: str, weight: float) -> None:
        self._weights[client] = weight
        self._weight.labels(client).set(weight)

    def _cell(self, line: str, client: str) -> "_Cells":
        cell = self._cells.get((line, client))
        if cell is None:
            label = self._client_label(client)  # those without one of their own share one cell
            cell = self._cells.get((line, label))
            if cell is None:
                cell = self._cells[line, label] = _Cells(self, line, label)
        return cell

    def _client_label(self, client: str) -> str:
        if client in self._clients:
            return client
        if len(self._clients) >= self._max_clients:
            return _OTHER
        self._clients.add(client)
        return client

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"fairlead_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Totals:
        made = Totals(f"fairlead_{name}", text, labels)
        self.registry.register(made)
        return made

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Spreads:
        made = Spreads(f"fairlead_{name}", text, labels, buckets)
        self.registry.register(made)
        return made

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Spreads:
        return self._histogram(f"{name}_seconds", text, buckets, *labels)


class _Cells:
    """The children of one model and client, looked up once: labels() costs more than the counting."""

    __slots__ = (
        "cached",
        "cancelled",
        "checked",
        "client",
        "client_wait",
        "decisions",
        "e2e",
        "input",
        "outcomes",
        "output",
        "predicted",
        "service",
        "share",
        "tpot",
        "ttft",
        "wait",
        "wrong",
    )

    def __init__(self, metrics: Metrics, line: str, client: str) -> None:
        self.client = client
        self.outcomes = {o: metrics._requests.labels(line, client, o.value) for o in Outcome}  # noqa: SLF001
        self.decisions = {r: metrics._decisions.labels(line, r.value) for r in Reason}  # noqa: SLF001
        tokens = metrics._tokens  # noqa: SLF001 - the two classes are one thing
        self.input = tokens.labels(line, client, "input")
        self.output = tokens.labels(line, client, "output")
        self.cached = tokens.labels(line, client, "cached")
        self.service = metrics._service.labels(client)  # noqa: SLF001
        self.client_wait = metrics._client_wait.labels(client)  # noqa: SLF001
        self.cancelled = metrics._cancelled.labels(line)  # noqa: SLF001
        self.predicted = metrics._predicted.labels(line)  # noqa: SLF001
        self.checked = metrics._checked.labels(line)  # noqa: SLF001
        self.wrong = [metrics._wrong.labels(line, way) for way in ("under", "over")]  # noqa: SLF001
        self.share = metrics._share.labels(line)  # noqa: SLF001
        self.ttft = metrics._ttft.labels(line)  # noqa: SLF001
        self.tpot = metrics._tpot.labels(line)  # noqa: SLF001
        self.e2e = metrics._e2e.labels(line)  # noqa: SLF001
        self.wait = metrics._wait.labels(line)  # noqa: SLF001
