"""What each worker was given in the last minutes: the accounts of Preble's load cost.

Theory. A prompt is a chain of chunks of `CHUNK` tokens; a chunk's name is the hash of everything up to its end, so
it stands for a node of the prefix tree. Per worker this keeps sums over the window (requests, missed tokens, pairs
of tokens for attention), how many of the window's requests use each chunk, and the chunks it should hold in order
of use, heads after tails, as vLLM evicts them.

Invariants: every sum is that over the entries of the window, and zero without any; a worker holds at most its
capacity in chunks; what leaves the window, is bound anew or never ran takes its part out exactly once; the window
is at most `window_s` long and holds at most `_MOST` requests.
"""

from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash

from policies.fleet.speed import Profile, pairs
from policies.model import RequestView, WorkerId

CHUNK = 128
"""Tokens per chunk."""
_MOST = 50_000
_KV_TOKENS = 500_000
"""Capacity of a worker that did not tell its own when it came."""
_LATEST = 64
"""Waits compared of one prefix."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request that was bound to a worker."""

    at: float
    worker: WorkerId
    chunks: Sequence[int]
    missed: int
    context: int
    """Tokens of the prompt that were cached."""
    counted: bool = True
    """It is part of the sums."""
    hot: int | None = None
    """The chunk under which its wait is kept."""
    wait_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Given:
    """One worker's part of the window."""

    capacity: int = _KV_TOKENS // CHUNK
    requests: int = 0
    missed: int = 0
    pairs: float = 0.0
    uses: Counter[int] = field(default_factory=Counter)
    held: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Chunk -> its depth, least recently used first."""


class Window:
    """The last `window_s` seconds of placements and answers."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._entries: deque[Entry] = deque()
        self._given: dict[WorkerId, _Given] = {}
        self._uses: Counter[int] = Counter()
        self._outputs: deque[tuple[float, int]] = deque()
        self._output_sum = 0
        self._waits: dict[int, deque[Entry]] = {}

    # -- questions

    def mean_output(self) -> float | None:
        """Tokens of an answer that ended within the window."""
        return self._output_sum / len(self._outputs) if self._outputs else None

    def prefill_s(self, worker: WorkerId, profile: Profile) -> float:
        """Time that a worker's prompts of the window take to compute."""
        given = self._given.get(worker)
        if given is None:
            return 0.0
        return (
            profile.base_s * given.requests + profile.per_token_s * given.missed + profile.per_pair_s * given.pairs
        )

    def requests(self, worker: WorkerId) -> int:
        """How many the worker was given within the window."""
        given = self._given.get(worker)
        return 0 if given is None else given.requests

    def eviction_s(self, worker: WorkerId, chunks: Sequence[int], profile: Profile) -> float:
        """What making room for these chunks costs: the prefill of each evicted chunk, by its share of requests."""
        given = self._given.get(worker)
        if given is None or not given.requests:
            return 0.0
        own = set(chunks)
        excess = len(own - given.held.keys()) + len(given.held) - given.capacity
        cost = 0.0
        for chunk, depth in given.held.items():
            if excess <= 0:
                break
            if chunk not in own:
                excess -= 1
                seconds = profile.per_token_s * CHUNK + profile.per_pair_s * pairs(CHUNK, depth * CHUNK)
                cost += seconds * given.uses[chunk] / given.requests
        return cost

    def hot(self, chunks: Sequence[int], least: int) -> int | None:
        """The longest of these prefixes that at least this many requests of the window share."""
        deepest = bisect_left(chunks, 1, key=lambda chunk: self._uses[chunk] < least)
        return chunks[deepest - 1] if deepest else None

    def waits_s(self, chunk: int) -> list[float]:
        """How long the latest requests of a hot prefix waited, oldest first."""
        return [entry.wait_s for entry in self._waits.get(chunk, ())]

    # -- events

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        while self._entries and (self._entries[0].at <= now - self._window_s or len(self._entries) > _MOST):
            self.drop(self._entries.popleft())
        while self._outputs and self._outputs[0][0] <= now - self._window_s:
            self._output_sum -= self._outputs.popleft()[1]

    def arrive(self, worker: WorkerId, kv_tokens: int | None) -> None:
        self._given.setdefault(worker, _Given()).capacity = (kv_tokens or _KV_TOKENS) // CHUNK

    def leave(self, worker: WorkerId) -> None:
        for entry in [entry for entry in self._entries if entry.worker == worker]:
            self.drop(entry)
        self._given.pop(worker, None)

    def bind(self, request: RequestView, worker: WorkerId, now: float) -> Entry:
        """The request goes to a worker; how much of its prompt is cached there is known in chunks so far."""
        given = self._given.setdefault(worker, _Given())
        chunks = chunks_of(request)
        cached = bisect_left(chunks, 1, key=lambda chunk: chunk not in given.held) * CHUNK
        entry = Entry(now, worker, chunks, max(1, request.input_tokens - cached), cached)
        self._entries.append(entry)
        given.requests += 1
        _count_tokens(given, entry, 1)
        given.uses.update(chunks)
        self._uses.update(chunks)
        for depth in reversed(range(len(chunks))):
            given.held[chunks[depth]] = depth
            given.held.move_to_end(chunks[depth])
        while len(given.held) > given.capacity:
            given.held.popitem(last=False)
        return entry

    def holds(self, worker: WorkerId, chunk: int) -> bool:
        given = self._given.get(worker)
        return given is not None and chunk in given.held

    def place(self, entry: Entry, missed: int, context: int) -> None:
        """Now it is known how much has to be computed."""
        if entry.counted:
            given = self._given[entry.worker]
            _count_tokens(given, entry, -1)
            entry.missed, entry.context = missed, context
            _count_tokens(given, entry, 1)

    def wait(self, entry: Entry, chunk: int, seconds: float) -> None:
        """A request of a hot prefix has started after waiting so long."""
        entry.hot, entry.wait_s = chunk, seconds
        waits = self._waits.setdefault(chunk, deque(maxlen=_LATEST))
        waits.append(entry)

    def forget_waits(self, chunk: int) -> None:
        self._waits.pop(chunk, None)

    def answer(self, output_tokens: int, now: float) -> None:
        self._outputs.append((now, output_tokens))
        self._output_sum += output_tokens
        if len(self._outputs) > _MOST:
            self._output_sum -= self._outputs.popleft()[1]

    def drop(self, entry: Entry) -> None:
        """It is too old, was bound anew, or never ran; nothing the second time."""
        if not entry.counted:
            return
        entry.counted = False
        given = self._given[entry.worker]
        given.requests -= 1
        _count_tokens(given, entry, -1)
        _subtract(given.uses, entry.chunks)
        _subtract(self._uses, entry.chunks)
        if entry.hot is not None and (waits := self._waits.get(entry.hot)) and waits[0] is entry:
            waits.popleft()
            if not waits:
                del self._waits[entry.hot]


def chunks_of(request: RequestView) -> Sequence[int]:
    """The names of a prompt's whole chunks."""
    key = request.key
    step = max(1, round(CHUNK / key.tokens_per_unit)) * key.width
    name = xxhash.xxh3_64_intdigest(request.served_name.encode(), key.width)
    names = array("Q")
    for end in range(step, len(key.data) + 1, step):
        name = xxhash.xxh3_64_intdigest(key.data[end - step : end], name)
        names.append(name)
    return names


def _count_tokens(given: _Given, entry: Entry, sign: int) -> None:
    given.missed += sign * entry.missed
    given.pairs += sign * pairs(entry.missed, entry.context)


def _subtract(uses: Counter[int], chunks: Sequence[int]) -> None:
    for chunk in chunks:
        uses[chunk] -= 1
        if not uses[chunk]:
            del uses[chunk]
