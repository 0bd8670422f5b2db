"""Which of two random workers has less to do?

Source: the power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001).

Two choices instead of one make the largest load exponentially smaller, and two looks cost the same however large
the fleet is. The other workers follow by load: they are used where the two have no room.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.knowledge import Knowledge
from policies.model import Question, Ranked, Reason
from policies.placements.kit.draw import draw
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Two is the whole setting."""


class PowerOfTwo(PlacementPolicy):
    """Two distinct draws; the less loaded one wins."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._seed = knowledge.rng.getrandbits(64)

    def rank(self, question: Question) -> list[Ranked]:
        workers = question.workers
        bits = draw(question.request, self._seed)
        first = bits % len(workers)
        second = (first + 1 + (bits >> 32) % (len(workers) - 1)) % len(workers) if len(workers) > 1 else first
        drawn = {first, second}
        order = sorted(
            range(len(workers)), key=lambda at: (at not in drawn, workers[at].load_s, workers[at].kv_reserved)
        )
        return [(workers[at], workers[at].load_s, Reason.LOAD) for at in order]
