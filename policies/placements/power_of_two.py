"""Which of two random workers has less to do?

Source: the power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001).

Two choices instead of one make the longest line exponentially shorter, and two looks cost the same however large
the fleet is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView
from policies.placements.random_choice import draw


@dataclass(frozen=True, slots=True)
class Settings:
    """Two is the whole setting."""


class PowerOfTwo:
    """Two distinct draws among the workers with room; the less loaded one wins."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._seed = knowledge.rng.getrandbits(64)

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - neither chance nor load depends on time
    ) -> Place | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        bits = draw(request, self._seed)
        first = bits % len(able)
        second = (first + 1 + (bits >> 32) % (len(able) - 1)) % len(able) if len(able) > 1 else first
        worker = min(able[first], able[second], key=lambda w: (w.load_s, w.kv_reserved))
        return Place(Placement(worker.id), Reason.LOAD, matches.get(worker.id, 0), worker.load_s)

    def on(self, event: Event) -> None:
        """Load is counted by the scheduler."""
