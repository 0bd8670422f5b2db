"""Which waiting request starts now, and where: the one place that joins order, ranking, room and waiting.

The order offers candidates, the placement ranks the workers for each; the matcher decides, candidate by candidate:

    no worker has room for it         it is passed over; if it is overdue, one worker is reserved for it
    the best-ranked worker has room   it starts there
    only a worse one has room         it waits for the best one (a hold) while that is worth it, else it starts
    it was named a worker on arrival  (`binding: early`) it starts there as soon as that one has room

Worth it, where costs are seconds: the prefill that the better worker saves exceeds `hold_gain` times the wait for
room there, the prefills of earlier candidates that wait for the same worker included. Where costs have another
unit, the first choice is kept as long as it is expected to have room within the budget. The budget is `hold_s` in
all per request, under either rule.

Room beside which a candidate waits by choice stands by for it: later candidates use it only if their order says
that they may (`Candidate.may_pass`), and the `Placed` event then says `borrowed`. So for each worker the
candidates that would start there are served in the order's sequence, and an order's guarantee holds among the
requests that contend for a worker (`policies/orders/dlpm.py` states the bound).

A policy that raises, ranks a worker it was not asked about, leaves one out or returns NaN has a bug, but that is
never an outage: it is counted, and the least loaded worker takes the request.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from policies.fleet.fleet import Fleet
from policies.model import (
    Candidate,
    Matches,
    Place,
    Placement,
    Question,
    Ranked,
    Rated,
    Reason,
    RequestView,
    Wait,
    WorkerFacts,
    WorkerId,
    WorkerView,
    reserve,
)
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.prefixes.index import Prefixes
from policies.protocol import OrderPolicy, PlacementPolicy
from policies.scheduler.disaggregation import Disaggregation, Option
from policies.scheduler.faults import Faults
from policies.scheduler.reservations import Reservations
from policies.scheduler.settings import SchedulerSettings
from policies.scheduler.waits import Waits, obstacle
from policies.value import value

_LOOKS = 16
"""Candidates that are matched against caches and ranked in one step, at most."""

_SHARE = 8
"""A request that is passed over keeps at most one in this many of the fleet's slots and KV tokens unused."""

_MOST_RATED = 32
"""Workers of a ranking that are kept for explanations."""

Fits = Callable[[WorkerView, RequestView, int], bool]


class BadRankingError(Exception):
    """A placement has not ranked exactly the workers that it was asked about, or with a cost that is no number."""


class BadOrderError(Exception):
    """An order has forgotten requests that wait, or offers some that do not, or one of them again and again."""


@value
class Match:
    """A request that starts now."""

    request: RequestView
    place: Place
    matches: Matches
    borrowed: bool
    """It uses room beside which an earlier candidate waits by choice."""


@dataclass(slots=True, eq=False)
class _Hold:
    """A request that waits by choice for a better worker than those with room."""

    worker: WorkerId
    since: float
    """When it began to wait by choice, for this worker or an earlier one: the budget counts from here."""
    until: float
    """When the decision is made anew at the latest."""
    prefill_s: float
    """Its own prefill at that worker: a later candidate waits for that as well."""
    matches: Matches
    accepts: set[WorkerId]
    """Workers whose room ends the wait: the one it waits for, and those that hold as much of the prompt."""


@dataclass(slots=True, eq=False)
class _Walk:
    """One pass over the candidates."""

    now: float
    looks: int = 0
    holds: list[tuple[RequestView, _Hold]] = field(default_factory=list)
    """Candidates passed so far that wait by choice."""
    claimed: set[WorkerId] = field(default_factory=set)
    """Workers left to candidates passed so far, by candidates whose turn comes later."""
    closed: set[WorkerId] = field(default_factory=set)
    """Workers left to overdue candidates passed so far, by all others."""
    ahead_s: dict[WorkerId, float] = field(default_factory=dict)
    """Prefill of those, by the worker for which they wait."""

    def add(self, request: RequestView, hold: _Hold) -> None:
        self.holds.append((request, hold))
        self.ahead_s[hold.worker] = self.ahead_s.get(hold.worker, 0.0) + hold.prefill_s


