"""A queue that is fair between parties at every level of a tree: what the orders with accounts share.

Theory. Waiting requests stand in lanes (`lanes.py`), in each lane in the tree of their parties, and first in,
first out within a party. Each level is kept sorted by turn, so a step walks from the front and looks at a few
parties, however many wait. A *turn* is read from an account's counter (`accounts.py`), lower first; an order
says how. Among equal turns a lower precedence is first, then the older request.

The walk is depth first: all of the first party, then the next one. Each candidate has a *step*: by how much its
turn lies behind the first turn offered, at each level. Candidates of step zero everywhere are due.

    overdue    only what is due, once it has waited `patience_s`: a party that is not due reserves no worker
    in_turn    what is due; the others leave it the workers where only the prefill window keeps it waiting
    may_pass   what is due, and others while their counter, at every level, is less than `overdraft` beyond what
               is due there: the room they use was to be that of a request that waits by choice

So for each worker with room, siblings start in the order of their turns as far as their requests fit there; they
pass a sibling that has an earlier turn, and would start there but waits by choice, within the overdraft only.

Invariants: a party stands once at its level in each lane in which it has requests, at its present turn; every
level is sorted; lanes and levels without requests are not kept.
"""

from abc import abstractmethod
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from math import inf
from typing import ClassVar, NamedTuple

from policies.events import Event, Left, Output, Placed
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.accounts import Account, Accounts
from policies.orders.kit.lanes import Fifo, LaneName, append, has_room, lane_of, room_of
from policies.protocol import OrderPolicy

_MOST = 256
"""Requests that are offered in a step, at most."""

Seat = tuple[float, float, float, str, "Branch"]
"""Turn, precedence, arrival and id of the request that would be first, and whose seat it is."""


class Branch:
    """The waiting requests of one account, and of those below it, in one lane."""

    __slots__ = ("account", "lane", "parent", "requests", "seat", "seats")

    def __init__(self, account: Account, lane: LaneName, parent: "Branch | None") -> None:
        self.account = account
        self.lane = lane
        self.parent = parent
        self.requests: Fifo = OrderedDict()
        """Of this account itself."""
        self.seats: list[Seat] = []
        """Of the accounts below it, sorted."""
        self.seat: Seat | None = None
        """Its own at the level above."""


class Offer(NamedTuple):
    """A request on the walk."""

    step: tuple[float, ...]
    may_pass: bool
    request: RequestView


