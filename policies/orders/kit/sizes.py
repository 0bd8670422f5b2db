"""Waiting requests by size, smallest first: for orders that prefer small requests.

Ageing [ours]: a request counts as half as large for every `halves_s` that it has waited. So a queue by size
stays one under any backlog, because all that wait age alike, and no request waits forever: one of 2^k times the
size of others is overtaken only by those that arrive within k times `halves_s` after it. An order that aged by
seconds would be first come, first served as soon as the backlog is older than that. Nothing has to be sorted
again as time goes by: `log2(size) - waited / halves_s` differs between two requests by the same amount at any
time.

Invariants: each lane is sorted by aged size; asking changes nothing; at most `window` requests are offered.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from math import log2

from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.lanes import LaneName, has_room, lane_of, room_of
from policies.protocol import OrderPolicy

Rank = tuple[float, float, str, RequestView]
"""Aged size as of time zero, arrival, id, and the request itself; ids differ, so requests are never compared."""


def expected(request: RequestView) -> int:
    """Size: the expected tokens of an answer."""
    return request.expected_output_tokens


def kv_over_life(request: RequestView, matched_tokens: int = 0) -> float:
    """Size: the volume, KV tokens times steps, `s*o + o*(o+1)/2` for each answer of o tokens (arXiv 2606.22327).

    Cached tokens are shared with others and do not count.
    """
    answer = max(1, request.expected_output_tokens)
    prompt = max(1, request.input_tokens - matched_tokens)
    return prompt * answer + request.sequences * answer * (answer + 1) / 2


class SizedOrder(OrderPolicy):
    """An order by aged size, ties by arrival.

    With `skips`, requests are offered past one that does not start; without, only the first of each lane is
    offered, so that what waits for memory is not overtaken.
    """

    hears = frozenset()

    def __init__(self, size: Callable[[RequestView], float], *, skips: bool, halves_s: float, window: int) -> None:
        self._size = size
        self._depth = window if skips else 1
        self._halves_s = halves_s
        self._window = window
        self._lanes: dict[LaneName, list[Rank]] = {}
        self._ranks: dict[str, tuple[LaneName, Rank]] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def waiting(self) -> Iterator[RequestView]:
        return (rank[3] for _, rank in self._ranks.values())

    def push(self, request: RequestView, *, again: bool = False) -> None:  # noqa: ARG002 - its size is its place
        rank = (self.aged(request), request.arrived, request.id, request)
        lane = lane_of(request)
        self._ranks[request.id] = lane, rank
        insort(self._lanes.setdefault(lane, []), rank)

    def remove(self, request: RequestView) -> None:
        """Remove a request. Raises KeyError for one that does not wait here."""
        name, rank = self._ranks.pop(request.id)
        lane = self._lanes[name]
        del lane[bisect_left(lane, rank)]
        if not lane:
            del self._lanes[name]

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        lanes = list(self._lanes.items())
        if len(lanes) > 1:
            room = room_of(workers)
            lanes = [(name, lane) for name, lane in lanes if has_room(name, room)]
        first = {lane[0][2] for _, lane in lanes}
        for request in self.arrange(merge(*(lane[: self._depth] for _, lane in lanes)), workers):
            late = now - request.arrived >= self._halves_s
            yield Candidate(request, overdue=late and request.id in first)

    def arrange(self, ranked: Iterator[Rank], workers: Sequence[WorkerView]) -> Iterator[RequestView]:  # noqa: ARG002 - for orders that compare with memory
        """The requests to offer, best first, of those in order of aged size."""
        return (rank[3] for rank in islice(ranked, self._window))

    def aged(self, request: RequestView) -> float:
        """The rank of a request: smaller ones first, each halving of size worth `halves_s` of waiting."""
        return log2(max(1.0, self._size(request))) + request.arrived / self._halves_s

    def smallest(self, count: int) -> list[RequestView]:
        """The first few of all by aged size, whatever worker could run them."""
        return [rank[3] for rank in islice(merge(*self._lanes.values()), count)]
