"""What a replay comes to, in numbers.

- *Service* is input + 2 x output tokens of a completed request. For what happens over time its input counts at its
  first token, its output evenly from there to its end.
- *Percentiles* interpolate linearly between the two nearest ranks.
- `jain`: see `fairness.py`.
- `worker_load_cv` is the standard deviation over the mean of `WorkerTotals.work`, over all workers.
- `slo.attained` is the share of all requests, rejected ones included, that meet both targets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, pstdev
from typing import Any

from router.lab.fairness import jain
from router.lab.results import RequestResult, Run
from router.lab.setup import Setup

_BINS = 120
"""Points of a curve over time."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a client expects: the first token within `ttft_s`, then one token every `tpot_s`."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1

    def met_by(self, record: RequestResult) -> bool:
        ttft, tpot = ttft_s(record), tpot_s(record)
        return ttft is not None and ttft <= self.ttft_s and (tpot is None or tpot <= self.tpot_s)


@dataclass(frozen=True, slots=True)
class Curves:
    """What the pictures of a run show beyond its numbers."""

    ttft_s: list[float]
    """Sorted."""
    bin_s: float
    service: dict[str, list[float]]
    """By client: service up to the end of each bin."""
    worker_load: list[int]


def summarize(run: Run, setup: Setup, targets: Targets | None = None) -> dict[str, Any]:
    """The report of one run, as `fairlead simulate --json` prints it; times in seconds."""
    targets = targets or Targets()
    completed = [record for record in run.records if record.completed]
    duration = duration_s(run)
    input_tokens = sum(record.input_tokens for record in completed)
    output_tokens = sum(record.output_tokens for record in completed)
    prompt_tokens = sum(worker.prompt_tokens for worker in run.workers)
    cached_tokens = sum(worker.cached_tokens for worker in run.workers)
    load = [worker.work for worker in run.workers]
    return {
        "placement": setup.placement,
        "queue": setup.queue,
        "binding": setup.binding,
        "workers": setup.workers,
        "roles": {role: setup.roles.count(role) for role in dict.fromkeys(setup.roles)},
        "profile": setup.profile.name,
        "seed": setup.seed,
        "requests": len(run.records),
        "completed": len(completed),
        "rejected": sum(record.rejected is not None for record in run.records),
        "duration_s": duration,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "tokens_per_s": _ratio(input_tokens + output_tokens, duration),
        "service_per_s": _ratio(input_tokens + 2 * output_tokens, duration),
        "prefix_hit_ratio": _ratio(cached_tokens, prompt_tokens),
        "ttft_s": spread(map(ttft_s, completed)),
        "tpot_s": spread(map(tpot_s, completed)),
        "e2e_s": spread(map(e2e_s, completed)),
        "queue_wait_s": spread(r.dispatched - r.arrived for r in completed if r.dispatched is not None),
        "jain": jain(run.records),
        "clients": _clients(run.records),
        "worker_load_cv": _ratio(pstdev(load), fmean(load)),
        "disaggregated": _ratio(sum(record.pair for record in completed), len(completed)),
        "preemptions": sum(worker.preemptions for worker in run.workers),
        "slo": {
            "ttft_s": targets.ttft_s,
            "tpot_s": targets.tpot_s,
            "attained": _ratio(sum(map(targets.met_by, run.records)), len(run.records)),
        },
        "wall_s": run.wall_s,
    }


def rejections(run: Run) -> dict[str, int]:
    """How many requests were rejected for which reason, the most frequent first."""
    counts: dict[str, int] = {}
    for record in run.records:
        if record.rejected is not None:
            counts[record.rejected] = counts.get(record.rejected, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


# -- times of one request; None where it has none


def ttft_s(record: RequestResult) -> float | None:
    """From arrival to the first token."""
    return None if record.first_at is None else record.first_at - record.arrived


def tpot_s(record: RequestResult) -> float | None:
    """Per output token after the first; None for an answer of one token."""
    if record.first_at is None or record.ended is None or record.output_tokens < 2:
        return None
    return (record.ended - record.first_at) / (record.output_tokens - 1)


def e2e_s(record: RequestResult) -> float | None:
    """From arrival to the last token."""
    return None if record.ended is None else record.ended - record.arrived


def duration_s(run: Run) -> float:
    """From the first arrival to the last end."""
    ends = [record.ended for record in run.records if record.ended is not None]
    return max(ends) - min(record.arrived for record in run.records) if ends else 0.0


# -- distributions


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and percentiles of the values that are there; None everywhere where there are none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return dict.fromkeys(("mean", "p50", "p90", "p99"))
    return {
        "mean": fmean(ordered),
        "p50": percentile(ordered, 0.5),
        "p90": percentile(ordered, 0.9),
        "p99": percentile(ordered, 0.99),
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in rising order, at least one."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _clients(records: Iterable[RequestResult]) -> dict[str, dict[str, Any]]:
    """By name; `requests` counts rejected ones too."""
    by_client: dict[str, list[RequestResult]] = {}
    for record in records:
        by_client.setdefault(record.client, []).append(record)
    return {name: _client(by_client[name]) for name in sorted(by_client)}


def _client(records: list[RequestResult]) -> dict[str, Any]:
    completed = [record for record in records if record.completed]
    return {
        "requests": len(records),
        "service": sum(record.service for record in completed),
        "ttft_s": spread(map(ttft_s, completed)),
        "e2e_s": spread(map(e2e_s, completed)),
    }


# -- pictures


def curves(run: Run) -> Curves:
    """What the pictures show."""
    ttfts = sorted(ttft for record in run.records if (ttft := ttft_s(record)) is not None and record.completed)
    start = min((record.arrived for record in run.records), default=0.0)
    bin_s = max(duration_s(run) / _BINS, 1e-9)
    gained: dict[str, list[float]] = {}
    for record in run.records:
        first, end = record.first_at, record.ended
        if first is None or end is None:
            continue
        bins = gained.setdefault(record.client, [0.0] * _BINS)
        from_bin, to_bin = _bin(first - start, bin_s), _bin(end - start, bin_s)
        bins[from_bin] += record.input_tokens
        share = 2 * record.output_tokens / (to_bin - from_bin + 1)
        for number in range(from_bin, to_bin + 1):
            bins[number] += share
    service = {client: list(accumulate(gained[client])) for client in sorted(gained)}
    return Curves(ttfts, bin_s, service, [worker.work for worker in run.workers])


def _bin(seconds: float, bin_s: float) -> int:
    return min(int(seconds / bin_s), _BINS - 1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
