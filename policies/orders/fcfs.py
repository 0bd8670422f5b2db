"""Who came first? First come, first served, except past a request that cannot start anywhere yet.

Source: first come, first served, vLLM's own default.

Requests that fit nowhere are passed over, but not where only the prefill window keeps them waiting. One that has
waited `patience_s` reserves a worker. Room beside which an earlier request waits by choice for a better worker
may be used by later ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from policies.events import NONE
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.lanes import Lanes, arrival, heads
from policies.protocol import OrderPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 1.0
    """How long a request may be overtaken by those that fit before a worker is reserved for it."""
    window: int = 64
    """Requests of a lane that are offered per step."""


class Fcfs(OrderPolicy):
    """Lanes, merged by arrival."""

    hears = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
        late = now - self._settings.patience_s
        lanes = (heads(lane, self._settings.window) for lane in self._lanes.with_room(workers))
        first = True
        for request in merge(*lanes, key=arrival):
            yield Candidate(request, overdue=request.arrived < late, in_turn=first)
            first = False
