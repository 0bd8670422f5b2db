"""Whose turn is it by the work they have caused, and whose prompt is best placed among those?

Source: DLPM, Deficit Longest Prefix Match (arXiv 2501.14312, Algorithm 1).

Every client has a deficit `q`, in units of service (`w_e` per extend token, `w_q` per output token). Whoever has
`q > 0` is eligible; when nobody who waits is, every client with `q <= 0` gains a quantum (times its weight), as
often as it takes. Placing charges the extend tokens, output is charged as it streams past, and the end corrects
both to what the worker reports.

Among the eligible the order is free as far as the bound goes: `order` says which (`lpm` is the paper's).

Invariants: `q <= Q_u` plus what is charged and not yet settled; between two clients that stay backlogged the
difference in service is at most `2 (U + Q_u)`, `U = w_e L + w_q M` (paper, theorem on fairness).

Where workers serve different lines, only those count that some worker with room could serve: a client whose
workers are full keeps its credit, and nobody else off the others.

A step is cheap: refills are a count of rounds that each account applies to itself when it is looked at, and only
the first few requests of a bounded number of clients are compared.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from policies.events import Event, Left, Output, Placed
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.ageing import aged_first, arrival
from policies.orders.kit.charges import Charges
from policies.orders.kit.lanes import Backlog, Lanes, heads, oldest
from policies.orders.kit.turns import Turns
from policies.orders.kit.volume import volume

_LATE_S = 20.0
"""Service of so long ago counts 1/e of what it counts now, where the order asks who was served least of late."""
_REBASE = 50.0
_MAX_CLIENTS = 10_000
"""Accounts kept of clients that are idle and owe nothing; to forget one that owes would be an amnesty."""


@dataclass(frozen=True, slots=True)
class Settings:
    quantum: int = 1024
    """Service per refill, Q_u: larger keeps prefixes together longer, smaller is fairer over short times."""
    order: Literal["least_served", "lpm", "svf", "fcfs"] = "least_served"
    """Among eligible requests: those of the client that was served least of late (by weight), longest matched
    prefix (the paper's), smallest volume, or arrival. Where the placement finds the holder of a prefix by itself,
    the order need not, and who was served least decides finer than a quantum does (benchmarks/LOG.md)."""
    extend_weight: float = 1.0
    """Service per prompt token that has to be computed, w_e."""
    output_weight: float = 2.0
    """Service per output token, w_q."""
    patience_s: float = 10.0
    """From here on a request comes before the order, if its client is eligible."""
    window: int = 64
    """Requests compared per step."""
    depth: int = 4
    """Of each client (and of what the same workers can serve) at most so many."""
    forget_idle: bool = False
    """An idle client leaves: its debt is forgiven, its credit forfeited. False keeps its account, as printed."""


@dataclass(slots=True, eq=False)
class _Account:
    quantum: float
    round: int
    deficit: float = 0.0
    running: int = 0
    served: float = 0.0
    """Service of late, in units that grow as time goes by: comparing two accounts takes no arithmetic."""


class Dlpm:
    """Deficits per client over one queue: that of the fleet, or of one worker under early binding."""

    hears: frozenset[type[Event]] = frozenset({Placed, Output, Left})

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._knowledge = knowledge
        self._backlog: Backlog[str] = Backlog()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._charges = Charges(settings.extend_weight, settings.output_weight)
        self._turns = Turns()
        self._round = 0
        self._served_from = 0.0
        """When a unit of `_Account.served` was a unit of service."""

    def __len__(self) -> int:
        return len(self._backlog)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        account = self._account(request)
        if self._settings.forget_idle and not again and self._idle(request.client, account):
            account.deficit = 0.0
        self._backlog.push(request.client, request, again=again)
        self._take_turn(request.client)

    def remove(self, request: RequestView) -> None:
        self._backlog.remove(request.client, request)
        self._take_turn(request.client)
        self._rest(request.client)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._backlog)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        if len(self._backlog) < 2:  # nearly always, as long as the fleet has room
            return map(Candidate, self._backlog)
        settings = self._settings
        lanes = self._backlog.servable(workers)
        eligible = self._turns.first(None if lanes is self._backlog.groups else lanes, settings.window)
        compared: list[tuple[float, RequestView]] = []
        for client in eligible:
            precedence = self._precedence(client)
            compared += [(precedence, request) for request in heads(lanes[client], settings.depth)]
            if len(compared) >= settings.window:
                break
        ordered = self._in_order(compared[: settings.window])
        return aged_first(ordered, workers, now, settings.patience_s)

    def deficit(self, client: str) -> float | None:
        """What a client is owed (positive) or owes; None for one that is not known."""
        account = self._accounts.get(client)
        return None if account is None else self._level(account)

    def on(self, event: Event) -> None:
        """Move the accounts: the only place that does."""
        if not isinstance(event, (Placed, Output, Left)) or (service := self._charges.of(event)) is None:
            return
        request = event.request
        if isinstance(event, Placed):
            account = self._account(request)
            self._round += self._rounds_needed(account)
            self._turns.advance(self._round)
            account.running += 1
        self._charge(request.client, service, event.now)
        if isinstance(event, Left):
            self._accounts[request.client].running -= 1
            self._rest(request.client)

    def _charge(self, client: str, service: float, now: float) -> None:
        account = self._accounts[client]
        self._level(account)
        account.deficit -= service
        unit = self._unit(now)  # may make all of them smaller
        account.served += service * unit
        if client in self._backlog.groups:
            self._take_turn(client)

    def _take_turn(self, client: str) -> None:
        """Note where the client stands, if it waits: after every move of its account or its oldest request."""
        lanes = self._backlog.groups.get(client)
        if lanes is None:
            self._turns.drop(client)
        else:
            round_ = self._round + self._rounds_needed(self._accounts[client])
            self._turns.put(client, round_, (self._precedence(client), *_first_arrival(lanes)))

    def _unit(self, now: float) -> float:
        """What a unit of service now is in the units of `served`; they are made smaller before they overflow."""
        age = (now - self._served_from) / _LATE_S
        if age > _REBASE:
            for account in self._accounts.values():
                account.served *= math.exp(-age)
            self._served_from, age = now, 0.0
            for client in self._backlog.groups:
                self._take_turn(client)
        return math.exp(age)

    def _level(self, account: _Account) -> float:
        """Apply the rounds that have gone by: while `q <= 0` each one adds a quantum."""
        passed = self._round - account.round
        account.round = self._round
        if passed and account.deficit <= 0:
            account.deficit += min(passed, math.floor(-account.deficit / account.quantum) + 1) * account.quantum
        return account.deficit

    def _rounds_needed(self, account: _Account) -> int:
        """Refills until this client is eligible; 0 if it is."""
        deficit = self._level(account)
        return 0 if deficit > 0 else math.floor(-deficit / account.quantum) + 1

    def _account(self, request: RequestView) -> _Account:
        account = self._accounts.get(request.client)
        if account is None:
            account = self._accounts[request.client] = _Account(0.0, self._round)
            self._forget_the_oldest()
        self._level(account)
        account.quantum = self._settings.quantum * request.weight
        return account

    def _idle(self, client: str, account: _Account) -> bool:
        return not account.running and client not in self._backlog.groups

    def _rest(self, client: str) -> None:
        """Whoever has become idle was active until now."""
        if self._idle(client, self._accounts[client]):
            self._accounts.move_to_end(client)

    def _forget_the_oldest(self) -> None:
        """Bound the table: look at the few that have been quiet longest, and drop those that owe nothing."""
        for client in list(islice(self._accounts, 8 if len(self._accounts) > _MAX_CLIENTS else 0)):
            account = self._accounts[client]
            forgiven = self._settings.forget_idle or self._level(account) >= 0
            if forgiven and self._idle(client, account):
                del self._accounts[client]
            else:
                self._accounts.move_to_end(client)

    def _precedence(self, client: str) -> float:
        """By what a client goes before others under `order: least_served`."""
        if self._settings.order != "least_served":
            return 0.0
        account = self._accounts[client]
        return account.served / account.quantum

    def _in_order(self, compared: list[tuple[float, RequestView]]) -> list[RequestView]:
        """The requests, each with its client's precedence, as `order` has it."""
        order, match = self._settings.order, self._knowledge.prefixes.match
        if order == "lpm":
            compared = [(-max(match(r).values(), default=0), r) for _, r in compared]
        elif order == "svf":
            compared = [(volume(r, max(match(r).values(), default=0)), r) for _, r in compared]
        ranked = [(rank, request.arrived, request.id, request) for rank, request in compared]
        ranked.sort()  # ids differ, so that requests themselves are never compared
        return [request for *_, request in ranked]


def _first_arrival(lanes: Lanes) -> tuple[float, str]:
    if len(lanes) == 1:  # nearly always
        (lane,) = lanes.values()
        return arrival(oldest(lane))
    return min(arrival(oldest(lane)) for lane in lanes.values())
