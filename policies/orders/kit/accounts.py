"""What each party has been served: one bounded tree of accounts, for every policy that is fair between parties.

Theory. A party is a path from the root: organisation or API key, team, user. Every level has an account, and an
account is compared with its siblings only. Its *counter* is the service it has caused, divided by its weight; a
charge goes to every account on the path. So a party that splits into many users gains nothing beside its siblings.
Orders read a counter in two ways: VTC serves the least counter first (`vtc.py`); DLPM counts it in rounds of a
quantum (`Rounds`), and within a round the order is free (`dlpm.py`). D²LPM counts what a party used at each worker
(`WorkerDeficits`).

Charges: placing an attempt charges its prompt, output is charged as it streams past, and the end replaces both
by what the worker reports. A failed attempt, a request that a worker refused, and one that failed without any
usage are given back whole. A cancelled request stays charged, or long prompts with early cancels would be free.
Beside the counter, which never fades, an account keeps its *recent* service, which fades by 1/e every `RECENT_S`.
A correction takes back what is left of the charge it corrects, however long ago that was.

Invariants: with nothing running the charges of each attempt sum up to what it was worth, in the counter and in
the recent service; accounts move in `charge` and where an order lifts them. The table holds at most `most`
accounts beside those in use (with requests or children) and those that owe: an idle account is dropped only
where its party would come back with the same or a higher counter. Once there are twice as many, new parties
share one account.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from math import exp, floor, inf, log
from typing import Any

from policies.events import Left, Output, Placed
from policies.model import Outcome, RequestView, WorkerId

RECENT_S = 20.0
"""Recent service fades to 1/e in this many seconds."""
MOST = 10_000
_LOOKS = 8
"""Idle accounts that are looked at for each new one, once the table is full."""
_OTHERS = ("(others)",)
"""The party of everyone new while the table is full of accounts that owe."""

Party = tuple[str, ...]


def party_of(request: RequestView) -> Party:
    """The party whose request it is."""
    return request.party or (request.client,)


class Account:
    """One party, or one level above parties."""

    __slots__ = (
        "branches",
        "children",
        "clock",
        "counter",
        "last",
        "open",
        "parent",
        "party",
        "precedence",
        "recent",
        "recent_at",
        "weight",
        "workers",
    )

    def __init__(self, party: Party, parent: "Account | None", counter: float) -> None:
        self.party = party
        self.parent = parent
        self.weight = 1.0
        self.counter = counter
        """Service by weight, what it was lifted by included."""
        self.recent = 0.0
        """Recent service by weight, as of `recent_at`."""
        self.recent_at = 0.0
        self.precedence = -inf
        """Ascending in recent service as of any one moment: accounts compare without arithmetic."""
        self.open = 0
        """Requests of this very account that wait or run."""
        self.children = 0
        self.clock = 0
        """Rounds that have been started among its children; of a D²LPM client, among its workers."""
        self.last: Account | None = None
        """The child that was the last to have nothing waiting any more."""
        self.branches: dict[Any, Any] = {}
        """By lane, where requests of this account or of those below it wait."""
        self.workers: dict[WorkerId, float] = {}
        """Counters of the account at single workers (`WorkerDeficits`)."""


class Rounds:
    """Counters read in rounds of a quantum: an account has a turn in the first round that it has not used up."""

    __slots__ = ("quantum",)

    def __init__(self, quantum: float) -> None:
        self.quantum = quantum

    def turn(self, counter: float) -> int:
        """The round in which the counter is next: the first `r` with `counter < r * quantum`."""
        return floor(counter / self.quantum) + 1

    def lifted(self, counter: float, round_: int) -> float:
        """The counter after refills up to a round: debts are paid, whole quanta that were not used forfeited."""
        missed = round_ - floor(counter / self.quantum) - 1
        return counter + missed * self.quantum if missed > 0 else counter


class _Charge:
    """What a running attempt has been charged. Tokens; `recent` service of its output as of `recent_at`."""

    __slots__ = ("account", "at", "matched", "output", "prompt", "recent", "recent_at")

    def __init__(self, account: Account, matched: int, prompt: int, at: float) -> None:
        self.account = account
        self.matched = matched
        self.prompt = prompt
        self.at = at
        self.output = 0
        self.recent = 0.0
        self.recent_at = at


class Accounts:
    """The tree and the open charges of one policy."""

    def __init__(
        self,
        input_weight: float,
        output_weight: float,
        *,
        level: Callable[[Account], float],
        forgives: bool = False,
        whole_prompts: bool = False,
        most: int = MOST,
    ) -> None:
        """`level` is the counter at which a new child of an account starts.

        `forgives`: an idle account may be dropped although it owes. `whole_prompts` charges them as if nothing
        were cached.
        """
        self.root = Account((), None, 0.0)
        self.charges: dict[str, _Charge] = {}
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._level = level
        self._forgives = forgives
        self._whole_prompts = whole_prompts
        self._most = most
        self._table: OrderedDict[Party, Account] = OrderedDict()

    def __len__(self) -> int:
        """Accounts in the table."""
        return len(self._table)

    def __iter__(self) -> Iterator[Account]:
        return iter(self._table.values())

    def find(self, client: str) -> Account | None:
        """The account of a client, named as one level or as a path like `organisation/team/user`."""
        return self._table.get((client,)) or self._table.get(tuple(client.split("/")))

    def get(self, request: RequestView) -> Account | None:
        """The account to which a request belongs; None if it is not open."""
        party = party_of(request)
        account = self._table.get(party)
        return self._table.get((*party, "")) if account is not None and account.children else account

    def of(self, request: RequestView) -> Account:
        """The account to which a request belongs, opened if it is new, with the weights of the request."""
        party = request.party or (request.client,)
        account = self._table.get(party)
        if account is None:
            account = self._open(party)
        if account.children:  # the party itself, beside those below it
            party = (*party, "")
            account = self._table.get(party) or self._open(party)
        if account.parent is self.root:
            account.weight = request.weights[0] if request.weights else request.weight
        else:
            self._weigh(account, request)
        return account

    def begin(self, account: Account, event: Placed) -> None:
        """Charge the prompt of an attempt that starts."""
        request, now = event.request, event.now
        prompt = request.input_tokens if self._whole_prompts else event.extend_tokens
        self.charges[request.id] = _Charge(account, event.matched_tokens, prompt, now)
        account.open += 1
        _add(account, self._input_weight * prompt, self._input_weight * prompt, now)

    def charge(self, event: Output | Left) -> Account | None:
        """Charge output, or correct the charges at the end; returns the lowest account that was charged.

        None for an attempt that was never charged here.
        """
        request, now = event.request, event.now
        if isinstance(event, Output):
            charge = self.charges.get(request.id)
            if charge is None:
                return None
            service, tokens = self._output_weight * event.tokens, event.tokens
            still = charge.recent and charge.recent * _fading(charge.recent_at, now)
            recent = service if tokens >= 0 else still * max(-1.0, tokens / max(1, charge.output))
            charge.output += tokens
            charge.recent, charge.recent_at = still + recent, now
            _add(charge.account, service, recent, now)
            return charge.account
        charge = self.charges.pop(request.id, None)
        if charge is None:
            return None
        charge.account.open -= 1
        self._settle(event, charge)
        if not charge.account.open:
            self.rest(charge.account)
        return charge.account

    def rest(self, account: Account) -> None:
        """Note that an account may have become idle: those idle for longest are dropped first."""
        if not account.open and account.party in self._table:
            self._table.move_to_end(account.party)

    def _settle(self, event: Left, charge: _Charge) -> None:
        """Replace what was charged by what was computed."""
        usage, now = event.usage, event.now
        nothing = event.outcome is Outcome.FAILED and usage is not None and usage.input_tokens == 0
        if event.outcome is None or event.outcome is Outcome.REFUSED or nothing:
            prompt = self._input_weight * charge.prompt
            recent = prompt * _fading(charge.at, now) + charge.recent * _fading(charge.recent_at, now)
            _add(charge.account, -prompt - self._output_weight * charge.output, -recent, now)
        elif usage is not None and usage.input_tokens > 0:
            cached = charge.matched if usage.cached_tokens is None else usage.cached_tokens
            computed = usage.input_tokens if self._whole_prompts else max(0, usage.input_tokens - cached)
            if computed != charge.prompt:
                service = self._input_weight * (computed - charge.prompt)
                _add(charge.account, service, service * _fading(charge.at, now), now)

    def _open(self, party: Party) -> Account:
        if len(self._table) >= self._most:
            self._drop_idle()
            if len(self._table) >= 2 * self._most and party != _OTHERS:
                return self._table.get(_OTHERS) or self._open(_OTHERS)
        parent = self.root
        for depth in range(1, len(party)):
            above = self._table.get(party[:depth])
            if above is None:
                above = self._table[party[:depth]] = Account(party[:depth], parent, self._level(parent))
                parent.children += 1
            parent = above
        account = self._table[party] = Account(party, parent, self._level(parent))
        parent.children += 1
        return account

    def _weigh(self, account: Account, request: RequestView) -> None:
        weights, above = request.weights or (request.weight,), account
        while above.parent is not None:
            depth = len(above.party) - 1
            above.weight = weights[depth] if depth < len(weights) else 1.0
            above = above.parent

    def _drop_idle(self) -> None:
        """Look at the few accounts that have been quiet for longest; drop those that are idle and owe nothing."""
        for _ in range(min(_LOOKS, len(self._table))):
            party, account = next(iter(self._table.items()))
            parent = account.parent
            idle = parent is not None and not (account.open or account.children)
            if idle and parent is not None and (self._forgives or account.counter <= self._level(parent)):
                del self._table[party]
                parent.children -= 1
            else:
                self._table.move_to_end(party)


def _add(account: Account, service: float, recent: float, now: float) -> None:
    """Charge an account and all above it."""
    level: Account | None = account
    while level is not None and level.parent is not None:
        level.counter += service / level.weight
        left = recent / level.weight
        if level.recent:
            left += level.recent * _fading(level.recent_at, now)
        # What is left of a charge given back is rounding, and would make the party one that was served before.
        level.recent = left if left > 1e-6 else 0.0
        level.recent_at = now
        level.precedence = log(left) + now / RECENT_S if level.recent else -inf
        level = level.parent


def _fading(since: float, now: float) -> float:
    """What is left now of a unit of service of that time."""
    return exp((since - now) / RECENT_S) if now > since else 1.0


class WorkerDeficits:
    """Deficits of each party at each worker, for rules by which a party uses its workers in turn (D²LPM).

    The workers of a party stand to each other as siblings do: a refill starts a round for all of them. The table
    holds at most `most` parties beside those with requests; an idle party that is dropped starts afresh, which
    is worth a charge and a quantum per worker, and nothing to others, as only a party's own workers are
    compared.
    """

    def __init__(self, quantum: float, most: int = MOST) -> None:
        self._rounds = Rounds(quantum)
        self._accounts = Accounts(1.0, 1.0, level=lambda _: 0.0, forgives=True, most=most)

    def __len__(self) -> int:
        """Parties."""
        return len(self._accounts)

    # -- questions

    def deficit(self, client: str, worker: WorkerId) -> float:
        """What a client may still use there (positive) or has used beyond its quanta."""
        account = self._accounts.find(client)
        if account is None:
            return 0.0
        return account.clock * self._rounds.quantum - self._counter(account, worker)

    def eligible(self, request: RequestView, workers: Iterable[WorkerId]) -> set[WorkerId]:
        """Where the party may go now; where all are used up, where it may go after the fewest refills."""
        account = self._accounts.get(request)
        if account is None:
            return set(workers)
        turns = {w: max(account.clock, self._rounds.turn(self._counter(account, w))) for w in workers}
        first = min(turns.values(), default=0)
        return {worker for worker, turn in turns.items() if turn == first}

    # -- events

    def open(self, request: RequestView) -> Account:
        """A request of this account is under way until `close`."""
        account = self._accounts.of(request)
        account.open += 1
        return account

    def close(self, account: Account) -> None:
        """A request of the account has ended."""
        account.open -= 1
        self._accounts.rest(account)

    def refill(self, account: Account, worker: WorkerId) -> None:
        """As often as it takes for the account to be eligible at this worker; nothing if it is."""
        counter = self._counter(account, worker)
        account.clock = max(account.clock, self._rounds.turn(counter))
        account.workers[worker] = self._rounds.lifted(counter, account.clock)

    def charge(self, account: Account, worker: WorkerId, service: float) -> None:
        """Nothing for a worker that is gone."""
        if worker in account.workers:
            account.workers[worker] = self._counter(account, worker) + service

    def remove_worker(self, worker: WorkerId) -> None:
        """The worker has left."""
        for account in self._accounts:
            account.workers.pop(worker, None)

    def _counter(self, account: Account, worker: WorkerId) -> float:
        return self._rounds.lifted(account.workers.get(worker, 0.0), account.clock)
