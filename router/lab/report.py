"""What a replay comes to, in numbers.

- *Service* is input + 2 x output tokens of a completed request. For what happens over time its input counts at its
  first token, its output evenly from there to its end.
- `steady` is the time from the first tenth of the arrivals to the last arrival. Outside of it the fleet fills or
  drains, which says nothing about what it can do: above capacity `steady.service_per_s` is what it can.
- `ttft_s` is of streamed answers: the client of a whole one sees nothing before its end.
- *Percentiles* interpolate linearly between the two nearest ranks.
- `jain`: see `fairness.py`. `limit`: see `limits.py`.
- `worker_load_cv` is the standard deviation over the mean of `WorkerTotals.work`, over all workers.
- `slo.attained` is the share of all requests, rejected and failed ones included, that meet their targets: those of
  their own service level, or else the report's. `slo.classes` has the same for each service level.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, pstdev
from typing import Any

from router.lab.distribution import spread
from router.lab.fairness import jain
from router.lab.results import RequestResult, Run
from router.lab.setup import Setup
from router.lab.workload import Targets

_BINS = 120
"""Points of a curve over time."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What the pictures of a run show beyond its numbers."""

    ttft_s: list[float]
    """Sorted."""
    e2e_s: list[float]
    """Sorted."""
    bin_s: float
    service: dict[str, list[float]]
    """By client: service up to the end of each bin."""
    worker_load: list[int]


def summarize(run: Run, setup: Setup, targets: Targets | None = None) -> dict[str, Any]:
    """The report of one run, as `fairlead simulate --json` prints it; times in seconds."""
    targets = targets or Targets()
    results = run.results
    completed = [result for result in results if result.completed]
    duration = duration_s(run)
    input_tokens = sum(result.input_tokens for result in completed)
    output_tokens = sum(result.output_tokens for result in completed)
    load = [worker.work for worker in run.workers]
    return {
        "placement": setup.placement,
        "queue": setup.queue,
        "binding": setup.binding,
        "keys": setup.keys,
        "workers": setup.workers,
        "roles": {role: setup.roles.count(role) for role in dict.fromkeys(setup.roles)},
        "profile": setup.profile.name,
        "seed": setup.seed,
        "requests": len(results),
        "completed": len(completed),
        "rejected": sum(result.rejected is not None for result in results),
        "failed": sum(result.failed is not None for result in results),
        "retries": sum(max(0, result.attempts - 1) for result in results),
        "duration_s": duration,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "tokens_per_s": _ratio(input_tokens + output_tokens, duration),
        "service_per_s": _ratio(input_tokens + 2 * output_tokens, duration),
        "steady": steady(results),
        "prefix_hit_ratio": _ratio(sum(result.cached_tokens for result in completed), input_tokens),
        "ttft_s": spread(map(ttft_s, completed)),
        "tpot_s": spread(map(tpot_s, completed)),
        "e2e_s": spread(map(e2e_s, completed)),
        "queue_wait_s": spread(r.dispatched - r.arrived for r in completed if r.dispatched is not None),
        "jain": jain(results),
        "clients": _clients(results),
        "worker_load_cv": _ratio(pstdev(load), fmean(load)),
        "disaggregated": _ratio(sum(result.pair for result in completed), len(completed)),
        "preemptions": sum(worker.preemptions for worker in run.workers),
        "slo": _service_levels(results, targets),
        "wall_s": run.wall_s,
    }


