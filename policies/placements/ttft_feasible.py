"""Would the worker that holds the prefix give the first token in time, and if not, who is fastest?

Source: SMetric (arXiv 2607.08565) and DualMap (arXiv 2602.06502), the rule that both share.

Affinity as long as it is affordable: the worker with the longest match keeps the request unless its predicted time
to first token breaks the target; then the worker with the least prediction takes it, whatever it holds.

    prediction = waited so far + until there is room + prefill owed there + the request's own uncached prefill

[ours] Times come from each worker's measured profile. Of several equally long matches the fastest is the affine
one. An affine worker without room that would still be in time is worth waiting for (`hold`); as the time waited
counts, a request does so no longer than its target allows. Without any match the fastest worker takes it.

Invariant: unless a request is held, it leaves its affine worker only for one with a smaller prediction, or
because there is no room.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Hold, Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    target_s: float = 1.0
    """Time to first token that a request may take, its wait included."""
    hold: bool = True
    """May wait for the affine worker while it is full (the scheduler bounds it by `hold_ms`)."""


class TtftFeasible:
    """Predictions over all workers, with room or without; the policy keeps no state."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None

        def ttft(worker: WorkerView) -> float:
            return predicted_ttft(request, worker, matches.get(worker.id, 0), now)

        longest = max((matches.get(worker.id, 0) for worker in workers), default=0)
        fastest = min(able, key=ttft)
        if not longest:
            return self._place(fastest, matches, Reason.MISS, ttft(fastest))
        affine = min((w for w in workers if matches.get(w.id, 0) == longest), key=ttft)
        in_time = ttft(affine) <= self._settings.target_s
        if affine.admits(request, longest):
            if in_time or ttft(affine) <= ttft(fastest):
                return self._place(affine, matches, Reason.HIT, ttft(affine))
        elif in_time and self._settings.hold and affine.room.expected_at > now:
            return Hold(affine.id, affine.room.expected_at)
        return self._place(fastest, matches, Reason.SPILL, ttft(fastest))

    def on(self, event: Event) -> None:
        """Matches, load and profiles are the scheduler's."""

    def _place(self, worker: WorkerView, matches: Matches, reason: Reason, ttft_s: float) -> Place:
        return Place(Placement(worker.id), reason, matches.get(worker.id, 0), ttft_s)


def predicted_ttft(request: RequestView, worker: WorkerView, matched: int, now: float) -> float:
    """Seconds from the request's arrival to its first token, if this worker gets it as soon as it may."""
    owed_s = worker.profile.prefill_s(worker.prefill_owed) if worker.prefill_owed else 0.0
    if not worker.admits(request, matched):  # when there is room again, what is owed now is done
        owed_s = max(owed_s, worker.room.expected_at - now)
    extend = max(1, request.input_tokens - matched)
    return (now - request.arrived) + owed_s + worker.profile.prefill_s(extend, matched)
