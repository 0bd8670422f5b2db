"""Which requests should run together next, so that many end soon?

Source: Sorted-F (arXiv 2508.06133).

Repeatedly the set that fits into an empty worker and has the least `F = sum(o) / |X|^2` (o: length of an answer)
is appended to a list by ascending o, and taken out; the list is run from its head while requests fit beside what
runs, up to the first that does not [paper]. The ratio to the optimum is at most 48 [paper, for the exact
minimum].

[ours] The exact minimum is hard to find, so the search is bounded (`least_f`), and looks at the `window`
requests of smallest volume only. The list is made for a backlog, so it is made anew only when enough have come
that belong into it, or when it is used up (half, if others wait behind it); who comes in between stands behind
it, by volume. Capacity: that of the smallest worker with room. Lengths are the mean estimates. Several workers
and ageing as in `within_memory`.

Invariants: as in `within_memory`; what the list was made from changes in `push` and `remove` alone, so that
asking changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

from policies.knowledge import Knowledge
from policies.model import RequestView, WorkerView
from policies.orders.kit.least_f import Item, batches
from policies.orders.kit.within_memory import WithinMemory, expected, occupancy

_AHEAD = 8
"""The list is made as far as so many who wait; what stands far behind will be made anew before its turn."""


@dataclass(frozen=True, slots=True)
class Settings:
    replan_share: float = 0.25
    """The list is made anew when this share of it has come in the meantime; 0: at every arrival."""
    patience_s: float = 10.0
    """From here on a request comes before the list."""
    window: int = 32
    """Requests that the list is made from, those of smallest volume; of the oldest as many are looked at."""


class SortedF(WithinMemory):
    """Sets of least F, one after the other."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            knowledge,
            size=lambda request: occupancy(request, expected(request)),
            skips=False,
            patience_s=settings.patience_s,
            window=settings.window,
        )
        self._share = settings.replan_share
        self._pool: dict[str, RequestView] = {}
        """What the list is made from: who was there then."""
        self._largest: float = inf
        """Volume from which on a request would not have been in the pool; infinite while there was place in it."""
        self._come = 0
        self._gone = 0
        """Since then, of those that the list is about."""
        self._lists = _Lists(())

    def push(self, request: RequestView, *, again: bool = False) -> None:
        super().push(request, again=again)
        if occupancy(request, expected(request)) < self._largest:
            self._come += 1
            if self._come > self._share * len(self._pool):
                self._replan()

    def remove(self, request: RequestView) -> None:
        super().remove(request)
        if request.id in self._pool:
            self._gone += 1
            left = len(self._pool) - self._gone
            if left == 0 or (left < self._gone and left < len(self)):
                self._replan()

    def in_order(self, workers: Sequence[WorkerView], now: float) -> list[RequestView]:
        known = [w.room.batch.capacity for w in workers if w.room.open and w.room.batch is not None]
        asked = super().in_order(workers, now)
        place = self._lists.places({one.id for one in asked}, min(known, default=inf))
        # A stable sort: those that are not in the list stay in order of volume.
        return sorted(asked, key=lambda request: place.get(request.id, inf))

    def _replan(self) -> None:
        self._come = self._gone = 0
        smallest = self._waiting.smallest(self._window)
        self._pool = {request.id: request for request in smallest}
        full = len(smallest) == self._window
        self._largest = occupancy(smallest[-1], expected(smallest[-1])) if full else inf
        self._lists = _Lists(smallest)


class _Lists:
    """The list for each capacity, made set by set as it is used: a value, whatever it has been asked."""

    __slots__ = ("_items", "_lists", "_pool")

    def __init__(self, pool: Sequence[RequestView]) -> None:
        self._pool = [request.id for request in pool]
        self._items = [Item(one.input_tokens, expected(one), one.sequences) for one in pool]
        self._lists: dict[float, tuple[Iterator[list[int]], list[int]]] = {}

    def places(self, asked: set[str], capacity: float) -> dict[str, int]:
        """Where those of the list stand that are asked for: its first few, in order."""
        if capacity not in self._lists:
            self._lists[capacity] = batches(self._items, capacity), []
        sets, order = self._lists[capacity]
        places: dict[str, int] = {}
        for place in count():
            if place == len(order):
                if len(places) >= _AHEAD or not (more := next(sets, [])):
                    break
                order += more
            if (name := self._pool[order[place]]) in asked:
                places[name] = place
        return places