def steady(results: list[RequestResult]) -> dict[str, float | None]:
    """What the fleet did between the first tenth of the arrivals and the last; rates None if that is no time."""
    arrivals = sorted(result.arrived for result in results)
    start, end = arrivals[len(arrivals) // 10], arrivals[-1]
    if end <= start:
        return {"from_s": start, "to_s": end, "service_per_s": None, "requests_per_s": None}
    completed = [result for result in results if result.completed]
    ended = sum(result.ended is not None and start <= result.ended <= end for result in completed)
    return {
        "from_s": start,
        "to_s": end,
        "service_per_s": sum(service_between(result, start, end) for result in completed) / (end - start),
        "requests_per_s": ended / (end - start),
    }


def service_between(result: RequestResult, start: float, end: float) -> float:
    """The part of a request's service that falls between two times."""
    first, last = result.first_at, result.ended
    if first is None or last is None:
        return 0.0
    service = float(result.input_tokens) if start <= first <= end else 0.0
    if last > first:
        within = max(0.0, min(last, end) - max(first, start))
        service += 2 * result.output_tokens * within / (last - first)
    elif start <= last <= end:
        service += 2 * result.output_tokens
    return service


def targets_met(result: RequestResult, targets: Targets) -> bool:
    """Whether a request was served within its own targets, or else these."""
    targets = result.targets or targets
    if not result.completed:
        return False
    if not result.streams:
        each = result.output_tokens / result.sequences
        return (e2e_s(result) or 0.0) <= targets.ttft_s + targets.tpot_s * (each - 1)
    ttft, tpot = ttft_s(result), tpot_s(result)
    return ttft is not None and ttft <= targets.ttft_s and (tpot is None or tpot <= targets.tpot_s)


def _service_levels(results: list[RequestResult], targets: Targets) -> dict[str, Any]:
    by_class: dict[str, list[bool]] = {}
    for result in results:
        name = (result.targets or targets).name
        by_class.setdefault(name, []).append(targets_met(result, targets))
    met = sum(map(sum, by_class.values()))
    return {
        "ttft_s": targets.ttft_s,
        "tpot_s": targets.tpot_s,
        "attained": _ratio(met, len(results)),
        "classes": {
            name: {"requests": len(each), "attained": _ratio(sum(each), len(each))}
            for name, each in sorted(by_class.items())
        },
    }


def rejections(run: Run) -> dict[str, int]:
    """How many requests were rejected for which reason, the most frequent first."""
    counts: dict[str, int] = {}
    for result in run.results:
        if result.rejected is not None:
            counts[result.rejected] = counts.get(result.rejected, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


# -- times of one request; None where it has none


def ttft_s(result: RequestResult) -> float | None:
    """From arrival to the first token; None for an answer that is not streamed."""
    return None if result.first_at is None or not result.streams else result.first_at - result.arrived


def tpot_s(result: RequestResult) -> float | None:
    """Per output token after the first; None for an answer of one token, or one that is not streamed."""
    steps = result.output_tokens / result.sequences - 1
    if result.first_at is None or result.ended is None or steps <= 0 or not result.streams:
        return None
    return (result.ended - result.first_at) / steps


def e2e_s(result: RequestResult) -> float | None:
    """From arrival to the last token."""
    return None if result.ended is None else result.ended - result.arrived


def duration_s(run: Run) -> float:
    """From the first arrival to the last end."""
    ends = [result.ended for result in run.results if result.ended is not None]
    return max(ends) - min(result.arrived for result in run.results) if ends else 0.0


def _clients(results: Iterable[RequestResult]) -> dict[str, dict[str, Any]]:
    """By name; `requests` counts rejected ones too."""
    by_client: dict[str, list[RequestResult]] = {}
    for result in results:
        by_client.setdefault(result.client, []).append(result)
    return {name: _client(by_client[name]) for name in sorted(by_client)}


def _client(results: list[RequestResult]) -> dict[str, Any]:
    completed = [result for result in results if result.completed]
    return {
        "requests": len(results),
        "service": sum(result.service for result in completed),
        "ttft_s": spread(map(ttft_s, completed)),
        "e2e_s": spread(map(e2e_s, completed)),
    }


# -- pictures


def curves(run: Run) -> Curves:
    """What the pictures show."""
    completed = [result for result in run.results if result.completed]
    ttfts = sorted(ttft for result in completed if (ttft := ttft_s(result)) is not None)
    e2es = sorted(e2e for result in completed if (e2e := e2e_s(result)) is not None)
    start = min((result.arrived for result in run.results), default=0.0)
    bin_s = max(duration_s(run) / _BINS, 1e-9)
    gained: dict[str, list[float]] = {}
    for result in run.results:
        first, end = result.first_at, result.ended
        if first is None or end is None:
            continue
        bins = gained.setdefault(result.client, [0.0] * _BINS)
        from_bin, to_bin = _bin(first - start, bin_s), _bin(end - start, bin_s)
        bins[from_bin] += result.input_tokens
        share = 2 * result.output_tokens / (to_bin - from_bin + 1)
        for number in range(from_bin, to_bin + 1):
            bins[number] += share
    service = {client: list(accumulate(gained[client])) for client in sorted(gained)}
    return Curves(ttfts, e2es, bin_s, service, [worker.work for worker in run.workers])


def _bin(seconds: float, bin_s: float) -> int:
    return min(int(seconds / bin_s), _BINS - 1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
