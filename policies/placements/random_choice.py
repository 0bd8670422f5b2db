"""Anybody with room? A seeded choice among them: the baseline that knows nothing.

Source: random load balancing, as in nginx and Envoy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    """Chance has nothing to set."""


class RandomChoice:
    """The draw follows from the request's id, so that asking twice gives the same worker."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._seed = knowledge.rng.getrandbits(64)

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - chance does not depend on time
    ) -> Place | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        worker = able[draw(request, self._seed) % len(able)]
        return Place(Placement(worker.id), Reason.CHANCE, matches.get(worker.id, 0))

    def on(self, event: Event) -> None:
        """Chance has no memory."""


def draw(request: RequestView, seed: int) -> int:
    """64 random bits that belong to this request."""
    return xxhash.xxh3_64_intdigest(request.id.encode(), seed)
