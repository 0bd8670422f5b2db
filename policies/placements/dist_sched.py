"""Is the load even enough to go where the prompt is cached?

Source: `dist_sched` of DeepServe (arXiv 2501.14417).

    workers = pd_aware(request, workers)      colocated ones, or pairs of a prefill and a decode worker
    if load_balanced(workers):  the longest common prefix wins        locality_aware
    else:                       the least load wins                   load_aware

`pd_aware` is `policies/scheduler/disaggregation.py`: every placement ranks workers of one kind at a time, chosen
by the heatmap from the prompt's length and the predicted length of the answer.

The paper gives no number for load nor for balance [ours]: a worker's load is its work in hand in seconds (prefill
owed and a decode step of each sequence), so that a long prompt weighs more than a short one; it is balanced as
long as the most loaded worker is ahead of the least loaded by at most `balance_s` or by at most the factor
`balance_rel`. Where no worker holds anything of the prompt, or several hold as much, the least loaded wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, Reason, WorkerView
from policies.placements.kit.ranking import by_cost
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    balance_s: float = 0.2
    """Seconds of work by which the most loaded worker may be ahead of the least loaded: about one full step."""
    balance_rel: float = 1.5
    """Factor by which it may."""


class DistSched(PlacementPolicy):
    """The last two lines of the listing."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        if self._load_balanced(question.workers):
            return by_cost(question, lambda worker, matched: (-matched, worker.load_s, worker.requests))
        ranking = by_cost(question, lambda worker, _: (worker.load_s, worker.requests))
        return [
            (worker, load_s, Reason.SPILL if reason is Reason.SPILL else Reason.LOAD)
            for worker, load_s, reason in ranking
        ]

    def _load_balanced(self, workers: Sequence[WorkerView]) -> bool:
        loads = [worker.load_s for worker in workers]
        most, least = max(loads), min(loads)
        return most - least <= self._settings.balance_s or most <= self._settings.balance_rel * least
