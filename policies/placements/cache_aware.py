"""Which worker holds the longest part of this prompt, unless the load has become uneven?

Source: cache_aware of SGLang's router and of vLLM's.

Imbalanced if the largest number of requests on a worker exceeds the smallest both by `balance_abs` and by the
factor `balance_rel`: then the fewest requests win. Otherwise the longest match wins if it covers more than
`match_ratio` of the prompt, otherwise the least load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, Reason, WorkerView
from policies.placements.kit.ranking import by_cost, longest_match
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    balance_abs: int = 64
    """Requests by which the busiest worker may exceed the least busy one."""
    balance_rel: float = 1.5
    """Factor by which it may."""
    match_ratio: float = 0.3
    """Share of the prompt that a match must cover to decide."""


class CacheAware(PlacementPolicy):
    """Longest match with a guard against imbalance."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        if self._imbalanced(question.workers):
            return by_cost(question, lambda worker, _: (worker.requests, worker.load_s))
        longest = longest_match(question.matches, question.workers)
        if longest > self._settings.match_ratio * question.request.input_tokens:
            return by_cost(question, lambda worker, matched: (-matched, worker.load_s))
        ranking = by_cost(question, lambda worker, _: (worker.load_s, worker.kv_reserved))
        return [(worker, load_s, Reason.MISS) for worker, load_s, _ in ranking]

    def _imbalanced(self, workers: Sequence[WorkerView]) -> bool:
        requests = [worker.requests for worker in workers]
        most, least = max(requests), min(requests)
        return most - least > self._settings.balance_abs and most > self._settings.balance_rel * least