class FairQueue(OrderPolicy):
    """The queue of an order with accounts; the order adds what a turn is and when accounts are lifted."""

    hears: ClassVar[frozenset[type[Event]]] = frozenset({Placed, Output, Left})

    def __init__(self, accounts: Accounts, *, patience_s: float, overdraft: float, depth: int) -> None:
        """`depth`: requests of one party in a lane that are offered."""
        self.accounts = accounts
        self._patience_s = patience_s
        self._overdraft = overdraft
        self._depth = depth
        self._lanes: dict[LaneName, Branch] = {}
        self._where: dict[str, Branch] = {}

    # -- what an order adds

    @abstractmethod
    def turn(self, account: Account) -> float:
        """When it is the account's turn among its siblings; lower is earlier."""

    @abstractmethod
    def due(self, turn: float) -> float:
        """The counter up to which an account is served at that turn."""

    @abstractmethod
    def lift(self, account: Account) -> None:
        """The account begins to wait: it keeps no credit from the time in which it did not."""

    def start(self, account: Account, until: float) -> None:
        """A request of the account starts, before it is charged; called for the account, then for those above.

        `until` is the turn of a sibling that it passed, which waits by choice; infinite if it passed none.
        """

    def precedence(self, account: Account) -> float:  # noqa: ARG002 - by default there is none
        """What goes before what at equal turns; lower first."""
        return 0.0

    def arrange(self, walk: Iterator[Offer], now: float) -> Iterator[Offer]:  # noqa: ARG002 - by default as it is
        """The walk in the order in which candidates are offered; steps stay in ascending order."""
        return walk

    # -- the queue

    def __len__(self) -> int:
        return len(self._where)

    def sizes(self) -> dict[str, int]:
        return {"accounts": len(self.accounts)}

    def waiting(self) -> Iterator[RequestView]:
        return (branch.requests[name] for name, branch in self._where.items())

    def push(self, request: RequestView, *, again: bool = False) -> None:
        account = self.accounts.of(request)
        if not account.branches:
            self._arrive(account)
        lane = lane_of(request)
        branch: Branch = account.branches.get(lane) or self._grow(account, lane)
        if again:
            append(branch.requests, request, again=True)
        else:
            branch.requests[request.id] = request
        account.open += 1
        self._where[request.id] = branch
        if again or len(branch.requests) == 1:
            self._seat(branch)

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        branch = self._where.pop(request.id)
        was_first = next(iter(branch.requests)) == request.id
        del branch.requests[request.id]
        branch.account.open -= 1
        if not branch.requests and not branch.seats:
            self._prune(branch)
        elif was_first:
            self._seat(branch)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        late = now - self._patience_s
        if len(self._where) == 1:  # nearly always, as long as the fleet has room
            for name, branch in self._where.items():
                yield Candidate(branch.requests[name], overdue=branch.requests[name].arrived <= late)
            return
        branches = list(self._lanes.values())
        if len(branches) > 1:
            room = room_of(workers)
            branches = [branch for branch in branches if has_room(branch.lane, room)]
        walk = self.arrange(self._walk(branches, (), may_pass=True), now)
        for step, may_pass, request in islice(walk, _MOST):
            due = not any(step)
            yield Candidate(request, overdue=due and request.arrived <= late, in_turn=due, may_pass=may_pass)

    def on(self, event: Event) -> None:
        """Move the accounts."""
        account: Account | None = None
        if isinstance(event, Placed):
            account = level = self.accounts.of(event.request)
            while level.parent is not None:
                self.start(level, self._first(level.parent, event.request) if event.borrowed else inf)
                level = level.parent
            self.accounts.begin(account, event)
        elif isinstance(event, (Output, Left)):
            account = self.accounts.charge(event)
        if account is not None and self._where:
            self._moved(account)

    def _moved(self, account: Account) -> None:
        """Seat an account and all above it anew, where they wait: their counters have moved."""
        while account.parent is not None:
            for branch in account.branches.values():
                self._seat(branch)
            account = account.parent

    # -- the tree of a lane

    def _walk(self, branches: Sequence[Branch], step: tuple[float, ...], *, may_pass: bool) -> Iterator[Offer]:
        """What stands below these branches of one account, in the order of turns."""
        for branch in branches:
            for request in islice(branch.requests.values(), self._depth):
                yield Offer(step, may_pass, request)
        single = len(branches) == 1
        seats: Iterable[Seat] = branches[0].seats if single else merge(*(branch.seats for branch in branches))
        first, seen, lanes = None, set(), {branch.lane for branch in branches}
        for turn, _, _, _, branch in seats:
            if first is None:
                first, due = turn, self.due(turn)
            account = branch.account
            behind = (*step, turn - first)
            passes = may_pass and (turn == first or (account.counter - due) * account.weight < self._overdraft)
            if single:
                below = [branch]
            elif account in seen:
                continue
            else:
                seen.add(account)
                below = [other for lane, other in account.branches.items() if lane in lanes]
            if branch.seats or len(below) > 1:
                yield from self._walk(below, behind, may_pass=passes)
            else:
                for request in islice(branch.requests.values(), self._depth):
                    yield Offer(behind, passes, request)

    def _first(self, parent: Account, request: RequestView) -> float:
        """The first turn among the children of an account that wait where the request waited."""
        branch: Branch | None = parent.branches.get(lane_of(request))
        return inf if branch is None or not branch.seats else branch.seats[0][0]

    def _arrive(self, account: Account) -> None:
        """Lift the account, and those above it that do not wait either."""
        while account.parent is not None and not account.branches:
            self.lift(account)
            account = account.parent

    def _grow(self, account: Account, lane: LaneName) -> Branch:
        """The branch of an account in a lane, with those above it as far as they are missing."""
        if account.parent is None:
            above = None
        else:
            above = account.parent.branches.get(lane) or self._grow(account.parent, lane)
        branch = account.branches[lane] = Branch(account, lane, above)
        if above is None:
            self._lanes[lane] = branch
        return branch

    def _prune(self, branch: Branch) -> None:
        """Take out a branch in which nothing waits, and those above that it leaves empty."""
        while (above := branch.parent) is not None:
            account = branch.account
            del account.branches[branch.lane]
            if branch.seat is not None:
                del above.seats[bisect_left(above.seats, branch.seat)]
            if not account.branches and account.parent is not None:
                account.parent.last = account
                if not account.open:
                    self.accounts.rest(account)
            branch = above
            if branch.seats or branch.requests:
                self._seat(branch)
                return
        del branch.account.branches[branch.lane], self._lanes[branch.lane]

    def _seat(self, branch: Branch) -> None:
        """Put a branch where its turn and first request belong, and those above as far as that moves them."""
        above = branch.parent
        while above is not None:
            if branch.requests:
                first = next(iter(branch.requests.values()))
                arrived, name = first.arrived, first.id
            else:
                _, _, arrived, name, _ = branch.seats[0]
            account, old = branch.account, branch.seat
            seat = (self.turn(account), self.precedence(account), arrived, name, branch)
            if old is not None:
                if old == seat:
                    return
                del above.seats[bisect_left(above.seats, old)]
            insort(above.seats, seat)
            branch.seat = seat
            branch, above = above, above.parent
