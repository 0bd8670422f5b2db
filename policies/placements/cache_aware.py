"""Who holds the longest part of this prompt, unless the load has become uneven?

Source: cache_aware of SGLang's router and of vLLM's.

Imbalanced if the longest line exceeds the shortest both by `balance_abs` requests and by the factor `balance_rel`,
then the shortest line wins; otherwise the longest match if it covers at least `match_ratio` of the prompt;
otherwise the least load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    balance_abs: int = 64
    """Requests by which the longest line may exceed the shortest."""
    balance_rel: float = 1.5
    """Factor by which it may."""
    match_ratio: float = 0.3
    """Share of the prompt that a match must cover to decide."""


class CacheAware:
    """Longest match with a guard; only workers with room are asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - neither match nor load depends on time
    ) -> Place | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        if len(able) == 1:
            return self._place(able[0], Reason.ONLY_CHOICE, matches)
        if self._imbalanced(workers):
            return self._place(min(able, key=_line), Reason.SPILL if matches else Reason.LOAD, matches)
        longest = max(matches.get(worker.id, 0) for worker in able)
        if longest > self._settings.match_ratio * request.input_tokens:
            holders = [worker for worker in able if matches.get(worker.id, 0) == longest]
            return self._place(min(holders, key=lambda worker: worker.load_s), Reason.HIT, matches)
        return self._place(min(able, key=lambda w: (w.load_s, w.kv_reserved)), Reason.MISS, matches)

    def on(self, event: Event) -> None:
        """Matches and load are counted by the scheduler."""

    def _imbalanced(self, workers: Sequence[WorkerView]) -> bool:
        lines = [worker.requests for worker in workers]
        longest, shortest = max(lines), min(lines)
        return longest - shortest > self._settings.balance_abs and longest > self._settings.balance_rel * shortest

    def _place(self, worker: WorkerView, reason: Reason, matches: Matches) -> Place:
        return Place(Placement(worker.id), reason, matches.get(worker.id, 0), worker.load_s)


def _line(worker: WorkerView) -> tuple[int, float]:
    return worker.requests, worker.load_s
