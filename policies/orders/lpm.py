"""Whose prompt has the longest part in some worker's cache?

Source: LPM, Longest Prefix Match, the order of SGLang's scheduler (arXiv 2312.07104, section 3).

Good for throughput, blind to who is asking. It ages, because with one busy prefix a cold prompt would wait for
ever.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.ageing import aged_first, arrival
from policies.orders.kit.lanes import Backlog

_EVERYBODY = ""
"""The one group: nobody's turn matters."""


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before those with longer matches."""
    window: int = 64
    """Requests compared per step, the oldest ones."""


class Lpm:
    """The oldest requests, longest match first."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._knowledge = knowledge
        self._waiting: Backlog[str] = Backlog()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        self._waiting.push(_EVERYBODY, request, again=again)

    def remove(self, request: RequestView) -> None:
        self._waiting.remove(_EVERYBODY, request)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        match = self._knowledge.prefixes.match
        lanes = self._waiting.servable(workers).get(_EVERYBODY, {})
        oldest = islice(merge(*(lane.values() for lane in lanes.values()), key=arrival), self._settings.window)
        ordered = sorted(oldest, key=lambda r: (-max(match(r).values(), default=0), *arrival(r)))
        return aged_first(ordered, workers, now, self._settings.patience_s)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._waiting)

    def on(self, event: Event) -> None:
        """What is cached is the scheduler's knowledge; there are no accounts."""
