"""Who would finish its present work first? Load in time, by each worker's own profile.

Source: least outstanding work, the baseline of every load balancer; in measured seconds here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    """Load has nothing to set."""


class LeastLoaded:
    """Prefill owed plus one decode step of every sequence, in seconds; ties go to the emptier KV cache."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - load does not depend on time
    ) -> Place | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        best = min(able, key=lambda worker: (worker.load_s, worker.kv_reserved))
        reason = Reason.ONLY_CHOICE if len(able) == 1 else Reason.LOAD
        return Place(Placement(best.id), reason, matches.get(best.id, 0), best.load_s)

    def on(self, event: Event) -> None:
        """Load is counted by the scheduler."""
