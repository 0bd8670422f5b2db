"""Is the load even enough to go where the prompt is cached?

Source: `dist_sched` of DeepServe (arXiv 2501.14417).

    workers = pd_aware(request, workers)      colocated ones, or pairs of a prefill and a decode worker
    if load_balanced(workers):  the longest common prefix wins        locality_aware
    else:                       the least load wins                   load_aware

`pd_aware` is `policies/scheduler/disaggregation.py`, which stands in front of every placement and asks it about
one kind of worker at a time: by the heatmap, from the prompt's length and the predicted length of the answer.

The paper gives no number for load nor for balance [ours]: a worker's load is its work in hand in seconds (prefill
owed and a decode step of each sequence), so that a long prompt weighs more than a short one; it is balanced as
long as the most loaded worker is ahead of the least loaded by at most `balance_s` or by at most the factor
`balance_rel`. Where nobody holds anything of the prompt, or several hold as much, the least loaded of them wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    balance_s: float = 0.2
    """Seconds of work by which the most loaded worker may be ahead of the least loaded: about one full step."""
    balance_rel: float = 1.5
    """Factor by which it may."""


class DistSched:
    """The last two lines of the listing; only workers with room are chosen, all of them are compared."""

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
        if self._load_balanced(workers):
            return self._locality_aware(able, matches)
        return self._load_aware(able, matches)

    def on(self, event: Event) -> None:
        """Matches and load are counted by the scheduler."""

    def _load_balanced(self, workers: Sequence[WorkerView]) -> bool:
        loads = [worker.load_s for worker in workers]
        most, least = max(loads), min(loads)
        return most - least <= self._settings.balance_s or most <= self._settings.balance_rel * least

    def _locality_aware(self, able: Sequence[WorkerView], matches: Matches) -> Place:
        best = min(able, key=lambda worker: (-matches.get(worker.id, 0), worker.load_s, worker.requests))
        matched = matches.get(best.id, 0)
        return Place(Placement(best.id), Reason.HIT if matched else Reason.MISS, matched, best.load_s)

    def _load_aware(self, able: Sequence[WorkerView], matches: Matches) -> Place:
        best = min(able, key=lambda worker: (worker.load_s, worker.requests))
        matched = matches.get(best.id, 0)
        away = matched < max(matches.values(), default=0)
        return Place(Placement(best.id), Reason.SPILL if away else Reason.LOAD, matched, best.load_s)