class Matcher:
    """Joins the policies of one pool. After `next` has found nothing, `wake_at` says when to ask again."""

    def __init__(
        self,
        order: OrderPolicy,
        placement: PlacementPolicy,
        fleet: Fleet,
        prefixes: Prefixes,
        disaggregation: Disaggregation,
        *,
        settings: SchedulerSettings,
    ) -> None:
        self.wake_at: float | None = None
        self.faults = Faults()
        self.reservations = Reservations()
        self.waits = Waits()
        self._order = order
        self._placement = placement
        self._fallback = LeastLoaded(LeastLoadedSettings())
        self._fleet = fleet
        self._prefixes = prefixes
        self._disaggregation = disaggregation
        self._settings = settings
        self._holds: dict[str, _Hold] = {}

    def next(self, waiting: Mapping[str, RequestView], now: float) -> Match | None:
        """The request that starts now, if any can. Asking commits nothing but the beginning of a hold.

        `waiting`: all requests in the queue by id. The order arranges them; what it forgets or invents is a fault.
        """
        self.wake_at = None
        workers = self._fleet.open_views()
        if not workers:
            self.waits.full(waiting, self._fleet, now)
            return None
        walk = _Walk(now)
        for candidate in self._candidates(waiting, workers, now):
            match = self._consider(candidate, walk)
            if match is not None:
                return match
            if walk.looks >= _LOOKS:
                break
        self.wake_at = min((hold.until for _, hold in walk.holds), default=None)
        return None

    def name(self, question: Question) -> Placement:
        """`binding: early`: the best-ranked worker or pair, where the workers' load counts what waits for them."""
        option = self._disaggregation.options(question)[0]
        best, _, _ = self._rank(question._replace(workers=option.workers))[0]
        if not option.decoders:
            return Placement(best.id)
        return Placement(option.decoders[0].id, best.id)

    def look(self, request: RequestView, now: float) -> list[Rated]:
        """How the workers look to a waiting request now, best first, and why it does not start there.

        For explanations: it commits nothing, but takes as long as placing the request does.
        """
        able = self._fleet.eligible(request)
        if not able:
            return []
        matches, blocked = self._prefixes.match(request), self.reservations.blocked(request)
        question = Question(request, matches, able, now)
        rows: list[Rated] = []
        for option in self._disaggregation.options(question):
            for view, cost, _ in self._rank(question._replace(workers=option.workers)):
                matched = matches.get(view.id, 0)
                rows.append((view.id, cost, matched, obstacle(request, view, matched, blocked)))
        return rows

    def forget(self, request: RequestView) -> tuple[Wait, ...]:
        """The request has left the queue. Returns what it has waited for."""
        self._holds.pop(request.id, None)
        self.reservations.release(request)
        waits = self.waits
        return waits.pop(request) if waits.notes or waits.lacking is not None else ()

    def remove_worker(self, worker: WorkerId) -> None:
        """The worker has left the fleet."""
        self.reservations.remove_worker(worker)

    # -- candidates

    def _candidates(
        self, waiting: Mapping[str, RequestView], workers: Sequence[WorkerView], now: float
    ) -> Iterator[Candidate]:
        """What the order offers; by arrival where it raises, has lost requests, or has some that do not wait.

        At most as many as wait, so that candidates without end do not stop the loop.
        """
        try:
            for number, candidate in enumerate(self._order.candidates(workers, now)):
                if number >= len(waiting):
                    raise BadOrderError(  # noqa: TRY301 - handled as what the order raises itself
                        f"{len(waiting)} requests wait, and the order offers more"
                    )
                if waiting.get(candidate.request.id) is not candidate.request:
                    raise BadOrderError(  # noqa: TRY301 - handled as what the order raises itself
                        f"the order offers {candidate.request.id}, which does not wait"
                    )
                yield candidate
            if len(self._order) != len(waiting):
                raise BadOrderError(  # noqa: TRY301
                    f"{len(waiting)} requests wait, and the order holds {len(self._order)}"
                )
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            yield from map(Candidate, sorted(waiting.values(), key=lambda request: request.arrived))

    def _consider(self, candidate: Candidate, walk: _Walk) -> Match | None:
        request = candidate.request
        able = self._fleet.eligible(request)
        blocked = self.reservations.blocked(request)
        hold = self._holds.get(request.id)
        if hold is not None and self._stands(request, hold, able, blocked, walk.now):
            walk.add(request, hold)
            return None
        if walk.holds and not candidate.may_pass:
            blocked = blocked | self._standing_by(able, walk)
        if walk.closed:
            blocked = blocked.union(walk.closed)
        if walk.claimed and not candidate.in_turn:
            blocked = blocked.union(walk.claimed)
        if blocked:  # a reservation goes before claims, or the two requests would wait for each other
            blocked = blocked.difference((self.reservations.of(request),))
        match, held = None, len(walk.holds)
        if self._may_fit(request, able, blocked):
            match = self._match(request, able, blocked, walk)
        if match is None and len(walk.holds) == held:
            if _is_beyond(request, able):
                match = self._refused_by_engine(request, able, blocked, walk)
            if match is None:
                self._pass_over(candidate, able, blocked, walk)
        return match

    def _pass_over(
        self, candidate: Candidate, able: Sequence[WorkerView], blocked: frozenset[WorkerId], walk: _Walk
    ) -> None:
        """No worker has room for the candidate. What do those behind it leave to it?

        A small request claims every worker: against candidates whose turn comes later, and against all once it is
        overdue. A large one claims those where only the prefill window keeps it waiting; once it is overdue, one
        worker is reserved for it.
        """
        request, named = candidate.request, candidate.request.bound
        among = able if named is None else [view for view in able if view.id in named]
        self.waits.passed_over(request, among, blocked, walk.now)
        large = False
        for view in among:
            if _is_small(request, view.facts):
                (walk.closed if candidate.overdue else walk.claimed).add(view.id)
            else:
                large = True
                if view.room.open and view.admits_decode(request, 0):
                    walk.claimed.add(view.id)
        if large and candidate.overdue:
            self.reservations.reserve(request, among, len(able))

    def _refused_by_engine(
        self, request: RequestView, able: list[WorkerView], blocked: frozenset[WorkerId], walk: _Walk
    ) -> Match | None:
        """By its estimate the prompt is larger than the KV cache of every worker: let an engine answer at once.

        An engine refuses a prompt beyond its context without computing it; if the estimate is wrong, it runs. So
        it needs a slot, or it would wait inside the engine, but neither prefill window nor KV.
        """
        matches = self._prefixes.match(request)
        for view, _, reason in self._rank(Question(request, matches, able, walk.now)):
            if view.id not in blocked and view.room.has_slots(request.sequences):
                place = Place(Placement(view.id), reason, matches.get(view.id, 0))
                return Match(request, place, matches, borrowed=False)
        return None

    def _match(
        self, request: RequestView, able: list[WorkerView], blocked: frozenset[WorkerId], walk: _Walk
    ) -> Match | None:
        """Start the request, or let it wait by choice; None if it does not start."""
        walk.looks += 1
        matches = self._prefixes.match(request)
        if request.bound is not None:
            place = self._start_named(request, request.bound, able, matches, blocked)
            return None if place is None else self._start(request, place, matches, walk)
        question = Question(request, matches, able, walk.now)
        for option in self._disaggregation.options(question):
            choice = self._choose(question, option, blocked, walk)
            if isinstance(choice, _Hold):
                self._holds[request.id] = choice
                self.waits.held(request, choice.worker, walk.now)
                walk.add(request, choice)
                return None
            if choice is not None:
                return self._start(request, choice, matches, walk)
        return None

    def _start(self, request: RequestView, place: Place, matches: Matches, walk: _Walk) -> Match:
        borrowed = False
        if walk.holds:
            view = self._fleet[place.placement.decode].view()
            borrowed = any(_has_room(view, other, hold.matches.get(view.id, 0)) for other, hold in walk.holds)
        return Match(request, place, matches, borrowed)

    # -- one candidate

    def _choose(
        self, question: Question, option: Option, blocked: frozenset[WorkerId], walk: _Walk
    ) -> Place | _Hold | None:
        """The best worker (or pair) of one kind that has room, or the hold for a better one."""
        request, matches = question.request, question.matches
        decoder = None
        if option.decoders:
            decoder = next(
                (
                    view
                    for view in option.decoders
                    if view.id not in blocked and view.admits_decode(request, matches.get(view.id, 0))
                ),
                None,
            )
            if decoder is None:
                return None
        fits = WorkerView.admits_prefill if option.decoders else WorkerView.admits
        best, least = None, 0.0
        asked = question if option.workers is question.workers else question._replace(workers=option.workers)
        ranking = self._rank(asked)
        for view, cost, reason in ranking:
            if view.id in blocked:
                continue
            if best is None:
                best, least = view, cost
            if view.room.open and fits(view, request, matches.get(view.id, 0)):
                if cost > least and (hold := self._hold(question, best, view, walk)) is not None:
                    return hold
                placement = Placement(view.id) if decoder is None else Placement(decoder.id, view.id)
                why = Reason.ONLY_CHOICE if len(question.workers) == 1 else reason
                rated: tuple[Rated, ...]
                if view is ranking[0][0]:  # mostly: nothing is to be explained, and no call is made for it
                    held = matches.get
                    rated = tuple(
                        [(one.id, price, held(one.id, 0), None) for one, price, _ in ranking[:_MOST_RATED]]
                    )
                else:
                    rated = _rated(request, ranking, view, matches, blocked)
                return Place(placement, why, matches.get(view.id, 0), cost, rated)
        return None

    def _start_named(
        self,
        request: RequestView,
        named: Placement,
        able: Sequence[WorkerView],
        matches: Matches,
        blocked: frozenset[WorkerId],
    ) -> Place | None:
        """On the worker or pair that was named on arrival, if it has room."""
        views = {view.id: view for view in able if view.id in named and view.id not in blocked}
        decoder = views.get(named.decode)
        if decoder is None:
            return None
        matched = matches.get(decoder.id, 0)
        if named.prefill is None:
            return Place(named, Reason.NAMED, matched) if decoder.admits(request, matched) else None
        prefiller = views.get(named.prefill)
        if prefiller is None or not decoder.admits_decode(request, matched):
            return None
        matched = matches.get(prefiller.id, 0)
        return Place(named, Reason.NAMED, matched) if prefiller.admits_prefill(request, matched) else None

    def _hold(self, question: Question, best: WorkerView, other: WorkerView, walk: _Walk) -> _Hold | None:
        """Whether to wait for `best`, which has no room, although `other` has some."""
        request, matches, now = question.request, question.matches, walk.now
        known = self._holds.get(request.id)
        since = now if known is None else known.since
        left_s = since + self._settings.hold_s - now
        if left_s <= 0:
            return None
        room_s = _room_wait_s(request, best, matches.get(best.id, 0), now)
        wait_s = room_s + walk.ahead_s.get(best.id, 0.0)
        matched = matches.get(best.id, 0)
        prefill_s = _prefill_s(request, best, matched)
        if self._placement.costs_are_seconds:
            saved_s = _prefill_s(request, other, matches.get(other.id, 0)) - prefill_s
            if saved_s <= self._settings.hold_gain * wait_s:
                return None
        elif wait_s >= self._settings.hold_s:
            return None
        accepts = {best.id}
        if matched:
            accepts.update(view.id for view in question.workers if matches.get(view.id, 0) >= matched)
        return _Hold(best.id, since, now + min(room_s, left_s), prefill_s, matches, accepts)

    def _stands(
        self,
        request: RequestView,
        hold: _Hold,
        able: Sequence[WorkerView],
        blocked: frozenset[WorkerId],
        now: float,
    ) -> bool:
        """Whether a hold would be decided the same way again."""
        if now >= hold.until:
            return False
        serves = False
        for view in able:
            serves = serves or view.id == hold.worker
            if (
                view.id in hold.accepts
                and view.room.open
                and view.id not in blocked
                and _has_room(view, request, hold.matches.get(view.id, 0))
            ):
                return False
        return serves

    def _standing_by(self, able: Iterable[WorkerView], walk: _Walk) -> frozenset[WorkerId]:
        """Workers whose room stands by for a candidate that waits by choice."""
        return frozenset(
            view.id
            for view in able
            if view.room.open
            and any(_has_room(view, request, hold.matches.get(view.id, 0)) for request, hold in walk.holds)
        )

    def _may_fit(self, request: RequestView, able: Sequence[WorkerView], blocked: frozenset[WorkerId]) -> bool:
        """Whether some worker would have room if it held the whole prompt: cheap, and mostly the end of it."""
        named = request.bound
        for view in able:
            if (
                view.room.open
                and view.id not in blocked
                and (named is None or view.id in named)
                and (view.room.idle or _has_room(view, request, request.input_tokens))
            ):
                return True
        return False

    def _rank(self, question: Question) -> Sequence[Ranked]:
        try:
            ranking = self._placement.rank(question)
            _check(ranking, question.workers)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            return self._fallback.rank(question)
        return ranking


