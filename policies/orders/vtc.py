"""Which client has been served least so far?

Source: VTC, Virtual Token Counter (arXiv 2401.00588, Algorithm 2), weighted.

Every client has a counter of the service it has caused, divided by its weight: `w_p` per prompt token when a
request is placed, `w_q` per output token as it streams past. The earliest request of the client with the least
counter is next; where it does not fit, nobody else gets the room [paper].

A client that begins to wait is lifted, or it could save up what it did not use: to the least counter among those
who wait, and where nobody does to that of the client that waited last. A counter is never lowered by that
[paper].

[ours] What is charged is corrected to what the worker reports, and given back where the work was not done, by
the rules of `dlpm`. Where workers serve different lines, only those clients count that some worker with room
could serve; and "nobody else gets the room" means the workers that could serve the one whose turn it is. Equal
counters: order of arrival. One counter per client for the whole fleet under late binding, one per worker under
early.

Invariants: among clients that wait, counters differ by at most `U`, divided by the smaller weight, where `U =
max(w_p L, w_q M)` for prompts of at most L tokens and M tokens of KV cache; so two clients that wait all along
are served alike within `2 U` (paper). A counter falls only when charges are given back.

Nobody waits for ever: a client is passed over only while others catch up with its counter, and keeps its own
order of arrival.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import Literal

from policies.events import Event, Left, Output, Placed, Queued
from policies.knowledge import Knowledge
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.ageing import arrival
from policies.orders.kit.charges import Charges
from policies.orders.kit.lanes import Backlog, Lanes, heads

_MAX_CLIENTS = 10_000
"""Counters kept of clients that are idle and not ahead; to forget one that is ahead would be an amnesty."""


@dataclass(frozen=True, slots=True)
class Settings:
    charge: Literal["input", "extend"] = "input"
    """Prompt tokens that count: all of them (the paper's), or those that had to be computed."""
    input_weight: float = 1.0
    """Service per prompt token, w_p."""
    output_weight: float = 2.0
    """Service per output token, w_q."""
    patience_s: float = 0.0
    """How long others may use room that is too small for the one whose turn it is; 0: not at all, as printed."""
    window: int = 64
    """Clients offered per step."""


@dataclass(slots=True, eq=False)
class _Account:
    weight: float = 1.0
    counter: float = 0.0
    running: int = 0


class Vtc:
    """Counters per client over one queue: that of the fleet, or of one worker under early binding."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:  # noqa: ARG002 - as every order is built
        self._settings = settings
        self._backlog: Backlog[str] = Backlog()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._charges = Charges(
            settings.input_weight, settings.output_weight, whole_prompts=settings.charge == "input"
        )
        self._last: str | None = None
        """Who was the last to have nobody in the queue any more."""

    def __len__(self) -> int:
        return len(self._backlog)

    def push(self, request: RequestView, *, again: bool = False) -> None:
        """Take a request in; the `Queued` that follows lifts its client."""
        self._account(request)
        self._backlog.push(request.client, request, again=again)

    def remove(self, request: RequestView) -> None:
        self._backlog.remove(request.client, request)
        if request.client not in self._backlog.groups:
            self._last = request.client

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._backlog)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        lanes = self._backlog.servable(workers)
        room = {worker.id for worker in workers if worker.room.open}
        kept: frozenset[str] = frozenset()
        for request in self._in_turn(lanes):
            yield Candidate(request, kept)
            if now - request.arrived >= self._settings.patience_s:
                kept |= {worker.id for worker in workers if worker.facts.serves(request)}
                if room <= kept:
                    return

    def counter(self, client: str) -> float | None:
        """Service by weight so far, lifts included; None for a client that is not known."""
        account = self._accounts.get(client)
        return None if account is None else account.counter

    def on(self, event: Event) -> None:
        """Move the counters: the only place that does."""
        if isinstance(event, Queued):
            self._lift(event.request)
        if not isinstance(event, Placed | Output | Left) or (service := self._charges.of(event)) is None:
            return
        account = self._account(event.request)
        account.counter += service / account.weight
        if isinstance(event, Placed):
            account.running += 1
        elif isinstance(event, Left):
            account.running -= 1

    def _in_turn(self, lanes: Mapping[str, Lanes]) -> Iterator[RequestView]:
        """The oldest requests of those served least; one for each way in which they could be served."""
        oldest = {client: heads(own, 1) for client, own in lanes.items()}
        least = nsmallest(
            self._settings.window, oldest, key=lambda c: (self._accounts[c].counter, *arrival(oldest[c][0]))
        )
        return (request for client in least for request in oldest[client])

    def _lift(self, request: RequestView) -> None:
        """The request is the client's only one: no credit from the time in which it did not ask."""
        lanes = self._backlog.groups.get(request.client, {})
        if sum(len(lane) for lane in lanes.values()) == 1:
            account = self._account(request)
            account.counter = max(account.counter, self._level(besides=request.client))

    def _level(self, besides: str | None = None) -> float:
        """To where a client is lifted that begins to wait now."""
        waiting = [self._accounts[name].counter for name in self._backlog.groups if name != besides]
        if waiting:
            return min(waiting)
        return 0.0 if self._last is None else self._accounts[self._last].counter

    def _account(self, request: RequestView) -> _Account:
        account = self._accounts.get(request.client)
        if account is None:
            account = self._accounts[request.client] = _Account()
            self._forget_the_idle()
        account.weight = request.weight
        return account

    def _forget_the_idle(self) -> None:
        """Bound the table: look at a few at a time, and drop those that a lift would raise anyway."""
        if len(self._accounts) <= _MAX_CLIENTS:
            return
        level = self._level()
        for client in list(islice(self._accounts, 8)):
            account = self._accounts[client]
            idle = not account.running and client not in self._backlog.groups
            if idle and client != self._last and account.counter <= level:
                del self._accounts[client]
            else:
                self._accounts.move_to_end(client)
