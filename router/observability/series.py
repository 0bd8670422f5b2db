"""What is counted of one model, of one client, and of one worker: plain numbers, which a scrape copies."""

from policies.model import AttemptFailure, Outcome, Reason
from router.observability.bucket_counts import BucketCounts
from router.observability.exposition import Metric, Snapshot, counter, gauge, histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CLIENT_WAIT = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Coarser, as there are many clients."""
_SHARE = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

_REQUESTS = counter("requests", "Requests by how they ended", "model", "outcome")
_TOKENS = counter("tokens", "Tokens as workers report them", "model", "kind")
_DECISIONS = counter("decisions", "Placements by reason", "model", "reason")
_CANCELLATIONS = counter("cancellations", "Requests whose client left", "model")
_PREDICTED = counter("predicted_cached_tokens", "Prompt tokens expected in a cache", "model")
_CHECKED = counter(
    "checked_prompt_tokens", "Prompt tokens of which the worker said whether they were cached", "model"
)
_WRONG = counter("mispredicted_cached_tokens", "Of these, those expected otherwise", "model", "direction")
_MATCHED = histogram("matched_share", "Share of the prompt expected in a cache", _SHARE, "model")
_TTFT = histogram("time_to_first_token_seconds", "From arrival to the first token", _LATENCY, "model")
_TPOT = histogram("time_per_output_token_seconds", "After the first one", _PER_TOKEN, "model")
_E2E = histogram("request_duration_seconds", "From arrival to the last byte", _LATENCY, "model")
_QUEUED = histogram("queue_wait_seconds", "From arrival to the decision", _WAIT, "model")

_CLIENT_REQUESTS = counter("client_requests", "Requests by how they ended", "client", "outcome")
_CLIENT_TOKENS = counter("client_tokens", "Tokens as workers report them", "client", "kind")
_SERVICE = counter("client_service", "Work caused: weighted computed and output tokens", "client")
_WEIGHT = gauge("client_weight", "Share of the fleet relative to other clients", "client")
_CLIENT_QUEUED = histogram("client_queue_wait_seconds", "From arrival to the decision", _CLIENT_WAIT, "client")

_PLACEMENTS = counter("worker_placements", "Requests by the last worker they were given to", "worker")
_FAILURES = counter("attempt_failures", "Attempts on a worker that failed", "worker", "reason")


class ModelSeries:
    """One served name: a base model or an adapter."""

    METRICS: tuple[Metric, ...] = (
        *(_REQUESTS, _TOKENS, _DECISIONS, _CANCELLATIONS, _PREDICTED, _CHECKED, _WRONG),
        *(_MATCHED, _TTFT, _TPOT, _E2E, _QUEUED),
    )
    __slots__ = (
        "cached",
        "cancelled",
        "checked",
        "decisions",
        "e2e",
        "input",
        "matched",
        "outcomes",
        "output",
        "overestimated",
        "predicted",
        "queued",
        "tpot",
        "ttft",
        "underestimated",
    )

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.decisions = dict.fromkeys(Reason, 0)
        self.input = self.output = self.cached = self.cancelled = 0
        self.predicted = self.checked = self.overestimated = self.underestimated = 0
        self.matched, self.queued = BucketCounts(_SHARE), BucketCounts(_WAIT)
        self.ttft, self.tpot, self.e2e = BucketCounts(_LATENCY), BucketCounts(_PER_TOKEN), BucketCounts(_LATENCY)

    def read(self, into: Snapshot, model: str) -> None:
        """Add its rows."""
        add = into.add
        for outcome, count in self.outcomes.items():
            add(_REQUESTS, count, model, outcome.value)
        for kind, count in (("input", self.input), ("output", self.output), ("cached", self.cached)):
            add(_TOKENS, count, model, kind)
        for reason, count in self.decisions.items():
            add(_DECISIONS, count, model, reason.value)
        add(_CANCELLATIONS, self.cancelled, model)
        add(_PREDICTED, self.predicted, model)
        add(_CHECKED, self.checked, model)
        add(_WRONG, self.underestimated, model, "under")
        add(_WRONG, self.overestimated, model, "over")
        for metric, seen in (
            (_MATCHED, self.matched),
            (_TTFT, self.ttft),
            (_TPOT, self.tpot),
            (_E2E, self.e2e),
            (_QUEUED, self.queued),
        ):
            add(metric, seen.copy(), model)


class ClientSeries:
    """One client. `weight`: None where several share the label."""

    METRICS: tuple[Metric, ...] = (_CLIENT_REQUESTS, _CLIENT_TOKENS, _SERVICE, _WEIGHT, _CLIENT_QUEUED)
    __slots__ = ("cached", "input", "outcomes", "output", "queued", "service", "weight")

    def __init__(self, weight: float | None = None) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.input = self.output = self.cached = 0
        self.service = 0.0
        self.weight = weight
        self.queued = BucketCounts(_CLIENT_WAIT)

    def read(self, into: Snapshot, client: str) -> None:
        """Add its rows."""
        add = into.add
        for outcome, count in self.outcomes.items():
            add(_CLIENT_REQUESTS, count, client, outcome.value)
        for kind, count in (("input", self.input), ("output", self.output), ("cached", self.cached)):
            add(_CLIENT_TOKENS, count, client, kind)
        add(_SERVICE, self.service, client)
        if self.weight is not None:
            add(_WEIGHT, self.weight, client)
        add(_CLIENT_QUEUED, self.queued.copy(), client)


class WorkerSeries:
    """One worker."""

    METRICS: tuple[Metric, ...] = (_PLACEMENTS, _FAILURES)
    __slots__ = ("failures", "placements")

    def __init__(self) -> None:
        self.placements = 0
        self.failures = dict.fromkeys(AttemptFailure, 0)

    def read(self, into: Snapshot, worker: str) -> None:
        """Add its rows."""
        into.add(_PLACEMENTS, self.placements, worker)
        for reason, count in self.failures.items():
            into.add(_FAILURES, count, worker, reason.value)
