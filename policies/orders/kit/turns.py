"""Who waits, in the order of their turns: kept sorted as accounts move, not sorted anew for every question.

A client's turn is a round of refills, and within it a place. Whose round has come is *due*: among those only the
place counts, whatever their round was. The others follow, round by round.

Invariants: a client stands in one of the two lists, at the turn that was put last; both are sorted; whoever is in
`_later` has a round that has not come.
"""

from bisect import bisect_left, insort
from collections.abc import Container
from itertools import islice

Place = tuple[float, float, str]
"""What goes before what within a round: precedence, then arrival and id of the oldest request."""


class Turns:
    """Clients by turn. Each call costs O(log n) comparisons and one move of a list's tail."""

    def __init__(self) -> None:
        self._round = 0
        self._due: list[tuple[Place, str]] = []
        self._later: list[tuple[int, Place, str]] = []
        self._by_client: dict[str, tuple[int, Place]] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def put(self, client: str, round_: int, place: Place) -> None:
        """The client's turn is now this one."""
        if self._by_client.get(client) == (round_, place):
            return
        self.drop(client)
        self._by_client[client] = (round_, place)
        if round_ <= self._round:
            insort(self._due, (place, client))
        else:
            insort(self._later, (round_, place, client))

    def drop(self, client: str) -> None:
        """The client no longer waits; nothing if it did not."""
        turn = self._by_client.pop(client, None)
        if turn is None:
            return
        round_, place = turn
        at = bisect_left(self._due, (place, client))
        if at < len(self._due) and self._due[at] == (place, client):
            del self._due[at]
        else:
            del self._later[bisect_left(self._later, (round_, place, client))]

    def advance(self, round_: int) -> None:
        """So many rounds have been: everybody whose round has come is due."""
        if round_ == self._round:
            return
        self._round = round_
        come = bisect_left(self._later, (round_ + 1,))
        if come:
            self._due += [(place, client) for _, place, client in self._later[:come]]
            self._due.sort()
            del self._later[:come]

    def first(self, among: Container[str] | None, most: int) -> list[str]:
        """Of these clients (None: all), up to so many of those that are due, or else whose round comes next."""
        if among is None:
            due = [client for _, client in self._due[:most]]
        else:
            due = list(islice((client for _, client in self._due if client in among), most))
        if due:
            return due
        later = ((round_, client) for round_, _, client in self._later if among is None or client in among)
        found = next(later, None)
        if found is None:
            return []
        next_round, client = found
        same = (name for round_, name in later if round_ == next_round)
        return [client, *islice(same, most - 1)]
