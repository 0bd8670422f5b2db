"""Predicts how much of an answer is in a worker's cache after the prompt that it answers.

The next prompt of a conversation is the last one, the answer to it, and something new. The worker that gave the
answer has computed it and holds its KV, but the prefix tree only knows prompts. So an answered prompt is marked
with the length of its answer, and a prompt that continues where that one ended is assumed to continue with the
answer.

Where several workers have answered the same prompt, it is not known which answer a prompt continues with: none is
assumed. And not every conversation continues like that: the reasoning of some models is left out of the next
prompt. The hits that workers report show it: assumptions are used only while most of the last ones were right.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from policies.model import WorkerId

MAX_MARKS = 8192
"""Marked prompts of one pool, the last answered ones."""
_JUDGED = 32
"""Assumptions, the last ones, by which it is decided whether assumptions are used."""

_Name = tuple[Hashable, int, int]
"""A prompt's space, its size in bytes and its digest."""


class Answer(NamedTuple):
    """An answer to a prompt, as it stands in a cache."""

    worker: WorkerId
    tokens: int
    """KV tokens after those that the prompt's key stands for."""
    context: int
    """KV tokens of prompt and answer together, as the worker counts them."""


class Answers:
    """Answered prompts of one pool with their answers. Prompts of different spaces have nothing in common."""

    def __init__(self) -> None:
        self._marks: OrderedDict[_Name, Answer | None] = OrderedDict()
        """None: several workers have answered."""
        self._sizes: Counter[int] = Counter()
        """How many marked prompts have this size: few matches end where a prompt could have."""
        self._recent: deque[bool] = deque(maxlen=_JUDGED)
        self._in_use = False
        """Most of the last assumptions were right."""

    def __len__(self) -> int:
        """Prompts that are marked."""
        return len(self._marks)

    # -- questions

    def following(
        self, space: Hashable, key: bytes, width: int, held: Mapping[WorkerId, int]
    ) -> dict[WorkerId, int]:
        """By worker, tokens of an answer that follow the units of `width` bytes it holds of a key, if any."""
        found: dict[WorkerId, int] = {}
        if not self._in_use:
            return found
        for units in set(held.values()):
            answer = self._at(space, key, units * width)
            if answer is not None and held.get(answer.worker) == units:
                found[answer.worker] = answer.tokens
        return found

    def assumed(self, worker: WorkerId, space: Hashable, key: bytes, size: int) -> Answer | None:
        """The answer of this worker that follows `size` bytes of the key, whether assumptions are used or not."""
        answer = self._at(space, key, size)
        return answer if answer is not None and answer.worker == worker else None

    # -- events

    def record_answer(self, space: Hashable, key: bytes, answer: Answer) -> None:
        """The prompt with this key has been answered."""
        name = (space, len(key), xxh3_64_intdigest(key))
        marks = self._marks
        if name not in marks:
            marks[name] = answer
            self._sizes[len(key)] += 1
            if len(marks) > MAX_MARKS:
                self._remove(next(iter(marks)))
        else:
            before = marks[name]
            marks[name] = answer if before is not None and before.worker == answer.worker else None
            marks.move_to_end(name)

    def record_found(self, assumed: int, tokens: int) -> None:
        """A worker has found `tokens` of an answer in its cache, where `assumed` were expected."""
        self._recent.append(2 * tokens >= assumed)
        self._in_use = 2 * sum(self._recent) >= len(self._recent)

    def forget(self, worker: WorkerId) -> None:
        """The worker holds nothing any more. The cost is linear in the number of marks."""
        for name, answer in list(self._marks.items()):
            if answer is not None and answer.worker == worker:
                self._remove(name)

    # -- inside

    def _at(self, space: Hashable, key: bytes, size: int) -> Answer | None:
        """The only answer to the prompt that the key's first `size` bytes are, if the key goes on from there."""
        if size not in self._sizes or size >= len(key):
            return None
        return self._marks.get((space, size, xxh3_64_intdigest(memoryview(key)[:size])))

    def _remove(self, name: _Name) -> None:
        del self._marks[name]
        size = name[1]
        self._sizes[size] -= 1
        if not self._sizes[size]:
            del self._sizes[size]
