"""Whose turn is it by the work they have caused, and whose prompt is best placed among those?

Source: DLPM, Deficit Longest Prefix Match (arXiv 2501.14312, Algorithm 1), at each level of a tree of parties.

Every account has a deficit `q` in units of service (`w_e` per extend token, `w_q` per output token). With
`q > 0` it is due. When nothing that waits is due, every account with `q <= 0` gains a quantum `Q` times its
weight, as often as it takes. Placing charges the extend tokens, output is charged as it streams past, and the
end corrects both to what the worker reports. Among the due the order is free as far as the bound goes: `order`
says which (`lpm` is the paper's).

[ours] Several workers. Refills are counted per account: an account that is not due has its turn in a later
round, and is offered there, behind the due ones. The first that starts is refilled up to its turn, past accounts
that have credit but fit nowhere. These keep their claim: they still stand in an earlier round when a worker has
room for them, up to `arrears`. An account that begins to wait joins the round that was started last; unused
quanta are forfeited. A request that uses room beside which an earlier one waits by choice (`borrowed`) starts no
later round than that one's: its account only gets deeper into debt, at most `overdraft` beyond what was due.

Theorem. Let f and g be siblings of weight 1 that wait, and let each have contended, since both do, for every
worker on which a request of the other was started: one of its requests would have started there, or waited for
nothing but the prefill window, or waited for a better worker by choice. Then over any part of that time

    |W_f - W_g| <= 2 (U + Q + overdraft),    U = w_e L + w_q M

for prompts of at most L tokens and M tokens of output that a full batch can still bring, provided that neither
falls further behind than `arrears`. With weights u, v it is
`|W_f/u - W_g/v| <= (U + overdraft) (1/u + 1/v) + 2 Q`.

Proof. Let x be a counter, service by weight. When a request of g starts by its turn, f's turn is not earlier, so
`x_g < x_f + Q`. When it passes one of f that waits by choice,
`x_g < turn_f Q + overdraft <= x_f + Q + overdraft`. After the last start of g, at most U is added: its prompt,
and the output of what runs. So at any time `x_g - x_f < U + Q + overdraft`, likewise with f and g exchanged; a
difference of service is one of two such values.

It holds at every level, because an account is charged with all that is below it and is compared with its siblings
only. With one worker and no holds this is the printed algorithm, with `-U < q <= Q` and the paper's bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import floor
from typing import Literal

from policies.knowledge import Knowledge
from policies.model import RequestView
from policies.orders.kit.accounts import Account, Accounts, Rounds
from policies.orders.kit.fair_queue import FairQueue, Offer
from policies.orders.kit.sizes import kv_over_life


@dataclass(frozen=True, slots=True)
class Settings:
    quantum: int = 1024
    """Service per refill, Q: larger keeps prefixes together longer, smaller is fairer over short times."""
    order: Literal["least_served", "lpm", "svf", "fcfs"] = "least_served"
    """Among due requests: those of the party with the least recent service (by weight), longest matched prefix
    (the paper's), smallest volume, or arrival. Where the placement finds the holder of a prefix by itself, the
    order need not, and recent service decides finer than a quantum does (benchmarks/LOG.md)."""
    extend_weight: float = 1.0
    """Service per prompt token that has to be computed, w_e."""
    output_weight: float = 2.0
    """Service per output token, w_q."""
    overdraft: int = 131_072
    """Service beyond what is due, up to which a party may use room beside which an earlier request waits by choice
    for a better worker; 0: never."""
    arrears: int = 262_144
    """Service to which a waiting party keeps its claim while others start on workers that it cannot use."""
    patience_s: float = 10.0
    """From here on a request whose party is due comes before matches and volumes, and reserves a worker if it fits
    nowhere. The other orders need no ageing: later arrivals have later turns."""
    window: int = 64
    """Requests whose matches or volumes are compared at a time."""
    depth: int = 4
    """Requests of each party (and lane) that are offered, at most."""
    forget_idle: bool = False
    """An idle party leaves: its debt is forgiven, its credit forfeited. False keeps its account, as printed."""


class Dlpm(FairQueue):
    """Deficits per party over one queue for the whole fleet."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            Accounts(
                settings.extend_weight,
                settings.output_weight,
                level=lambda parent: parent.clock * settings.quantum,
                forgives=settings.forget_idle,
            ),
            patience_s=settings.patience_s,
            overdraft=settings.overdraft,
            depth=settings.depth,
        )
        self._settings = settings
        self._match = knowledge.prefixes.match
        self._quantum = settings.quantum
        self._rounds = Rounds(settings.quantum)
        self._claim = settings.arrears // settings.quantum
        self._by_recent = settings.order == "least_served"

    def turn(self, account: Account) -> float:
        return floor(account.counter / self._quantum) + 1

    def due(self, turn: float) -> float:
        return turn * self._quantum

    def precedence(self, account: Account) -> float:
        return account.precedence if self._by_recent else 0.0

    def lift(self, account: Account) -> None:
        if account.parent is None:
            return
        round_ = account.parent.clock
        if self._settings.forget_idle and not account.open and not account.children:
            account.counter = round_ * self._quantum
        else:
            account.counter = self._rounds.lifted(account.counter, round_)

    def start(self, account: Account, until: float) -> None:
        """Start the account's round, or cut its claim to `arrears`."""
        parent, turn = account.parent, min(floor(account.counter / self._quantum) + 1, until)
        if parent is None:
            return
        if turn < parent.clock - self._claim:
            account.counter = self._rounds.lifted(account.counter, parent.clock - self._claim)
        elif turn > parent.clock:
            parent.clock = int(turn)

    def deficit(self, client: str) -> float | None:
        """Service that a client is owed (positive) or owes among its siblings; None for one that is not known."""
        account = self.accounts.find(client)
        if account is None or account.parent is None:
            return None
        round_, counter = account.parent.clock, account.counter
        if not account.branches:
            counter = self._rounds.lifted(counter, round_)
        return min(round_ * self._quantum - counter, self._settings.arrears + self._quantum) * account.weight

    def arrange(self, walk: Iterator[Offer], now: float) -> Iterator[Offer]:
        """Step by step: first what has waited for long, by arrival, then by match or volume."""
        if self._settings.order not in ("lpm", "svf"):
            yield from walk
            return
        late = now - self._settings.patience_s
        while window := list(islice(walk, self._settings.window)):
            yield from sorted(window, key=lambda offer: (offer.step, *self._rank(offer.request, late)))

    def _rank(self, request: RequestView, late: float) -> tuple[int, float, float, str]:
        if request.arrived <= late:
            return 0, 0.0, request.arrived, request.id
        matched = max(self._match(request).values(), default=0)
        lpm = self._settings.order == "lpm"
        return 1, -matched if lpm else kv_over_life(request, matched), request.arrived, request.id
