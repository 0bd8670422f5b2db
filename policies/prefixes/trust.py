"""How far can what a worker reports of its cache be believed?

    exact      reported from the beginning of its cache: nothing else is believed, but for what runs there now
    partial    reported since some moment: what it says, and what was predicted, whichever is more
    predicted  it reports nothing, or what it reports does not agree with itself or with what it does

A worker becomes exact when its reports begin with its cache, or say that the cache was emptied; partial when some
of them were lost, and as long as what they tell is past (repeated to one who listens late: it says nothing of what
was sent to the worker since); predicted, for the rest of its life, when they cannot be true: blocks of another
size than its metrics say, or most of its answers in a row had other hits than were foretold (the events of another
model, or tokens that are not those of the worker's own tokenizer).
"""

import math
from collections import deque
from enum import Enum

from policies.model import RequestView, WorkerId
from policies.prefixes.kv_blocks import HeldBlocks
from policies.prefixes.kv_events import Removed, Stored
from policies.prefixes.reported_cache import Tally

_JUDGED = 32
_MOST_WRONG = 24
"""So many of so many requests foretold wrongly, by more than a block: what is reported is not what is there."""

_OVERFULL = 2
"""So many times what a cache can hold is not in it. Models of mixed attention hold more blocks than they say."""


class Index(Enum):
    """Where the knowledge of a worker's cache comes from."""

    EXACT = "exact"
    PARTIAL = "partial"
    PREDICTED = "predicted"


