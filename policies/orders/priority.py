"""Who matters most? Strict levels, lower first as in vLLM, and within a level order of arrival.

Source: the priority scheduling of vLLM (`--scheduling-policy priority`), with ageing.

Every `promote_s` of waiting counts as one level, so the lowest level is slow and never starved. A request that
fits nowhere is passed by those behind it in its level first, then by lower levels, but not where only the
prefill window keeps it waiting. It reserves a worker as soon as a lower level could pass it, so that its own
wait is for what runs there, not for what still comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from policies.events import NONE
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.lanes import Lanes, heads
from policies.protocol import OrderPolicy

_WINDOWS = 4
"""Windows of requests that are offered per step, at most."""


@dataclass(frozen=True, slots=True)
class Settings:
    promote_s: float = 5.0
    """Waiting so long is worth one level."""
    patience_s: float = 10.0
    """From here on a request reserves a worker if it fits nowhere, although nothing below it waits."""
    window: int = 64
    """Requests of each level (and lane) that are offered per step."""


class Priority(OrderPolicy):
    """Lanes by level, merged by level less what waiting is worth, then by arrival."""

    hears = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._levels: dict[int, Lanes] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, request: RequestView, *, again: bool = False) -> None:
        self._levels.setdefault(request.priority, Lanes()).push(request, again=again)
        self._count += 1

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        level = self._levels[request.priority]
        level.remove(request)
        self._count -= 1
        if not level:
            del self._levels[request.priority]

    def waiting(self) -> Iterator[RequestView]:
        return (request for level in self._levels.values() for request in level)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        late, window, promote_s = now - self._settings.patience_s, self._settings.window, self._settings.promote_s

        def place(request: RequestView) -> tuple[float, float, str]:
            return request.priority - (now - request.arrived) // promote_s, request.arrived, request.id

        lanes = [lane for level in self._levels.values() for lane in level.with_room(workers)]
        lowest = max((place(next(reversed(lane.values())))[0] for lane in lanes), default=0.0)
        first: float | None = None
        for request in islice(merge(*(heads(lane, window) for lane in lanes), key=place), _WINDOWS * window):
            level = place(request)[0]
            first = level if first is None else first
            yield Candidate(request, overdue=request.arrived < late or level < lowest, in_turn=level == first)
