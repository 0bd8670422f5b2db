"""Which worker would finish its present work first? Load in time, by each worker's own profile.

Source: least outstanding work, the baseline of every load balancer; in measured seconds here.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, Reason
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Load has nothing to set."""


class LeastLoaded(PlacementPolicy):
    """Prefill owed plus one decode step of every sequence, in seconds; ties go to the emptier KV cache."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        workers = sorted(question.workers, key=lambda worker: (worker.load_s, worker.kv_reserved))
        return [(worker, worker.load_s, Reason.LOAD) for worker in workers]
