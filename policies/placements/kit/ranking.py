"""Rankings by a cost: what most placement rules come down to."""

from collections.abc import Callable, Sequence

from policies.model import Matches, Question, Ranked, Reason, WorkerView

Cost = Callable[[WorkerView, int], tuple[float, ...]]
"""Of a worker, and the tokens of the prompt that it holds: the cost, then what breaks ties."""


def by_cost(question: Question, cost: Cost) -> list[Ranked]:
    """All workers of the question, least cost first; equal ones in the order in which they were given."""
    matches = question.matches
    longest = max(matches.values(), default=0)
    costs = [(cost(worker, matched := matches.get(worker.id, 0)), worker, matched) for worker in question.workers]
    costs.sort(key=_first)
    return [(worker, keys[0], reason_for(matched, longest)) for keys, worker, matched in costs]


def in_order(workers: Sequence[WorkerView], reason: Reason) -> list[Ranked]:
    """Workers that a rule has put in order without a cost: each costs its place."""
    return [(worker, float(place), reason) for place, worker in enumerate(workers)]


def reason_for(matched: int, longest: int) -> Reason:
    """hit: it holds the longest match; spill: another worker holds more; miss: no worker holds anything."""
    if not longest:
        return Reason.MISS
    return Reason.HIT if matched == longest else Reason.SPILL


def longest_match(matches: Matches, workers: Sequence[WorkerView]) -> int:
    """Tokens of the prompt that the best of these workers holds."""
    return max((matches.get(worker.id, 0) for worker in workers), default=0)


def _first(entry: tuple[tuple[float, ...], WorkerView, int]) -> tuple[float, ...]:
    return entry[0]
