"""Sets of requests that run well together: the search of Sorted-F.

Source: Sorted-F (arXiv 2508.06133): of all sets X that fit into memory when they start together, the one with the
least `F(X) = sum(o_i) / |X|^2`, where o_i are lengths of answers. [ours] In F an answer counts by its `cost`, its
length as aged by waiting; memory is tested with the length itself.

The minimum is hard to find: small answers may come with long prompts. [ours] Bounded search: sets grown greedily
along four orders (answer, peak, volume, prompt), each prefix looked at; then the best is improved by adding one,
exchanging one for one or for two, or leaving one out, as long as F falls, `_IMPROVEMENTS` times at most. A
search over n requests makes that many rounds of O(n^2) tests, each in O(n).

Invariant: what is returned fits, or is a single request that does not fit by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

_IMPROVEMENTS = 8
_PAIRS = 8
"""Of those outside, this many with the shortest answers are tried in pairs."""


class Item(NamedTuple):
    """A request: tokens of its prompt, tokens of each answer, how many answers, and what an answer counts in F."""

    prompt: int
    answer: int
    sequences: int = 1
    aged: float | None = None
    """None: as its length."""

    @property
    def cost(self) -> float:
        return self.answer if self.aged is None else self.aged


_Set = list[int]
"""Indices, by ascending answer."""
_Some = tuple[int, ...]


def batches(items: Sequence[Item], capacity: float) -> Iterator[list[int]]:
    """All requests in the order of Sorted-F: set after set of least F, each by ascending cost; indices."""
    left = sorted(range(len(items)), key=lambda i: (items[i].answer, i))
    while left:
        chosen = least_f(items, left, capacity)
        yield sorted(chosen, key=lambda i: (items[i].cost, i))
        taken = set(chosen)
        left = [i for i in left if i not in taken]


def least_f(items: Sequence[Item], among: Sequence[int], capacity: float) -> list[int]:
    """A set of small F that fits; `among` is never empty and by ascending answer."""
    best = [among[0]]
    for order in _ORDERS:
        best = min(best, _grown(items, sorted(among, key=lambda i: order(items[i])), capacity), key=_by_f(items))
    for _ in range(_IMPROVEMENTS):
        better = _better(items, best, among, capacity)
        if better is None:
            break
        best = better
    return best


def f(items: Sequence[Item], chosen: Sequence[int]) -> float:
    """The measure of a set that is not empty: mean length of an answer, per member."""
    return sum(items[i].cost for i in chosen) / len(chosen) ** 2


def together(items: Sequence[Item], chosen: Sequence[int], capacity: float) -> bool:
    """Whether a set by ascending answer fits when it starts at once in an empty memory.

    Memory peaks where an answer ends, when those with longer ones are all still there.
    """
    prompts = growing = 0
    for i in reversed(chosen):
        prompt, answer, sequences, _ = items[i]
        prompts += prompt
        growing += sequences
        if prompts + growing * answer > capacity:
            return False
    return True


_ORDERS: tuple[Callable[[Item], float], ...] = (
    lambda item: item.cost,
    lambda item: item.prompt + item.sequences * item.answer,
    lambda item: item.prompt * item.answer + item.sequences * item.answer * (item.answer + 1) / 2,
    lambda item: item.prompt,
)


def _by_f(items: Sequence[Item]) -> Callable[[_Set], float]:
    return lambda chosen: f(items, chosen)


def _grown(items: Sequence[Item], order: Sequence[int], capacity: float) -> _Set:
    """Along an order, all that still fit; the best of all sets on the way."""
    chosen: _Set = []
    best: _Set = [order[0]]
    for i in order:
        larger = _with(items, chosen, i)
        if together(items, larger, capacity):
            chosen = larger
            if f(items, chosen) < f(items, best):
                best = chosen
    return best


def _better(items: Sequence[Item], chosen: _Set, among: Sequence[int], capacity: float) -> _Set | None:
    """The best neighbour of a set, if there is one with a smaller F that fits."""
    best, least = None, f(items, chosen)
    total = sum(items[i].cost for i in chosen)
    for gone, come in _exchanges(chosen, among):
        number = len(chosen) - len(gone) + len(come)
        value = total - sum(items[i].cost for i in gone) + sum(items[i].cost for i in come)
        if number and value < least * number**2:  # cheap, and mostly not so
            other = [i for i in chosen if i not in gone]
            for i in come:
                other = _with(items, other, i)
            if together(items, other, capacity):
                best, least = other, value / number**2
    return best


def _exchanges(chosen: _Set, among: Sequence[int]) -> Iterator[tuple[_Some, _Some]]:
    """What to take out and what to put in: one more; one less; one for one; one for two."""
    inside = set(chosen)
    outside = [i for i in among if i not in inside]
    pairs = list(combinations(outside[:_PAIRS], 2))
    yield from (((), (i,)) for i in outside)
    for gone in chosen:
        yield (gone,), ()
        yield from (((gone,), (i,)) for i in outside)
        yield from (((gone,), pair) for pair in pairs)


def _with(items: Sequence[Item], chosen: _Set, more: int) -> _Set:
    """The set with one more, in its place."""
    key = (items[more].answer, more)
    place = next((n for n, i in enumerate(chosen) if (items[i].answer, i) > key), len(chosen))
    return [*chosen[:place], more, *chosen[place:]]