class Reported:
    """The reports of one pool's workers."""

    def __init__(self) -> None:
        self.blocks = HeldBlocks()
        self.version = 0
        """Moved whenever `match` may answer otherwise than before."""
        self._indices: dict[WorkerId, Index] = {}
        self._behind: dict[WorkerId, Index] = {}
        """Whose reports are of the past, and what they will be when they no longer are."""
        self._sizes: dict[WorkerId, int] = {}
        self._capacities: dict[WorkerId, int] = {}
        self._doubts: dict[WorkerId, str] = {}
        self._foretold: dict[WorkerId, deque[bool]] = {}

    # -- questions

    @property
    def anybody(self) -> bool:
        """Whether there is a worker whose reports are believed."""
        return bool(self._indices)

    def index(self, worker: WorkerId) -> Index:
        return self._indices.get(worker, Index.PREDICTED)

    def behind(self, worker: WorkerId) -> bool:
        """Whether its reports are of the past yet."""
        return worker in self._behind

    def in_blocks(self, worker: WorkerId, tokens: int) -> int:
        """How much of so many tokens in its cache a worker can hit: full blocks, where their size is known."""
        size = self._sizes.get(worker) or self.blocks.block_size(worker) or 1
        return tokens // size * size

    def doubt(self, worker: WorkerId) -> str | None:
        """Why its reports are not believed; None for a worker that does not report, or rightly."""
        return self._doubts.get(worker)

    def tally(self, worker: WorkerId) -> Tally | None:
        """What has become of its reports; None for a worker that is not listened to."""
        return self.blocks.tally(worker) if worker in self.blocks else None

    def exact(self) -> list[WorkerId]:
        """The workers of which nothing else is believed."""
        return [worker for worker, index in self._indices.items() if index is Index.EXACT]

    def has_all(self, worker: WorkerId, request: RequestView, lora: str | None) -> bool:
        """Whether the worker has reported every full block of the prompt."""
        if request.chains is None:
            request.chains = {}
        return self.blocks.has_all(worker, request.key, lora, request.chains)

    def match(self, request: RequestView, lora: str | None, predicted: dict[WorkerId, int]) -> dict[WorkerId, int]:
        """Tokens of the prompt that each worker holds: `predicted` in full blocks, put right for those who report.

        vLLM hits full blocks only, and always computes the last token.
        """
        if request.chains is None:
            request.chains = {}
        found = self.blocks.match(request.key, lora, request.chains)
        most = request.input_tokens - 1
        for worker, tokens in predicted.items():
            held = self.in_blocks(worker, min(tokens, most))
            if held > found.get(worker, 0):
                found[worker] = held
        return found

    # -- events: reports

    def begins(self, worker: WorkerId) -> None:
        """What it reports from now on is all that its cache holds, once it has caught up."""
        self._doubts.pop(worker, None)
        self.blocks.follow(worker)
        self._behind[worker] = Index.EXACT
        self._is(worker, Index.EXACT)

    def caught_up(self, worker: WorkerId) -> None:
        """What it reports from now on happens now."""
        index = self._behind.pop(worker, None)
        if index is not None:
            self._is(worker, index)

    def lost(self, worker: WorkerId, *, behind: bool = False) -> None:
        """Some reports are missing: what came before is void, what follows is learned anew.

        `behind`: and is of the past, until it has caught up.
        """
        if worker in self._indices:
            if behind:
                self._behind[worker] = Index.PARTIAL
            self.blocks.clear(worker)
            self._is(worker, Index.PARTIAL)

    def stored(self, worker: WorkerId, event: Stored) -> None:
        """ValueError if the event contradicts itself; it has changed nothing then."""
        if worker not in self._indices:
            return
        self.blocks.stored(worker, event)
        self.version += 1
        self._compare_sizes(worker)
        # vLLM can be asked to tell again what a prompt has hit. That looks like copies, which it never removes.
        if self.blocks.copied_tokens(worker) > _OVERFULL * self._capacities.get(worker, math.inf):
            self.lost(worker)

    def removed(self, worker: WorkerId, event: Removed) -> None:
        if worker in self._indices:
            self.blocks.removed(worker, event)
            self.version += 1

    def cleared(self, worker: WorkerId) -> None:
        """Its cache is empty, so that nothing of it is unknown any more."""
        if worker in self._indices:
            self.blocks.clear(worker)
            self._is(worker, Index.EXACT)

    # -- events: the worker

    def sized(self, worker: WorkerId, block_size: int | None, kv_tokens: int | None = None) -> None:
        """Tokens per block and in the whole cache, by its metrics."""
        if kv_tokens is not None:
            self._capacities[worker] = kv_tokens
        if block_size is not None:
            self._sizes[worker] = block_size
            self._compare_sizes(worker)

    def answered(self, worker: WorkerId, foretold: int, cached: int) -> None:
        """It has found so many tokens of a prompt in its cache, where so many were foretold."""
        if self._indices.get(worker) is not Index.EXACT:
            return
        past = self._foretold.setdefault(worker, deque(maxlen=_JUDGED))
        size = self._sizes.get(worker) or self.blocks.block_size(worker) or 1
        past.append(abs(cached - foretold) > size)
        if past[-1] and sum(past) >= _MOST_WRONG:
            self._disbelieve(worker, f"{sum(past)} of its last {len(past)} answers had other hits than reported")

    def gone(self, worker: WorkerId) -> None:
        """The worker has left, and its cache with it."""
        self._forget(worker)
        self._sizes.pop(worker, None)
        self._capacities.pop(worker, None)
        self._doubts.pop(worker, None)

    # -- inside

    def _is(self, worker: WorkerId, index: Index) -> None:
        if worker in self._behind:
            self._behind[worker] = index
            index = Index.PARTIAL
        self._indices[worker] = index
        self._foretold.pop(worker, None)
        self.version += 1

    def _compare_sizes(self, worker: WorkerId) -> None:
        told, size = self.blocks.block_size(worker), self._sizes.get(worker)
        if told is not None and size is not None and told != size:
            self._disbelieve(worker, f"its events have blocks of {told} tokens, its metrics say {size}")

    def _disbelieve(self, worker: WorkerId, why: str) -> None:
        self._forget(worker)
        self._doubts[worker] = why

    def _forget(self, worker: WorkerId) -> None:
        self._indices.pop(worker, None)
        self._behind.pop(worker, None)
        self._foretold.pop(worker, None)
        self.blocks.drop(worker)
        self.version += 1
