"""Whose prompt has the longest part in some worker's cache?

Longest Prefix Match, the order of SGLang's scheduler (arXiv 2312.07104, section 3): good for throughput, blind to
who is asking. It ages, because with one busy prefix a cold prompt would wait for ever.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.queue.ageing import aged_first, arrival


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
        self._waiting: OrderedDict[str, RequestView] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        self._waiting[request.id] = request
        if again:  # back to where it stood
            for younger in [other.id for other in self._waiting.values() if other.arrived > request.arrived]:
                self._waiting.move_to_end(younger)

    def remove(self, request: RequestView) -> None:
        del self._waiting[request.id]

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        match = self._knowledge.prefixes.match
        oldest = islice(self._waiting.values(), self._settings.window)
        ordered = sorted(oldest, key=lambda r: (-max(match(r).values(), default=0), *arrival(r)))
        return aged_first(ordered, workers, now, self._settings.patience_s)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._waiting.values())

    def on(self, event: Event) -> None:
        """What is cached is the scheduler's knowledge; there are no accounts."""
