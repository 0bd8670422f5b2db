"""Does one more request fit beside those that run, now and at every step until it ends?

Theory (Zhou et al., arXiv 2502.07115, 2508.06133, 2606.22327): in unit steps each sequence of a batch grows by one
KV token a step until its expected end, then gives back all that it holds. In between memory grows linearly, so the
peaks are at the ends: only these instants need checking. Between two ends the sum may be as far below the capacity
as those that end earlier have made room, which is what reserving every answer's whole length gives away.

Prompts may share a prefix, which is in memory once. How much of it is left after some have ended is not known, but
bounded twice: by what the prompts occupy together now, and by the sum of the prompts still there. The smaller one
counts. Without sharing that is exact; with sharing it never says too little.

Where a batch does not fit even by itself (answers that turned out longer than expected), a newcomer is held to the
instants at which it is there itself: with what comes later it has nothing to do.

`fits` is the definition; `Batch` answers the same question fast, for one batch and many newcomers.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from operator import neg
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Member(NamedTuple):
    """A request in a batch, or about to be. Tokens of KV cache."""

    prompt: int
    """Held from the beginning to the end, once for all its sequences."""
    answer: int
    """What its answers hold now, all together."""
    remaining: int
    """Steps until its expected end; it still holds everything in the last one."""
    sequences: int = 1
    """Answers that grow by a token a step each."""

    def held(self, step: int) -> int:
        """Tokens of its answers at a step from now."""
        return self.answer + self.sequences * step


def fits(
    batch: Sequence[Member], newcomer: Member, capacity: int, pinned: int | None = None, fresh: int | None = None
) -> bool:
    """Whether the newcomer can be there until its end without the sum ever exceeding the capacity.

    `pinned` is what the batch's prompts occupy now, what they share counted once (None: they share nothing);
    `fresh` what the newcomer's prompt adds to that (None: all of it).
    """
    prompts = sum(member.prompt for member in batch) if pinned is None else pinned
    prompts += newcomer.prompt if fresh is None else fresh
    members = [*batch, newcomer]
    for step in {member.remaining for member in members if member.remaining <= newcomer.remaining}:
        alive = [member for member in members if member.remaining >= step]
        together = min(prompts, sum(member.prompt for member in alive))
        if together + sum(member.held(step) for member in alive) > capacity:
            return False
    return True


_Row = NDArray[np.int64]


class Batch:
    """What runs on one worker, as a value: `fits` in O(log n) for most newcomers, one vector pass for the rest.

    Sorted by expected end when first asked. At the i-th of these ends, those from i on are still there, so all
    sums are suffix sums: of prompts, of answers, of sequences.
    """

    __slots__ = ("_profile", "_rows", "capacity", "pinned")

    def __init__(self, members: _Row | Sequence[Member], capacity: int, pinned: int | None = None) -> None:
        """`members`: their fields as a 4 x n array, which is not changed and must not be; or a sequence.

        `pinned` as in `fits`.
        """
        rows = members if isinstance(members, np.ndarray) else _table(members)
        self._rows = rows
        self._profile: _Profile | None = None
        self.capacity = capacity
        self.pinned = int(rows[0].sum()) if pinned is None else pinned

    def __len__(self) -> int:
        return int(self._rows.shape[1])

    def soonest(self) -> int:
        """Steps until the first of them is expected to end; 0 if there is none."""
        return int(self._rows[2].min()) if len(self) else 0

    def fits(self, newcomer: Member, fresh: int | None = None) -> bool:
        """As the function `fits`, of this batch."""
        profile = self._as_profile()
        prompt, answer, remaining, sequences = newcomer
        if fresh is None or fresh > prompt:
            fresh = prompt
        # Those that have ended before the newcomer's last step do not count in it, the others do.
        first = bisect_left(profile.ends, remaining)
        last = profile.answers[first] + answer + (profile.growing[first] + sequences) * remaining
        if last + min(self.pinned + fresh, profile.prompts[first] + prompt) > self.capacity:
            return False
        if first == 0:
            return True
        if sequences == 1:
            if fresh + answer > profile.free[first - 1]:
                return False
            if (
                fresh + answer <= profile.free_pinned[first - 1]
                or prompt + answer <= profile.free_apart[first - 1]
            ):
                return True
        return profile.most(first, prompt, self.pinned + fresh, sequences) + answer <= self.capacity

    def _as_profile(self) -> "_Profile":
        profile = self._profile
        if profile is None:
            profile = self._profile = _Profile(self._rows, self.capacity, self.pinned)
        return profile

    def steps_until_ended(self, sequences: int) -> int:
        """Steps until this many sequences are expected to have ended; until all have, if there are fewer."""
        profile = self._as_profile()
        left, ends = profile.growing[0] - sequences, profile.ends
        ended = bisect_left(profile.growing, -left, key=neg)  # `growing` falls: the first that is at most `left`
        return ends[min(ended, len(ends)) - 1] if ended and ends else 0

    def steps_until_free(self, prompt: int, fresh: int, answers: int) -> int:
        """Steps until a request is expected to fit beside the others for as long as they are there.

        It is counted with its whole prompt (`fresh` tokens of it are not in memory now) and `answers` tokens from
        then on, so the truth may be sooner. The last end, if it is larger than the capacity.
        """
        profile = self._as_profile()
        apart, shared = profile.peaks()
        rest, count = self.capacity - answers, len(profile.ends)
        ended = min(
            bisect_left(apart, prompt - rest, 1, count, key=neg),
            bisect_left(shared, self.pinned + fresh - rest, 1, count, key=neg),
        )
        return profile.ends[ended - 1] if count else 0

    def plus(self, newcomer: Member, fresh: int | None = None) -> "Batch":
        """The batch with one more in it."""
        added = newcomer.prompt if fresh is None else fresh
        rows = np.concatenate((self._rows, _table([newcomer])), axis=1)
        return Batch(rows, self.capacity, self.pinned + added)


class _Profile:
    """A batch over time: what is there at each end, and what is free up to it for one more sequence.

    Numbers that single questions read are in lists, which Python reads several times faster than arrays.
    """

    __slots__ = ("_sums", "answers", "ends", "free", "free_apart", "free_pinned", "growing", "prompts")

    def __init__(self, members: _Row, capacity: int, pinned: int) -> None:
        count = members.shape[1]
        rows = members[:, members[2].argsort(kind="stable")]
        sums = np.zeros((4, count + 1), np.int64)
        sums[:, :count] = rows[:, ::-1].cumsum(axis=1)[:, ::-1]
        sums[2, :count] = rows[2]
        self._sums = sums
        self.prompts, self.answers, self.ends, self.growing = sums.tolist()
        self.ends.pop()
        free = capacity - sums[1, :count] - (sums[3, :count] + 1) * rows[2]
        least = np.minimum.accumulate
        self.free = least(free - np.minimum(sums[0, :count], pinned)).tolist()
        self.free_pinned = least(free - pinned).tolist()
        """If none of the prompts is given back."""
        self.free_apart = least(free - sums[0, :count]).tolist()
        """If none of them is shared."""

    def peaks(self) -> tuple[list[int], list[int]]:
        """The most that is held at the i-th end or a later one, with unshared prompts, and without prompts."""
        prompts, answers, ends, growing = self._sums
        held = answers + growing * ends
        latest = np.maximum.accumulate
        return latest((prompts + held)[::-1])[::-1].tolist(), latest(held[::-1])[::-1].tolist()

    def most(self, first: int, prompt: int, pinned: int, sequences: int) -> int:
        """The most that is held at one of the first ends, with a newcomer that holds a prompt and grows."""
        prompts, answers, ends, growing = self._sums[:, :first]
        together = np.minimum(prompts + prompt, pinned)
        return int((together + answers + (growing + sequences) * ends).max())


class Occupants:
    """Who is on a worker, as members that come, grow and go; `batch` takes a picture of them.

    A table with a column per member, filled from the left: a member that goes leaves its column to the last one.
    """

    __slots__ = ("_columns", "_names", "_rows")

    def __init__(self) -> None:
        self._rows: _Row = np.zeros((4, 8), np.int64)
        self._names: list[Hashable] = []
        self._columns: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._names)

    def add(self, name: Hashable, member: Member) -> None:
        column = len(self._names)
        if column == self._rows.shape[1]:
            self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)), axis=1)
        rows = self._rows
        rows[0, column], rows[1, column], rows[2, column], rows[3, column] = member
        self._columns[name] = column
        self._names.append(name)

    def grow(self, name: Hashable, answer: int, remaining: int) -> None:
        """What its answers hold now, and how many steps it still needs."""
        column = self._columns[name]
        self._rows[1, column] = answer
        self._rows[2, column] = remaining

    def remove(self, name: Hashable) -> None:
        column, last = self._columns.pop(name), self._names.pop()
        if last is not name:
            self._rows[:, column] = self._rows[:, len(self._names)]
            self._columns[last] = column
            self._names[column] = last

    def batch(self, capacity: int, pinned: int) -> Batch:
        """As they are now."""
        return Batch(self._rows[:, : len(self._names)].copy(), capacity, pinned)


def _table(members: Sequence[Member]) -> _Row:
    return np.array(members, np.int64).reshape(-1, 4).T
