"""Who starts next, and where: asks the two policies, and holds them to their bounds.

A queue policy offers candidates, the placement policy accepts one. A placement that would rather wait (`Hold`)
may let a request do so for `hold_s` in all, and leave a worker's room unused for as long, whoever waits. Then it
is asked again with only those workers that have room, and if it still would rather wait, the least loaded one (or
pair) takes the request. A policy that raises an exception, or names workers that do not admit the request, has a
bug, but that is never an outage: the request goes to the least loaded worker, the queue is taken in order of
arrival, and the fault is counted for the driver to report.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from policies.knowledge import Knowledge
from policies.model import Candidate, Hold, Matches, Place, Placement, RequestView, WorkerId, WorkerView
from policies.pairs import Pairs
from policies.placement.least_loaded import LeastLoaded
from policies.placement.least_loaded import Settings as LeastLoadedSettings
from policies.prefixes import Prefixes
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.roster import Roster
from policies.settings import SchedulerSettings


class NoRoomError(Exception):
    """A placement policy has named workers that do not admit the request."""


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
        self,
        queue: QueuePolicy,
        placement: PlacementPolicy,
        roster: Roster,
        prefixes: Prefixes,
        settings: SchedulerSettings,
    ) -> None:
        self.hold_until: float | None = None
        self.faults = Faults()
        self._queue = queue
        self._placement = placement
        self._fallback = Pairs(LeastLoaded(LeastLoadedSettings()), Knowledge(), settings.disaggregate)
        self._fallback.choose_among(roster.able)
        self._roster = roster
        self._prefixes = prefixes
        self._hold_s = settings.hold_s
        self._held: dict[str, float] = {}
        """Since when a request has been waiting beside workers with room."""
        self._unused: dict[WorkerId, float] = {}
        """Since when a worker's room has been left unused for requests that wait."""
        self._passed: dict[WorkerId, float] = {}
        """The same, as far as the present question has come."""

    def next(self, now: float) -> Choice | None:
        """The request that starts now, if any can; nothing is committed."""
        self.hold_until = None
        self._passed = {}
        choice = self._next(now)
        if choice is None:
            self._unused = self._passed
        else:
            self._unused.pop(choice.place.placement.decode, None)
        return choice

    def forget(self, request: RequestView) -> None:
        """The request has left the queue."""
        self._held.pop(request.id, None)
        if not len(self._queue):
            self._unused.clear()

    def _next(self, now: float) -> Choice | None:
        views = self._roster.views()
        if not any(view.room.open for view in views):
            return None
        for request, keep_off, bound in self._candidates(views, now):
            workers = self._able(request, keep_off, bound)
            if not any(view.room.open for view in workers):
                continue
            matches = self._prefixes.match(request)
            if bound is not None:
                place = bound if _admitted(bound.placement, request, matches, workers) else None
            else:
                place = self._choose(request, matches, workers, now)
            if place is not None:
                return Choice(request, place, matches, bound is not None)
        return None

    def _candidates(self, views: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        try:
            yield from self._queue.candidates(views, now)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            yield from map(Candidate, sorted(self._queue.waiting(), key=lambda request: request.arrived))

    def _able(self, request: RequestView, keep_off: frozenset[WorkerId], bound: Place | None) -> list[WorkerView]:
        workers = self._roster.able(request)
        if bound is not None:
            return [view for view in workers if view.id in bound.placement]
        return [view for view in workers if view.id not in keep_off] if keep_off else workers

    def _choose(
        self, request: RequestView, matches: Matches, workers: list[WorkerView], now: float
    ) -> Place | None:
        choice = self._ask(request, matches, workers, now)
        if isinstance(choice, Hold):
            workers = [view for view in workers if _has_room(view, request, matches.get(view.id, 0))]
            if self._may_wait(request, choice, workers, now):
                return None
            choice = self._ask(request, matches, workers, now)
            if isinstance(choice, Hold):
                return self._fall_back(request, matches, workers, now)
        return choice

    def _ask(
        self, request: RequestView, matches: Matches, workers: list[WorkerView], now: float
    ) -> Place | Hold | None:
        try:
            choice = self._placement.choose(request, matches, workers, now)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            return self._fall_back(request, matches, workers, now)
        if isinstance(choice, Place) and not _admitted(choice.placement, request, matches, workers):
            self.faults.add(NoRoomError(f"{choice.placement} does not admit the request that was placed there"))
            return self._fall_back(request, matches, workers, now)
        return choice

    def _fall_back(
        self, request: RequestView, matches: Matches, workers: list[WorkerView], now: float
    ) -> Place | None:
        choice = self._fallback.choose(request, matches, workers, now)
        return choice if isinstance(choice, Place) else None

    def _may_wait(self, request: RequestView, hold: Hold, beside: list[WorkerView], now: float) -> bool:
        """Whether the request may still wait beside workers with room; if so, until when is noted."""
        since = self._held.setdefault(request.id, now)
        for view in beside:
            self._passed[view.id] = self._unused.setdefault(view.id, now)
            since = min(since, self._passed[view.id])
        until = min(hold.until, since + self._hold_s)
        if until > now:
            self.hold_until = until if self.hold_until is None else min(until, self.hold_until)
        return until > now


def _admitted(placement: Placement, request: RequestView, matches: Matches, workers: Sequence[WorkerView]) -> bool:
    """Whether the request can start there now, on one worker or on a pair."""
    views = {view.id: view for view in workers if view.id in placement}
    decoder = views.get(placement.decode)
    if decoder is None:
        return False
    matched = matches.get(decoder.id, 0)
    if placement.prefill is None:
        return decoder.admits(request, matched)
    prefiller = views.get(placement.prefill)
    if prefiller is None or prefiller is decoder:
        return False
    return decoder.admits_decode(request, matched) and prefiller.admits_prefill(
        request, matches.get(prefiller.id, 0)
    )


def _has_room(view: WorkerView, request: RequestView, matched: int) -> bool:
    """Whether the worker could take the request, or what it is there for of it."""
    return (
        view.admits(request, matched)
        or (not view.room.decodes and view.admits_prefill(request, matched))
        or (not view.room.prefills and view.admits_decode(request, matched))
    )
