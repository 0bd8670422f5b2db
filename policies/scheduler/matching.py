"""Who starts next, and where: asks the two policies, and holds them to their bounds.

A queue policy offers candidates, the placement policy accepts one. A placement that would rather wait (`Hold`)
may let a request do so for `hold_s` in all, and leave a worker's room unused for as long, whoever waits. Then it
is asked again with only those workers that have room, and if it still would rather wait, the least loaded one (or
pair) takes the request. A policy that raises an exception, or names workers that do not admit the request, has a
bug, but that is never an outage: the request goes to the least loaded worker, the queue is taken in order of
arrival, and the fault is counted for the driver to report.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from policies.fleet.fleet import Fleet
from policies.knowledge import Knowledge
from policies.model import Candidate, Hold, Matches, Place, Placement, RequestView, WorkerId, WorkerView
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.prefixes.index import Prefixes
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.scheduler.disaggregation import Pairs
from policies.scheduler.faults import Faults
from policies.scheduler.refusals import Refusals
from policies.scheduler.settings import SchedulerSettings


class NoRoomError(Exception):
    """A placement policy has named workers that do not admit the request."""


class Choice(NamedTuple):
    """A request that starts now. `bound`: it had chosen its worker before (early binding)."""

    request: RequestView
    place: Place
    matches: Matches
    bound: bool


class Chooser:
    """Asks the policies of one pool. `hold_until` says when to ask again, after `next` has found nobody."""

    def __init__(
        self,
        queue: QueuePolicy,
        placement: PlacementPolicy,
        fleet: Fleet,
        prefixes: Prefixes,
        settings: SchedulerSettings,
    ) -> None:
        self.hold_until: float | None = None
        self.faults = Faults()
        self._queue = queue
        self._placement = placement
        self._fallback = Pairs(LeastLoaded(LeastLoadedSettings()), Knowledge(), settings.disaggregate)
        self._fallback.choose_among(fleet.eligible)
        self._fleet = fleet
        self._refusals = Refusals(fleet, prefixes, _has_room)
        self._hold_s = settings.hold_s
        self._held: dict[str, float] = {}
        """Since when a request has been waiting beside workers with room."""
        self._unused: dict[WorkerId, float] = {}
        """Since when a worker's room has been left unused for requests that wait."""
        self._passed: dict[WorkerId, float] = {}
        """The same, as far as the present question has come."""
        self._used: dict[WorkerId, float] = {}
        """When somebody started on a worker last, since when its room cannot have been unused for longer."""

    def next(self, now: float) -> Choice | None:
        """The request that starts now, if any can; nothing is committed."""
        self.hold_until = None
        self._passed = {}
        choice = self._next(now)
        if choice is None:
            used = self._used
            self._unused = {worker: max(since, used.get(worker, since)) for worker, since in self._passed.items()}
        else:
            worker = choice.place.placement.decode
            self._unused.pop(worker, None)
            if self._passed:
                self._used[worker] = now
        return choice

    def forget(self, request: RequestView) -> None:
        """The request has left the queue."""
        self._held.pop(request.id, None)
        self._refusals.forget(request)
        if not len(self._queue):
            self._unused.clear()
            self._used.clear()

    def _next(self, now: float) -> Choice | None:
        views = self._fleet.views()
        if not _any_open(views):
            return None
        waiting: set[str] = set()
        for candidate in self._candidates(views, now):
            if candidate.behind is not None and candidate.behind.id not in waiting:
                continue
            choice: Choice | Hold | None
            if candidate.bound is not None:
                choice = self._start_there(candidate, candidate.bound)
            elif (told := self._refusals.stands(candidate, now)) is not None:
                choice = told.hold
                if told.hold is not None:
                    self._pass_by(told.beside, told.hold.until)
            else:
                choice = self._start_anywhere(candidate, now)
            if isinstance(choice, Choice):
                return choice
            if choice is not None:
                waiting.add(candidate.request.id)
        return None

    def _candidates(self, views: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        try:
            yield from self._queue.candidates(views, now)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            yield from map(Candidate, sorted(self._queue.waiting(), key=lambda request: request.arrived))

    def _start_there(self, candidate: Candidate, bound: Place) -> Choice | None:
        """On the worker or pair that was chosen when the request arrived."""
        request = candidate.request
        workers = [view for view in self._fleet.eligible(request) if view.id in bound.placement]
        if not _any_open(workers):
            return None
        matches = self._refusals.matches(request)
        admitted = _admitted(bound.placement, request, matches, workers)
        return Choice(request, bound, matches, bound=True) if admitted else None

    def _start_anywhere(self, candidate: Candidate, now: float) -> Choice | Hold | None:
        request, keep_off = candidate.request, candidate.keep_off
        workers = self._fleet.eligible(request)
        if keep_off:
            workers = [view for view in workers if view.id not in keep_off]
        if not _any_open(workers):
            return None
        matches = self._refusals.matches(request)
        choice = self._ask(request, matches, workers, now)
        if isinstance(choice, Hold):
            workers = [view for view in workers if _has_room(view, request, matches.get(view.id, 0))]
            if (hold := self._may_wait(candidate, matches, choice, workers, now)) is not None:
                return hold
            choice = self._ask(request, matches, workers, now)
            if isinstance(choice, Hold):
                choice = self._fall_back(request, matches, workers, now)
        if choice is None:
            self._refusals.no_room(candidate, matches)
            return None
        return Choice(request, choice, matches, bound=False)

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

    def _may_wait(
        self, candidate: Candidate, matches: Matches, hold: Hold, workers: list[WorkerView], now: float
    ) -> Hold | None:
        """How long the request may still wait beside these workers with room, if at all; that is noted."""
        since = self._held.setdefault(candidate.request.id, now)
        beside = {view.id: self._unused.setdefault(view.id, now) for view in workers}
        until = min(hold.until, min(beside.values(), default=since) + self._hold_s, since + self._hold_s)
        if until <= now:
            return None
        hold = Hold(hold.worker, until)
        self._pass_by(beside, until)
        self._refusals.holds(candidate, matches, hold, beside)
        return hold

    def _pass_by(self, beside: Mapping[WorkerId, float], until: float) -> None:
        """Somebody waits although there is room beside: until then, and leaves it unused since then."""
        self._passed.update(beside)
        self.hold_until = until if self.hold_until is None else min(until, self.hold_until)


def _any_open(views: Sequence[WorkerView]) -> bool:
    for view in views:  # noqa: SIM110 - it is asked all the time, and a generator takes three times as long
        if view.room.open:
            return True
    return False


def _view(worker: WorkerId, workers: Sequence[WorkerView]) -> WorkerView | None:
    for view in workers:
        if view.id == worker:
            return view
    return None


def _admitted(placement: Placement, request: RequestView, matches: Matches, workers: Sequence[WorkerView]) -> bool:
    """Whether the request can start there now, on one worker or on a pair."""
    decoder = _view(placement.decode, workers)
    if decoder is None:
        return False
    matched = matches.get(decoder.id, 0)
    if placement.prefill is None:
        return decoder.admits(request, matched)
    prefiller = _view(placement.prefill, workers)
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