def _rated(
    request: RequestView,
    ranking: Sequence[Ranked],
    chosen: WorkerView,
    matches: Matches,
    blocked: frozenset[WorkerId],
) -> tuple[Rated, ...]:
    """A ranking as it is kept: what each worker costs, and why those before the chosen one were passed over."""
    rows: list[Rated] = []
    found = False
    for view, cost, _ in ranking:
        found = found or view is chosen
        if len(rows) < _MOST_RATED or view is chosen:
            matched = matches.get(view.id, 0)
            rows.append((view.id, cost, matched, None if found else obstacle(request, view, matched, blocked)))
    return tuple(rows)


def _is_beyond(request: RequestView, workers: Iterable[WorkerView]) -> bool:
    """Whether the prompt is larger than the KV cache of each of these workers, all of which report theirs."""
    prompt = request.input_tokens
    return all(view.facts.kv_tokens is not None and prompt >= view.facts.kv_tokens for view in workers)


def _is_small(request: RequestView, facts: WorkerFacts) -> bool:
    """Whether the request needs at most one in `_SHARE` of the worker: keeping room for it idles no more."""
    tokens = request.input_tokens + reserve(request)
    return (facts.slots is None or request.sequences * _SHARE <= facts.slots) and (
        facts.kv_tokens is None or tokens * _SHARE <= facts.kv_tokens
    )


