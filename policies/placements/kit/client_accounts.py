"""Deficits of clients at workers: who has used up which worker, and refills in closed form.

Theory. A client's deficits are refilled in rounds: each adds a quantum to every one that is used up (`<= 0`). A
round costs nothing: it is counted per client, and a deficit takes its part when it is looked at. A pair that was
never charged has its first quantum as soon as there has been a round.

Invariants: a deficit is at most a quantum; questions change nothing; the table holds at most `most` pairs, plus
those of clients with requests under way.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from policies.model import WorkerId

_MOST = 100_000
_UNTOUCHED = (0.0, 0)


@dataclass(slots=True, eq=False)
class _Account:
    rounds: int = 0
    legs: int = 0
    deficits: dict[WorkerId, tuple[float, int]] = field(default_factory=dict)
    """What is left at a worker, as of a round."""


class ClientAccounts:
    """A bounded table; clients that have nothing under way are forgotten, the quietest first."""

    def __init__(self, quantum: float, most: int = _MOST) -> None:
        self._quantum = quantum
        self._most = most
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._pairs = 0

    def __len__(self) -> int:
        """Pairs of a client and a worker."""
        return self._pairs

    # -- questions

    def deficit(self, client: str, worker: WorkerId) -> float:
        """What the client may still use there (positive) or has used beyond its quanta."""
        account = self._accounts.get(client)
        return 0.0 if account is None else self._level(account, worker)

    def eligible(self, client: str, workers: Iterable[WorkerId]) -> set[WorkerId]:
        """Where the client may go; if it has used up all of these workers, where after the fewest refills."""
        needed = {worker: self._rounds_needed(self.deficit(client, worker)) for worker in workers}
        least = min(needed.values(), default=0)
        return {worker for worker, rounds in needed.items() if rounds == least}

    # -- events

    def open(self, client: str) -> None:
        """Something of this client is under way until `close`."""
        self._accounts.setdefault(client, _Account()).legs += 1
        self._forget_the_quiet()

    def close(self, client: str) -> None:
        self._accounts[client].legs -= 1
        self._accounts.move_to_end(client)

    def refill(self, client: str, worker: WorkerId) -> None:
        """As often as it takes for the client to be eligible at this worker; nothing if it is. After `open`."""
        account = self._accounts[client]
        account.rounds += self._rounds_needed(self._level(account, worker))
        self._pairs += worker not in account.deficits
        account.deficits[worker] = self._level(account, worker), account.rounds

    def charge(self, client: str, worker: WorkerId, service: float) -> None:
        """Nothing for a worker that is gone."""
        account = self._accounts.get(client)
        if account is not None and worker in account.deficits:
            account.deficits[worker] = self._level(account, worker) - service, account.rounds

    def forget_worker(self, worker: WorkerId) -> None:
        for account in self._accounts.values():
            self._pairs -= account.deficits.pop(worker, None) is not None

    def _level(self, account: _Account, worker: WorkerId) -> float:
        deficit, since = account.deficits.get(worker, _UNTOUCHED)
        passed = account.rounds - since
        return deficit + min(passed, self._rounds_needed(deficit)) * self._quantum

    def _rounds_needed(self, deficit: float) -> int:
        return 0 if deficit > 0 else math.floor(-deficit / self._quantum) + 1

    def _forget_the_quiet(self) -> None:
        """Look at a few only: those that are busy have their turn again later."""
        for client in list(islice(self._accounts, 8 if self._pairs > self._most else 0)):
            account = self._accounts[client]
            if account.legs:
                self._accounts.move_to_end(client)
            else:
                self._pairs -= len(account.deficits)
                del self._accounts[client]
