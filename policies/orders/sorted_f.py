"""Which requests should run together next, so that many end soon?

Source: Sorted-F (arXiv 2508.06133).

Repeatedly the set that fits into an empty worker and has the least `F = sum(o) / |X|^2` (o: length of an answer)
is appended to a list by ascending o, and taken out; the list is run from its head while requests fit beside what
runs, up to the first that does not [paper]. The ratio to the optimum is at most 48 [paper, for the exact
minimum].

[ours] The exact minimum is hard to find, so the search is bounded (`kit/least_f.py`) and looks at the `window`
requests of smallest volume only. The list is made for a backlog, so it is made anew only when enough requests
have come that belong into it, or when it is used up (half, if others wait behind it). Requests that come in
between stand behind it, by volume. Capacity: that of the smallest worker with room. Lengths are the mean
estimates. Both volumes and the lengths in F age by waiting (`kit/sizes.py`), relative to the newest request, so
no request is last forever.

Invariant: what the list was made from changes in `push` and `remove` alone, so that asking changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import inf

from policies.model import RequestView, WorkerView
from policies.orders.kit.least_f import Item, batches
from policies.orders.kit.sizes import Rank, SizedOrder, expected, kv_over_life

_AHEAD = 8
"""The list is made until this many waiting requests stand in it; what is far behind will be placed anew before its
turn."""


@dataclass(frozen=True, slots=True)
class Settings:
    replan_share: float = 0.25
    """The list is made anew when this share of it has come in the meantime; 0: at every arrival."""
    halves_s: float = 120.0
    """A request counts as half as large each time it has waited this many seconds."""
    window: int = 32
    """Requests that the list is made from, those of smallest volume."""


class SortedF(SizedOrder):
    """Sets of least F, one after the other."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(kv_over_life, skips=True, halves_s=settings.halves_s, window=settings.window)
        self._share = settings.replan_share
        self._pool: dict[str, RequestView] = {}
        """What the list is made from: the requests that were there then."""
        self._largest: float = inf
        """Aged volume from which on a request would not have been in the pool; infinite while it was not full."""
        self._newest = -inf
        """Arrival of the newest request so far."""
        self._come = 0
        self._gone = 0
        """Since then, of those that the list is about."""
        self._lists = _Lists(())

    def push(self, request: RequestView, *, again: bool = False) -> None:
        super().push(request, again=again)
        self._newest = max(self._newest, request.arrived)
        if self.aged(request) < self._largest:
            self._come += 1
            if self._come > self._share * len(self._pool):
                self._plan()

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        super().remove(request)
        if request.id in self._pool:
            self._gone += 1
            left = len(self._pool) - self._gone
            if left == 0 or (left < self._gone and left < len(self)):
                self._plan()

    def arrange(self, ranked: Iterator[Rank], workers: Sequence[WorkerView]) -> Iterator[RequestView]:
        """The first of the list, per lane up to the first that does not start; those not in the list by volume."""
        known = [worker.facts.kv_tokens for worker in workers if worker.facts.kv_tokens is not None]
        asked = [rank[3] for rank in islice(ranked, self._window)]
        place = self._lists.places({request.id for request in asked}, min(known, default=inf))
        lanes = set()
        for request in sorted(asked, key=lambda one: place.get(one.id, inf)):  # stable
            lane = self._ranks[request.id][0]
            if lane not in lanes:
                lanes.add(lane)
                yield request

    def _plan(self) -> None:
        self._come = self._gone = 0
        smallest = self.smallest(self._window)
        self._pool = {request.id: request for request in smallest}
        full = len(smallest) == self._window
        self._largest = self.aged(smallest[-1]) if full else inf
        self._lists = _Lists([self._item(request) for request in smallest])

    def _item(self, request: RequestView) -> tuple[str, Item]:
        answer = expected(request)
        aged = answer * 2.0 ** ((request.arrived - self._newest) / self._halves_s)
        return request.id, Item(request.input_tokens, answer, request.sequences, aged)


class _Lists:
    """The list for each capacity, made set by set as it is used: a value, whatever it has been asked."""

    __slots__ = ("_items", "_memo", "_pool")

    def __init__(self, pool: Sequence[tuple[str, Item]]) -> None:
        self._pool = [name for name, _ in pool]
        self._items = [item for _, item in pool]
        self._memo: dict[float, tuple[Iterator[list[int]], list[int]]] = {}

    def places(self, asked: set[str], capacity: float) -> dict[str, int]:
        """Where those of the list stand that are asked for: its first few, in order."""
        if capacity not in self._memo:
            self._memo[capacity] = batches(self._items, capacity), []
        sets, order = self._memo[capacity]
        places: dict[str, int] = {}
        for place in count():
            if place == len(order):
                if len(places) >= _AHEAD or not (more := next(sets, [])):
                    break
                order += more
            if (name := self._pool[order[place]]) in asked:
                places[name] = place
        return places
