"""What do the requests in the queue wait for? Noted as the matcher passes them, for explanations only.

A note costs one look at each worker, so a request gets at most one per `_AGAIN_S`, and another one when a hold
begins. What changes in between is not seen. While no worker has room for anything, no request is looked at: then
it is the turn of others until the last of them has started, and from then on what all workers lack.

Invariants: only requests in the queue have notes, at most `_MOST` each: beyond that, a new one replaces
the last.
"""

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from policies.fleet.fleet import Fleet
from policies.fleet.obstacle import EASIEST_FIRST, Obstacle
from policies.model import RequestView, Wait, WorkerId, WorkerView

_AGAIN_S = 1.0
_FULL_AGAIN_S = 0.1
"""The same for the fleet as a whole."""
_MOST = 16


class Notes:
    """Of one request."""

    __slots__ = ("again_at", "waits")

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.again_at = 0.0

    def add(self, wait: Wait) -> None:
        if self.waits and self.waits[-1][1:] == wait[1:]:
            return
        if len(self.waits) >= _MOST:
            self.waits.pop()
        self.waits.append(wait)


class Waits:
    """The notes of one queue."""

    def __init__(self) -> None:
        self.notes: dict[str, Notes] = {}
        """By request."""
        self.started_at = -math.inf
        """When a request was started last."""
        self.lacking: Obstacle | None = None
        """What all workers lacked when none had room for anything."""
        self._full_again_at = -math.inf

    def full(self, waiting: Mapping[str, RequestView], fleet: Fleet, now: float) -> None:
        """No worker has room for anything."""
        if now < self._full_again_at:
            return
        self._full_again_at = now + _FULL_AGAIN_S
        request = next(iter(waiting.values()))
        self.lacking = easiest(request, fleet.eligible(request), frozenset())

    def passed_over(
        self, request: RequestView, among: Sequence[WorkerView], blocked: AbstractSet[WorkerId], now: float
    ) -> None:
        """No worker of `among` takes the request now; the room of those that are `blocked` is left to others."""
        notes = self.notes.get(request.id)
        if notes is None:
            notes = self.notes[request.id] = Notes()
        elif now < notes.again_at:
            return
        notes.again_at = now + _AGAIN_S
        notes.add(Wait(now, easiest(request, among, blocked)))

    def held(self, request: RequestView, worker: WorkerId, now: float) -> None:
        """The request waits by choice for this worker."""
        notes = self.notes.get(request.id)
        if notes is None:
            notes = self.notes[request.id] = Notes()
        notes.again_at = now  # what follows the hold is noted at once
        notes.add(Wait(now, Obstacle.HOLD, worker))

    def of(self, request: RequestView) -> tuple[Wait, ...]:
        """What a waiting request has waited for so far; before the first of them, its turn."""
        notes = self.notes.get(request.id)
        return self._with_full([] if notes is None else notes.waits, request)

    def pop(self, request: RequestView) -> tuple[Wait, ...]:
        """The same of a request that leaves the queue."""
        notes = self.notes.pop(request.id, None)
        return self._with_full([] if notes is None else notes.waits, request)

    def _with_full(self, waits: list[Wait], request: RequestView) -> tuple[Wait, ...]:
        if self.lacking is None or (waits and waits[-1].obstacle is not Obstacle.TURN):
            return tuple(waits)
        since = waits[-1].since if waits else request.arrived
        return (*waits, Wait(max(since, self.started_at), self.lacking))


def obstacle(
    request: RequestView, view: WorkerView, matched_tokens: int, blocked: AbstractSet[WorkerId]
) -> Obstacle | None:
    """Why the request does not start on this worker; None: it could."""
    lacking = view.obstacle(request, matched_tokens)
    return Obstacle.TURN if lacking is None and view.id in blocked else lacking


def easiest(request: RequestView, among: Sequence[WorkerView], blocked: AbstractSet[WorkerId]) -> Obstacle:
    """What stands in the way on the worker where least does: that is what the request waits for.

    Asked as if each held the whole prompt: what is missing even so is missing in any case.
    """
    prompt = request.input_tokens
    found = {
        obstacle(request, view, prompt, blocked) or view.obstacle(request, 0) or Obstacle.TURN for view in among
    }
    return next((one for one in EASIEST_FIRST if one in found), Obstacle.TURN)
