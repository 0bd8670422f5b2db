"""From records and samples to the figures of one router.

The window is what follows the warm-up. Times to first token are of the requests *sent* in it, however late they
were answered; service and requests are of those *finished* in it; the servers' figures are of the samples in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import fmean

from benchmarks.fleet.load import FLOOD, Record
from benchmarks.fleet.watch import Sample

OUTPUT_WEIGHT = 2
"""A token of output is charged as this many of input."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times to first token in seconds; None where there is no request."""

    requests: int
    mean: float | None
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """One client's share; `requests`, tokens and service are of its requests finished in the window."""

    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Of the input, as the usage in the answers says."""
    service: int
    ttft_s: Latency


@dataclass(frozen=True, slots=True)
class Waiting:
    """vLLM's own waiting line on one server, over the samples."""

    mean: float
    max: int


@dataclass(frozen=True, slots=True)
class Engine:
    """One server over the samples: how full its batches are, and how long its steps."""

    running: float
    """Sequences in the batch, on average."""
    steps_per_s: float
    tokens_per_step: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything about one router. JSON keys are the field names."""

    seconds: float
    requests: int
    errors: int
    unanswered: int
    """Sent in the window and without an answer when the run ended."""
    input_tokens: int
    output_tokens: int
    service: int
    service_per_s: float
    well_behaved_ttft_s: Latency
    flood_ttft_s: Latency
    clients: dict[str, ClientFigures]
    prefix_queries: int
    prefix_hits: int
    prefix_hit_ratio: float | None
    preemptions: int
    chat_hit_ratio: float | None
    """Cached share of the well-behaved clients' input, by usage: the flood has nothing to find."""
    e2e_mean_s: float | None
    """To the end of the answer, over the well-behaved clients' requests sent in the window."""
    engines: list[Engine]
    """Per server, in the order of the servers; so with `waiting`."""
    waiting: list[Waiting]
    waiting_mean: float | None
    waiting_max: int | None
    idle_while_queued: float | None
    """Share of the servers that had nothing at all, while requests waited somewhere; None if none ever did."""


def figures(records: Sequence[Record], samples: Sequence[Sample], begin_s: float, end_s: float) -> Figures:
    """Sum up one run over the window."""
    finished = [r for r in records if r.done_s is not None and begin_s <= r.done_s < end_s]
    sent = [r for r in records if begin_s <= r.sent_s < end_s]
    looks = [sample for sample in samples if begin_s <= sample.at_s < end_s]
    clients = {
        name: _client([r for r in finished if r.client == name], [r for r in sent if r.client == name])
        for name in sorted({r.client for r in records})
    }
    took = [r.done_s - r.sent_s for r in sent if r.done_s is not None and r.client != FLOOD]
    service = sum(client.service for client in clients.values())
    queries = looks[-1].prefix_queries - looks[0].prefix_queries if looks else 0
    hits = looks[-1].prefix_hits - looks[0].prefix_hits if looks else 0
    lines = [_waiting(column) for column in zip(*(look.waiting for look in looks), strict=True)]
    return Figures(
        seconds=end_s - begin_s,
        requests=len(finished),
        errors=sum(bool(r.error) for r in sent),
        unanswered=sum(r.done_s is None and not r.error for r in sent),
        input_tokens=sum(r.input_tokens for r in finished),
        output_tokens=sum(r.output_tokens for r in finished),
        service=service,
        service_per_s=service / (end_s - begin_s),
        well_behaved_ttft_s=latency([r for r in sent if r.client != FLOOD]),
        flood_ttft_s=latency([r for r in sent if r.client == FLOOD]),
        clients=clients,
        prefix_queries=queries,
        prefix_hits=hits,
        prefix_hit_ratio=hits / queries if queries else None,
        preemptions=looks[-1].preemptions - looks[0].preemptions if looks else 0,
        chat_hit_ratio=_cached_share([r for r in finished if r.client != FLOOD]),
        e2e_mean_s=fmean(took) if took else None,
        engines=_engines(looks),
        waiting=lines,
        waiting_mean=fmean(line.mean for line in lines) if lines else None,
        waiting_max=max(line.max for line in lines) if lines else None,
        idle_while_queued=idle_while_queued(looks),
    )


def latency(records: Sequence[Record]) -> Latency:
    """Over those that were answered."""
    times = ttft(records)
    if not times:
        return Latency(0, None, None, None)
    return Latency(len(times), fmean(times), percentile(times, 0.5), percentile(times, 0.99))


def ttft(records: Sequence[Record]) -> list[float]:
    """Times to first token, sorted."""
    return sorted(r.first_s - r.sent_s for r in records if r.first_s is not None)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def idle_while_queued(samples: Sequence[Sample]) -> float | None:
    """See Figures. A request waits when it is open at its client and not among those that the servers run.

    vLLM refreshes its figures at the end of a step, so a server in its first step still looks idle. Counted is
    therefore only what holds in two looks in a row; with steps longer than that it is still an upper bound.
    """
    pairs = [
        (before, now)
        for before, now in pairwise(samples)
        if before.open > sum(before.running) and now.open > sum(now.running)
    ]
    if not pairs:
        return None
    return fmean(
        nothing and still_nothing
        for before, now in pairs
        for nothing, still_nothing in zip(_idle(before), _idle(now), strict=True)
    )


def _engines(looks: Sequence[Sample]) -> list[Engine]:
    if len(looks) < 2:
        return []
    first, last = looks[0], looks[-1]
    seconds = last.at_s - first.at_s
    running = [fmean(column) for column in zip(*(look.running for look in looks), strict=True)]
    steps = [after - before for before, after in zip(first.steps, last.steps, strict=True)]
    tokens = [after - before for before, after in zip(first.step_tokens, last.step_tokens, strict=True)]
    return [
        Engine(batch, count / seconds, amount / count if count else 0.0)
        for batch, count, amount in zip(running, steps, tokens, strict=True)
    ]


def _idle(sample: Sample) -> list[bool]:
    """Per server."""
    return [running + waiting == 0 for running, waiting in zip(sample.running, sample.waiting, strict=True)]


def _cached_share(finished: Sequence[Record]) -> float | None:
    given = sum(r.input_tokens for r in finished)
    return sum(r.cached_tokens for r in finished) / given if given else None


def _client(finished: Sequence[Record], sent: Sequence[Record]) -> ClientFigures:
    given = sum(r.input_tokens for r in finished)
    taken = sum(r.output_tokens for r in finished)
    cached = sum(r.cached_tokens for r in finished)
    return ClientFigures(len(finished), given, taken, cached, given + OUTPUT_WEIGHT * taken, latency(sent))


def _waiting(column: Sequence[int]) -> Waiting:
    return Waiting(fmean(column), max(column))
