"""Early binding: a request chooses its worker when it arrives, and waits in that worker's own line.

This is how D²LPM is printed (arXiv 2501.14312, Algorithm 2): placement on arrival, then a queue order per worker.
Late binding keeps the choice open until there is room, which costs nothing here because matching is cheap; early
binding is for comparing, and for orders whose accounts belong to one worker.

`EarlyLines` looks to the scheduler like one queue. Inside, each worker has a queue policy of its own, which hears
of its own requests only. To a placement policy every worker has room, its line counts as load, and the prompts in
its line as cached: those who arrive later find them computed. A request is placed anew when its worker leaves, or
when it should no longer be given there: the worker drains, or is suspect or stalled while others are not.

Of a prefill/decode pair the line is the decode worker's, which has the request for longest. Its prompt counts as
load of the prefill worker, and as cached at both. It starts when both have room, and is placed anew when either is
lost.

Accounts per line are fair per line: two clients get equal service from a worker as long as both wait there. Whose
requests are bound to other workers is not compared, so no bound holds for the fleet as a whole.

Invariants: who waits is in one line, or in none if the placement named no worker (a fault; it is then offered as
under late binding); what a worker has to compute is the sum over the seats that name it; asking for candidates
twice changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from policies.events import Bound, Event, FirstToken, Left, Output, Placed, Queued, WorkerGone
from policies.fleet.capacity import Room
from policies.model import Candidate, Matches, Place, RequestView, Stage, WorkerId, WorkerView
from policies.prefixes.index import Pinned, Prefixes
from policies.protocol import KeepsDeficits, PlacementPolicy, QueuePolicy
from policies.scheduler.faults import Faults

_OPEN = Room(idle=True, prefill_idle=True, prefill_free=0, slots_free=None, kv_free=None, expected_at=0.0)

_Fleet = tuple[tuple[WorkerId, bool, frozenset[str], frozenset[Stage]], ...]


@dataclass(slots=True, eq=False)
class _Line:
    queue: QueuePolicy
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class _Seat:
    """Where a request waits."""

    line: _Line
    place: Place
    tokens: int
    """Of the prompt, as far as they will not be cached where it is computed."""
    pinned: tuple[Pinned | None, ...]
    """Among the prompts that are coming, at each of its workers."""

    @property
    def computes(self) -> WorkerId:
        return self.place.placement.prefill or self.place.placement.decode


class EarlyLines:
    """A queue of queues; `make_queue` makes the order of one line."""

    def __init__(
        self,
        make_queue: Callable[[], QueuePolicy],
        placement: PlacementPolicy,
        prefixes: Prefixes,
    ) -> None:
        self._make_queue = make_queue
        self._placement = placement
        self._prefixes = prefixes
        self._coming = Prefixes()
        """The prompts in each line, as long as they wait there."""
        self._able: Callable[[RequestView], Sequence[WorkerView]] = lambda _: ()
        self._faults = Faults()
        self._lines: dict[WorkerId, _Line] = {}
        self._owed: dict[WorkerId, int] = {}
        """Prompt tokens that wait to be computed at a worker; without zeros."""
        self._seats: dict[str, _Seat] = {}
        self._unbound: dict[str, RequestView] = {}
        self._member: dict[str, _Line] = {}
        """Whose events a request's are, waiting or running; its worker may be gone."""
        self._new: dict[str, RequestView] = {}
        """Who has got a seat since workers were looked at."""
        self._fleet: _Fleet = ()

    def choose_among(
        self, able: Callable[[RequestView], Sequence[WorkerView]], faults: Faults | None = None
    ) -> None:
        """Who could serve a request, with room or without, and where exceptions of the placement are counted."""
        self._able = able
        self._faults = faults or self._faults

    def __len__(self) -> int:
        return len(self._seats) + len(self._unbound)

    def push(self, request: RequestView, *, again: bool = False) -> None:  # noqa: ARG002 - `Queued` says it too
        """It is bound when the `Queued` event follows, which knows the time."""
        self._unbound[request.id] = request

    def remove(self, request: RequestView) -> None:
        self._new.pop(request.id, None)
        if self._unbound.pop(request.id, None) is None:
            seat = self._seats.pop(request.id)
            seat.line.queue.remove(request)
            seat.line.sequences -= request.sequences
            self._owe(seat.computes, -seat.tokens)
            for worker, pinned in zip(_workers(seat.place), seat.pinned, strict=True):
                if pinned is not None:
                    self._coming.release(pinned, 0.0)
                    self._coming.forget(worker, request, 0)

    def waiting(self) -> Iterator[RequestView]:
        yield from self._unbound.values()
        for line in self._lines.values():
            yield from line.queue.waiting()

    def deficit(self, client: str) -> float | None:
        """The sum over the lines, each of which has accounts of its own."""
        queues = [line.queue for line in self._lines.values()]
        told = [queue.deficit(client) for queue in queues if isinstance(queue, KeepsDeficits)]
        known = [deficit for deficit in told if deficit is not None]
        return sum(known) if known else None

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        self._place_anew(workers, now)
        for request in list(self._unbound.values()):
            yield Candidate(request)
        for worker in workers:
            line = self._lines.get(worker.id)
            if line is not None and worker.room.open and len(line.queue):
                for candidate in line.queue.candidates([worker], now):
                    if worker.id not in candidate.keep_off:
                        place = self._seats[candidate.request.id].place
                        yield Candidate(candidate.request, bound=place, behind=candidate.behind)

    def on(self, event: Event) -> None:
        if isinstance(event, Queued):
            self._bind(event)
        elif isinstance(event, WorkerGone):
            there = (one for one in self._seated() if event.worker in self._seats[one.id].place.placement)
            self._move(list(there), event.now)
            self._lines.pop(event.worker, None)
            self._coming.remove_worker(event.worker)
        elif isinstance(event, Placed | FirstToken | Output | Left):
            self._pass_on(event)

    def _pass_on(self, event: Placed | FirstToken | Output | Left) -> None:
        """To the line that the request belongs to. One that was never bound joins its worker's when it starts."""
        name = event.request.id
        if isinstance(event, Placed) and name not in self._member:
            self._member[name] = self._line(event.placement.decode)
        line = self._member.pop(name, None) if isinstance(event, Left) else self._member.get(name)
        if line is not None:
            line.queue.on(event)

    # -- binding

    def _bind(self, event: Queued) -> None:
        """Give the request its worker, as if every one had room."""
        request, now = event.request, event.now
        place = self._choose(request, now)
        if place is None:
            return
        tokens = max(1, request.input_tokens - place.matched_tokens)
        line = self._member[request.id] = self._line(place.placement.decode)
        del self._unbound[request.id]
        pinned = tuple(self._coming.insert(worker, request, now) for worker in _workers(place))
        seat = self._seats[request.id] = _Seat(line, place, tokens, pinned)
        self._new[request.id] = request
        self._owe(seat.computes, tokens)
        line.sequences += request.sequences
        line.queue.push(request, again=event.again)
        line.queue.on(event)
        self._placement.on(Bound(request, place.placement, now))

    def _choose(self, request: RequestView, now: float) -> Place | None:
        able = self._able(request)
        if not able:
            return None
        matches = self._matches(request)
        try:
            workers = [self._with_line(view, now) for view in able]
            choice = self._placement.choose(request, matches, workers, now)
        except Exception as fault:  # noqa: BLE001 - whatever it is, the request goes on
            self._faults.add(fault)
            return None
        return choice if isinstance(choice, Place) else None

    def _matches(self, request: RequestView) -> Matches:
        """What each worker holds, or will by the time the request's turn comes."""
        held, coming = self._prefixes.match(request), self._coming.match(request)
        return {worker: max(held.get(worker, 0), coming.get(worker, 0)) for worker in {**held, **coming}}

    def _with_line(self, view: WorkerView, now: float) -> WorkerView:
        """The worker as it will be for whoever comes after its line."""
        line, tokens = self._lines.get(view.id), self._owed.get(view.id, 0)
        waiting, sequences = (0, 0) if line is None else (len(line.queue), line.sequences)
        owed = view.prefill_owed + tokens
        profile = view.profile
        ahead_s = profile.prefill_s(owed) - profile.prefill_s(view.prefill_owed)
        steps_s = sequences * profile.step_s(view.sequences + sequences, view.decode_tokens)
        return replace(
            view,
            requests=view.requests + waiting,
            prefill_owed=owed,
            load_s=view.load_s + ahead_s + steps_s,
            room=replace(_OPEN, expected_at=max(view.room.expected_at, now) + ahead_s),
        )

    def _line(self, worker: WorkerId) -> _Line:
        line = self._lines.get(worker)
        if line is None:
            line = self._lines[worker] = _Line(self._make_queue())
        return line

    def _place_anew(self, workers: Sequence[WorkerView], now: float) -> None:
        """When workers have changed: whoever waits where it cannot, or should not, be given now."""
        fleet = tuple(
            (view.id, view.facts.suspect or view.stalled, view.facts.served_names, view.facts.stages)
            for view in workers
        )
        new, self._new = self._new, {}
        if fleet == self._fleet:  # it may have been otherwise when these chose
            self._move([one for one in new.values() if not self._still_able(one)], now)
            return
        self._fleet = fleet
        self._move([one for one in self._seated() if not self._still_able(one)], now)
        for request in list(self._unbound.values()):
            self._bind(Queued(request, now, again=True))

    def _still_able(self, request: RequestView) -> bool:
        able = {view.id: view.facts.stages for view in self._able(request)}
        decode, prefill, _ = self._seats[request.id].place.placement
        if prefill is None:
            return decode in able
        return Stage.DECODE in able.get(decode, ()) and Stage.PREFILL in able.get(prefill, ())

    def _seated(self) -> list[RequestView]:
        """Everybody who has a seat, in the order in which they stand."""
        return [request for line in self._lines.values() for request in line.queue.waiting()]

    def _move(self, requests: Iterable[RequestView], now: float) -> None:
        """They have lost their seats: place them anew."""
        for request in requests:
            self.remove(request)
            self._member.pop(request.id).queue.on(Left(request, None, None, None, now))
            self._unbound[request.id] = request
            self._bind(Queued(request, now, again=True))

    def _owe(self, worker: WorkerId, tokens: int) -> None:
        owed = self._owed.pop(worker, 0) + tokens
        if owed:
            self._owed[worker] = owed


def _workers(place: Place) -> tuple[WorkerId, ...]:
    """One worker, or the two of a pair."""
    decode, prefill, _ = place.placement
    return (decode,) if prefill is None else (decode, prefill)
