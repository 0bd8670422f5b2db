"""Whose prompt has the longest part in some worker's cache?

Source: LPM, Longest Prefix Match, the order of SGLang's scheduler (arXiv 2312.07104, section 3).

Good for throughput, blind to who is asking. It ages, because with one busy prefix a cold prompt would wait for
ever: a request that has waited `patience_s` comes first, oldest first, and reserves a worker if it fits nowhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from policies.events import NONE
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.lanes import Lanes, arrival, heads
from policies.protocol import OrderPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before those with longer matches."""
    window: int = 64
    """Requests compared per step, the oldest ones."""


class Lpm(OrderPolicy):
    """The oldest requests, longest match first."""

    hears = NONE

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._match = knowledge.prefixes.match
        self._lanes = Lanes()

    def __len__(self) -> int:
        return len(self._lanes)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        self._lanes.push(request, again=again)

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        self._lanes.remove(request)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._lanes)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        late, window = now - self._settings.patience_s, self._settings.window
        lanes = (heads(lane, window) for lane in self._lanes.with_room(workers))
        oldest = list(islice(merge(*lanes, key=arrival), window))
        for request in sorted((one for one in oldest if one.arrived < late), key=arrival):
            yield Candidate(request, overdue=True)
        for request in sorted((one for one in oldest if one.arrived >= late), key=self._longest_match):
            yield Candidate(request)

    def _longest_match(self, request: RequestView) -> tuple[int, float, str]:
        return -max(self._match(request).values(), default=0), *arrival(request)
