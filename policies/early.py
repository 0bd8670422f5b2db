"""Early binding: a request chooses its worker when it arrives, and waits in that worker's own line.

This is how D²LPM is printed (arXiv 2501.14312, Algorithm 2): placement on arrival, then a queue order per worker.
Late binding keeps the choice open until there is room, which costs nothing here because matching is cheap; early
binding is for comparing, and for orders whose accounts belong to one worker.

`EarlyLines` looks to the scheduler like one queue. Inside, each worker has a queue policy of its own, which hears
of its own requests only. To a placement policy every worker has room, and its line counts as load. A line is
placed anew when its worker leaves, drains, or becomes suspect while others are not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from policies.events import Bound, Event, FirstToken, Left, Output, Placed, Queued, WorkerGone
from policies.model import Candidate, Place, RequestView, WorkerId, WorkerView
from policies.prefixes import Prefixes
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.room import Room

_OPEN = Room(idle=True, prefill_idle=True, prefill_free=0, slots_free=None, kv_free=None, expected_at=0.0)


@dataclass(slots=True, eq=False)
class _Line:
    queue: QueuePolicy
    tokens: int = 0
    """Prompt tokens that wait, as far as they are not cached there."""


@dataclass(frozen=True, slots=True)
class _Seat:
    """Where a request waits."""

    worker: WorkerId
    place: Place
    tokens: int


class EarlyLines:
    """A queue of queues. `able` says who could serve a request, `make_queue` makes the order of one line."""

    def __init__(
        self,
        make_queue: Callable[[], QueuePolicy],
        placement: PlacementPolicy,
        prefixes: Prefixes,
    ) -> None:
        self._make_queue = make_queue
        self._placement = placement
        self._prefixes = prefixes
        self._able: Callable[[RequestView], Sequence[WorkerView]] = lambda _: ()
        self._lines: dict[WorkerId, _Line] = {}
        self._seats: dict[str, _Seat] = {}
        self._unbound: dict[str, RequestView] = {}
        self._again: set[str] = set()

    def choose_among(self, able: Callable[[RequestView], Sequence[WorkerView]]) -> None:
        """Who could serve a request, with room or without: the scheduler's knowledge."""
        self._able = able

    def __len__(self) -> int:
        return len(self._seats) + len(self._unbound)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        """It is bound when the `Queued` event follows, which knows the time."""
        self._unbound[request.id] = request
        if again:
            self._again.add(request.id)

    def remove(self, request: RequestView) -> None:
        self._again.discard(request.id)
        if self._unbound.pop(request.id, None) is None:
            seat = self._seats.pop(request.id)
            line = self._lines[seat.worker]
            line.queue.remove(request)
            line.tokens -= seat.tokens

    def waiting(self) -> Iterator[RequestView]:
        yield from self._unbound.values()
        for line in self._lines.values():
            yield from line.queue.waiting()

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        self._settle_again(workers, now)
        for request in list(self._unbound.values()):
            self._bind(request, now)
        for worker in workers:
            line = self._lines.get(worker.id)
            if line is not None and worker.room.open and len(line.queue):
                for candidate in line.queue.candidates([worker], now):
                    if worker.id not in candidate.keep_off:
                        yield Candidate(candidate.request, bound=self._seats[candidate.request.id].place)

    def on(self, event: Event) -> None:
        if isinstance(event, Queued):
            if event.request.id in self._unbound:
                self._bind(event.request, event.now)
        elif isinstance(event, WorkerGone):
            self._empty(event.worker, event.now)
            self._lines.pop(event.worker, None)
        elif isinstance(event, Placed | FirstToken | Output | Left) and event.placement is not None:
            line = self._lines.get(event.placement.decode)
            if line is not None:
                line.queue.on(event)

    def _bind(self, request: RequestView, now: float) -> None:
        """Give the request its worker, as if every one had room."""
        views = [self._with_line(view) for view in self._able(request)]
        matches = self._prefixes.match(request)
        choice = self._placement.choose(request, matches, views, now) if views else None
        if not isinstance(choice, Place):
            return
        worker = choice.placement.decode
        tokens = max(1, request.input_tokens - matches.get(worker, 0))
        line = self._line(worker)
        self._unbound.pop(request.id, None)
        self._seats[request.id] = _Seat(worker, choice, tokens)
        line.queue.push(request, again=request.id in self._again)
        line.tokens += tokens
        # What waits there will be in the cache: the next one of its kind should find it.
        if (pinned := self._prefixes.insert(worker, request, now)) is not None:
            self._prefixes.release(pinned, now)
        self._placement.on(Bound(request, choice.placement, now))

    def _with_line(self, view: WorkerView) -> WorkerView:
        line = self._lines.get(view.id)
        waiting, tokens = (len(line.queue), line.tokens) if line is not None else (0, 0)
        return replace(view, requests=view.requests + waiting, prefill_owed=view.prefill_owed + tokens, room=_OPEN)

    def _line(self, worker: WorkerId) -> _Line:
        line = self._lines.get(worker)
        if line is None:
            line = self._lines[worker] = _Line(self._make_queue())
        return line

    def _settle_again(self, workers: Sequence[WorkerView], now: float) -> None:
        """Place anew who waits for a worker that cannot, or should not, be given anything now."""
        good = {view.id for view in workers if not view.facts.suspect} or {view.id for view in workers}
        for worker, line in list(self._lines.items()):
            if worker not in good and len(line.queue):
                self._empty(worker, now)

    def _empty(self, worker: WorkerId, now: float) -> None:
        line = self._lines.get(worker)
        if line is not None:
            for request in list(line.queue.waiting()):
                self.remove(request)
                self.push(request, again=True)
                self._bind(request, now)
