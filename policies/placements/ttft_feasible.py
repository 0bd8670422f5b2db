"""Would the worker that holds the prefix give the first token in time, and if not, which is fastest?

Source: SMetric (arXiv 2607.08565) and DualMap (arXiv 2602.06502), the rule that both share.

Affinity as long as it is affordable: the worker with the longest match keeps the request unless its predicted time
to first token breaks the target; then the worker with the least prediction takes it, whatever it holds.

    prediction = waited so far + prefill owed there + the request's own uncached prefill

[ours] Times come from each worker's measured profile. Of several equally long matches the fastest is the affine
one. Without any match the fastest worker takes it.

Invariant: a request leaves its affine worker only for one with a smaller prediction.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, RequestView, WorkerView
from policies.placements.kit.ranking import longest_match, reason_for
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    target_s: float = 1.0
    """Time to first token that a request may take, its wait included."""


class TtftFeasible(PlacementPolicy):
    """Predictions in seconds over all workers; the policy keeps no state."""

    hears: ClassVar[frozenset[type[Event]]] = NONE
    costs_are_seconds: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        request, matches = question.request, question.matches
        longest = longest_match(matches, question.workers)
        predicted = [
            (predicted_ttft(request, worker, matches.get(worker.id, 0), question.now), place, worker)
            for place, worker in enumerate(question.workers)
        ]
        predicted.sort()
        affine = next(entry for entry in predicted if matches.get(entry[2].id, 0) == longest)
        if longest and affine[0] <= self._settings.target_s:
            predicted.remove(affine)
            predicted.insert(0, affine)
        return [
            (worker, ttft_s, reason_for(matches.get(worker.id, 0), longest)) for ttft_s, _, worker in predicted
        ]


def predicted_ttft(request: RequestView, worker: WorkerView, matched: int, now: float) -> float:
    """Seconds from the request's arrival to its first token, if this worker starts it now."""
    owed_s = worker.profile.prefill_s(worker.prefill_owed) if worker.prefill_owed else 0.0
    extend = max(1, request.input_tokens - matched)
    return (now - request.arrived) + owed_s + worker.profile.prefill_s(extend, matched)
