"""Who starts next, and where: asks the two policies, and holds them to their bounds.

A queue policy offers candidates, the placement policy accepts one. A placement that would rather wait (`Hold`)
may let a request do so for `hold_s` in all; then it is asked again with only those workers that have room. A
policy that raises an exception is a bug, but never an outage: the least loaded worker takes the request, and the
fault is counted for the driver to report.
"""

from typing import NamedTuple

from policies.model import Hold, Matches, Place, RequestView, WorkerId, WorkerView
from policies.placement.least_loaded import LeastLoaded
from policies.placement.least_loaded import Settings as LeastLoadedSettings
from policies.prefixes import Prefixes
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.roster import Roster


class Choice(NamedTuple):
    """A request that starts now. `bound`: it had chosen its worker before (early binding)."""

    request: RequestView
    place: Place
    matches: Matches
    bound: bool


class Faults:
    """Exceptions of policies: how many, and the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.last: Exception | None = None

    def add(self, fault: Exception) -> None:
        self.count += 1
        self.last = fault


class Chooser:
    """Asks the policies of one pool. `hold_until` says when to ask again, after `next` has found nobody."""

    def __init__(
        self, queue: QueuePolicy, placement: PlacementPolicy, roster: Roster, prefixes: Prefixes, hold_s: float
    ) -> None:
        self.hold_until: float | None = None
        self.faults = Faults()
        self._queue = queue
        self._placement = placement
        self._fallback = LeastLoaded(LeastLoadedSettings())
        self._roster = roster
        self._prefixes = prefixes
        self._hold_s = hold_s
        self._held: dict[str, float] = {}
        """Since when a request has been waiting beside workers with room."""

    def next(self, now: float) -> Choice | None:
        """The request that starts now, if any can; nothing is committed."""
        views = self._roster.views()
        if not any(view.room.open for view in views):
            return None
        for request, keep_off, bound in self._queue.candidates(views, now):
            workers = self._able(request, keep_off, bound)
            if not any(view.room.open for view in workers):
                continue
            matches = self._prefixes.match(request)
            if bound is not None:
                place = bound if workers[0].admits(request, matches.get(workers[0].id, 0)) else None
            else:
                place = self._choose(request, matches, workers, now)
            if place is not None:
                return Choice(request, place, matches, bound is not None)
        return None

    def forget(self, request: RequestView) -> None:
        """The request has left the queue."""
        self._held.pop(request.id, None)

    def _able(self, request: RequestView, keep_off: frozenset[WorkerId], bound: Place | None) -> list[WorkerView]:
        workers = self._roster.able(request)
        if bound is not None:
            return [view for view in workers if view.id == bound.placement.decode]
        return [view for view in workers if view.id not in keep_off] if keep_off else workers

    def _choose(
        self, request: RequestView, matches: Matches, workers: list[WorkerView], now: float
    ) -> Place | None:
        choice = self._ask(request, matches, workers, now)
        if isinstance(choice, Hold):
            if self._may_wait(request, choice, now):
                return None
            workers = [view for view in workers if view.admits(request, matches.get(view.id, 0))]
            choice = self._ask(request, matches, workers, now)
        return choice if isinstance(choice, Place) else None

    def _ask(
        self, request: RequestView, matches: Matches, workers: list[WorkerView], now: float
    ) -> Place | Hold | None:
        try:
            return self._placement.choose(request, matches, workers, now)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            return self._fallback.choose(request, matches, workers, now)

    def _may_wait(self, request: RequestView, hold: Hold, now: float) -> bool:
        """Whether the request may still wait for a better worker; if so, until when is noted."""
        until = min(hold.until, self._held.setdefault(request.id, now) + self._hold_s)
        if until > now:
            self.hold_until = until if self.hold_until is None else min(until, self.hold_until)
        return until > now