def _check(ranking: Sequence[Ranked], workers: Sequence[WorkerView]) -> None:
    """Raise BadRankingError unless each worker stands in the ranking once, with a number for its cost."""
    if len(ranking) != len(workers):
        raise BadRankingError(f"{len(workers)} workers were to be ranked, not {len(ranking)}")
    asked = set(map(id, workers))
    for worker, cost, _ in ranking:
        if cost != cost:  # noqa: PLR0124 - only NaN differs from itself, and `math.isnan` is a call
            raise BadRankingError(f"the cost of {worker.id} is not a number")
        asked.discard(id(worker))
    if asked:
        raise BadRankingError("the ranking names workers that it was not asked about, or one of them twice")


def _has_room(view: WorkerView, request: RequestView, matched: int) -> bool:
    """Whether the worker could take the request, or the part of it that the worker's role allows."""
    return (
        view.admits(request, matched)
        or (not view.room.decodes and view.admits_prefill(request, matched))
        or (not view.room.prefills and view.admits_decode(request, matched))
    )


def _room_wait_s(request: RequestView, worker: WorkerView, matched: int, now: float) -> float:
    """Seconds until a worker without room for the request is expected to have some, at least to its next step.

    What is overdue was predicted too short, and is taken to last as long again.
    """
    expected_at = worker.room_expected_at(request, matched)
    return max(abs(expected_at - now), worker.profile.step_s(worker.sequences, worker.decode_tokens))


def _prefill_s(request: RequestView, worker: WorkerView, matched: int) -> float:
    """Seconds of computing the part of its prompt that the worker does not hold."""
    return worker.profile.prefill_s(max(1, request.input_tokens - matched), matched)
