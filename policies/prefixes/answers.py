"""How much of an answer stands in a worker's cache behind the prompt that it answers?

A conversation goes on: its next prompt is the last one, the answer to it, and something new. Who gave the answer
has computed it and holds it, but what is predicted of caches are prompts. So a prompt that has been answered is
marked with the length of its answer, and a prompt that goes on where that one ended is taken to go on with it.

Nobody knows which answer it goes on with where several workers have given one: then it is taken to be none. And
not every conversation goes on like that: the reasoning of some models is left out of the next prompt. What workers
report of their hits tells: it is supposed silently until most of the last suppositions were right.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from policies.model import WorkerId

MOST = 8192
"""Prompts that are marked, of one line: those answered last."""
_JUDGED = 32

_Name = tuple[int, int]
"""A prompt's size in bytes and its digest."""


class Answer(NamedTuple):
    """An answer to a prompt, as it stands in a cache."""

    worker: WorkerId
    tokens: int
    """Behind what the prompt's key says."""
    context: int
    """With the prompt before it, as the worker has counted it."""


class Answers:
    """Who has answered which of one line's prompts. Their keys have units of `width` bytes."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._marks: OrderedDict[_Name, Answer | None] = OrderedDict()
        """None: several workers have."""
        self._sizes: Counter[int] = Counter()
        """How many marked prompts have this size: few matches end where a prompt could have."""
        self._last: deque[bool] = deque(maxlen=_JUDGED)
        self._trusted = False

    def __len__(self) -> int:
        """Prompts that are marked."""
        return len(self._marks)

    # Questions.

    def behind(self, key: bytes, held: Mapping[WorkerId, int]) -> dict[WorkerId, int]:
        """Tokens of an answer that follow on what each worker holds of a key, in units; only where there are."""
        if not self._trusted:
            return {}
        found: dict[WorkerId, int] = {}
        for units in set(held.values()):
            answer = self._at(key, units)
            if answer is not None and held.get(answer.worker) == units:
                found[answer.worker] = answer.tokens
        return found

    def supposed(self, worker: WorkerId, key: bytes, units: int) -> Answer | None:
        """The same for one worker, whether most of the last suppositions were right or not."""
        answer = self._at(key, units)
        return answer if answer is not None and answer.worker == worker else None

    # Events.

    def given(self, key: bytes, answer: Answer) -> None:
        """The prompt of this key has been answered."""
        name = (len(key), xxh3_64_intdigest(key))
        marks = self._marks
        if name not in marks:
            marks[name] = answer
            self._sizes[len(key)] += 1
            if len(marks) > MOST:
                self._remove(next(iter(marks)))
        else:
            before = marks[name]
            marks[name] = answer if before is not None and before.worker == answer.worker else None
            marks.move_to_end(name)

    def found(self, supposed: int, tokens: int) -> None:
        """Where so much was supposed to follow, a worker has found so much."""
        self._last.append(2 * tokens >= supposed)
        self._trusted = 2 * sum(self._last) >= len(self._last)

    def forget(self, worker: WorkerId) -> None:
        """It holds nothing any more. The cost is linear in the number of marks."""
        for name, answer in list(self._marks.items()):
            if answer is not None and answer.worker == worker:
                self._remove(name)

    # Inside.

    def _at(self, key: bytes, units: int) -> Answer | None:
        """The only answer to the prompt that the key's first `units` are, if the key goes on from there."""
        size = units * self._width
        if size not in self._sizes or size >= len(key):
            return None
        return self._marks.get((size, xxh3_64_intdigest(memoryview(key)[:size])))

    def _remove(self, name: _Name) -> None:
        del self._marks[name]
        size = name[0]
        self._sizes[size] -= 1
        if not self._sizes[size]:
            del self._sizes[size]
