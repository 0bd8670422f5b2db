"""Why did this request wait, or go there? A history and the scheduler's present state, as an operator reads it.

Everything is made when it is asked for. Times in the result are seconds since the request's first byte, but
`arrived`, which is a date. The words for reasons are those of the operating guide (deploy/runbook.md).
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from policies.fleet.obstacle import Obstacle
from policies.model import Rated, Wait, WorkerId
from router.control.dispatcher import Pool
from router.control.histories import Attempted, History
from router.control.pools import Member


class NotTaken(Enum):
    """Why a worker was not given a request, beside an `Obstacle`."""

    COSTS_MORE = "costs_more"
    """It had its place in the ranking behind the worker that was taken."""
    FAILED_BEFORE = "failed_before"
    """An attempt of this request had failed there."""
    NOT_USABLE = "not_usable"
    """It may not be given requests: down, draining, asleep; its state says more."""
    OTHER_MODEL = "other_model"
    """It does not serve the model that was asked for."""
    NOT_AMONG_BEST = "not_among_best"
    """It was suspect or stalled while better ones were left, or so far down the ranking that it was not kept."""


class Times:
    """From the loop's seconds to those since a request's first byte, and to dates."""

    def __init__(self, history: History, now: float, wall: Callable[[], float]) -> None:
        self._start = history.arrived
        self._offset = wall() - now
        self.now = now

    def since(self, at: float | None) -> float | None:
        return None if at is None else round(at - self._start, 6)

    def date(self) -> str:
        return datetime.fromtimestamp(self._start + self._offset, UTC).isoformat(timespec="milliseconds")


def row(history: History, now: float, wall: Callable[[], float]) -> dict[str, Any]:
    """A request in a list: who, what, and how far it is."""
    times, last = Times(history, now, wall), history.attempts[-1] if history.attempts else None
    waited = sum(part["for_s"] for part in waits(history, times))
    return {
        "request_id": history.name,
        "state": _state(history),
        "client": history.client,
        "model": history.model,
        "arrived": times.date(),
        "age_s": times.since(now if history.ended_at is None else history.ended_at),
        "waited_s": round(waited, 6),
        "input_tokens": history.input_tokens,
        "worker": last.place.placement.decode if last is not None else None,
        "prefill_worker": last.place.placement.prefill if last is not None else None,
        "attempts": len(history.attempts),
    }


def explain(
    history: History, pool: Pool | None, members: Iterable[Member], now: float, wall: Callable[[], float]
) -> dict[str, Any]:
    """All there is to say of one request. `pool`: its pool while it is under way; `members`: the fleet now."""
    times, fleet = Times(history, now, wall), list(members)
    noted = pool.scheduler.waits(history.id) if pool is not None else None
    attempts = [_attempt(attempt, history, times, fleet) for attempt in history.attempts]
    told: dict[str, Any] = {
        **row(history, now, wall),
        "input_tokens_counted": history.exact,
        "expected_output_tokens": history.output_tokens or None,
        "waits": waits(history, times, noted),
        "attempts": attempts,
    }
    if history.outcome is not None:
        told["ended"] = {
            "outcome": history.outcome.value,
            "at_s": times.since(history.ended_at),
            "reject_reason": None if history.reject is None else history.reject.value,
            "why": history.why or None,
        }
    usage = history.usage
    if usage is not None:
        told["found"] = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_tokens": usage.cached_tokens,
            "matched_tokens": history.attempts[-1].place.matched_tokens if history.attempts else None,
        }
    if pool is not None and history.outcome is None:
        waiting = _now(history, pool, fleet, now)
        if waiting is not None:
            told["now"] = waiting
    return told


def _state(history: History) -> str:
    if history.outcome is not None:
        return history.outcome.value
    return "running" if history.placed else "waiting"


def waits(history: History, times: Times, noted: tuple[Wait, ...] | None = None) -> list[dict[str, Any]]:
    """What the request waited for, in order: its time in the queue, without gaps.

    `noted`: what the scheduler has noted of one that still waits.
    """
    parts: list[dict[str, Any]] = []
    since = history.queued_at
    for attempt in history.attempts:
        parts += _parts(attempt.waits, since, attempt.at, times)
        since = attempt.failed_at if attempt.failed_at is not None else attempt.at
    if history.placed:
        return parts
    until = times.now if history.ended_at is None else history.ended_at
    return parts + _parts(history.waits if noted is None else noted, since, until, times)


def _parts(noted: Sequence[Wait], since: float, until: float, times: Times) -> list[dict[str, Any]]:
    """Spans from one moment to another: its turn first, then what was noted; none shorter than 1 ms."""
    begins = [Wait(since, Obstacle.TURN), *noted]
    ends = [max(since, wait.since) for wait in begins[1:]] + [until]
    return [
        {
            "for": wait.obstacle.value,
            "worker": wait.worker,
            "from_s": times.since(max(since, wait.since)),
            "for_s": round(end - max(since, wait.since), 6),
        }
        for wait, end in zip(begins, ends, strict=True)
        if end - max(since, wait.since) >= _SHORTEST_S
    ]


_SHORTEST_S = 0.001


def _attempt(attempt: Attempted, history: History, times: Times, fleet: list[Member]) -> dict[str, Any]:
    place = attempt.place
    failed_before = {one.failed_on for one in history.attempts if one.number < attempt.number}
    told: dict[str, Any] = {
        "attempt": attempt.number,
        "at_s": times.since(attempt.at),
        "worker": place.placement.decode,
        "prefill_worker": place.placement.prefill,
        "reason": place.reason.value,
        "matched_tokens": place.matched_tokens,
        "cost": place.score,
        "first_token_at_s": times.since(attempt.first_token_at),
        "workers": _workers(place.rated, place.placement.ranked, history, fleet, failed_before),
    }
    if attempt.failure is not None:
        told["failed"] = {
            "at_s": times.since(attempt.failed_at),
            "on": attempt.failed_on,
            "reason": attempt.failure.value,
            "why": attempt.why,
        }
    return told


def _workers(
    rated: Sequence[Rated],
    chosen: WorkerId | None,
    history: History,
    fleet: list[Member],
    failed_before: set[WorkerId],
) -> list[dict[str, Any]]:
    """Every worker, best first, with why it was not taken; those that were not asked come last."""
    rows = []
    for name, cost, matched, obstacle in rated:
        why = NotTaken.COSTS_MORE if obstacle is None else obstacle
        rows.append(
            {
                "worker": name,
                "cost": cost,
                "matched_tokens": matched,
                "why_not": None if name == chosen else why.value,
            }
        )
    asked = {each[0] for each in rated}
    for member in fleet:
        worker = member.worker
        if worker.id in asked or worker.id == chosen:
            continue
        if worker.id in failed_before:
            left = NotTaken.FAILED_BEFORE
        elif history.model not in worker.served_names:
            left = NotTaken.OTHER_MODEL
        elif not worker.routable:
            left = NotTaken.NOT_USABLE
        else:
            left = NotTaken.NOT_AMONG_BEST
        rows.append(
            {
                "worker": worker.id,
                "cost": None,
                "matched_tokens": None,
                "why_not": left.value,
                "state": worker.state.value,
                "state_why": worker.why or None,
            }
        )
    return rows


def _now(history: History, pool: Pool, fleet: list[Member], now: float) -> dict[str, Any] | None:
    """For a request that waits: who is before it, and how the workers look to it at this moment."""
    scheduler = pool.scheduler
    rated = scheduler.look(history.id, now)
    if rated is None:
        return None
    waiting = list(scheduler.waiting())
    noted = scheduler.waits(history.id)
    failed_before = {one.failed_on for one in history.attempts}
    rows = _workers(rated, None, history, fleet, failed_before)
    for each, (_, _, _, obstacle) in zip(rows, rated, strict=False):
        each["why_not"] = None if obstacle is None else obstacle.value
    return {
        "waits_for": noted[-1].obstacle.value if noted else Obstacle.TURN.value,
        "hold_for": noted[-1].worker if noted else None,
        "waiting": len(waiting),
        "arrived_before": sum(one.arrived < history.arrived for one in waiting),
        "of_this_client": sum(one.client == history.client for one in waiting),
        "deficit": scheduler.deficit(history.client),
        "workers": rows,
    }
