"""How far the KV cache reports of each worker are trusted.

    exact      reported from the beginning of its cache: nothing else counts, except what runs there now
    partial    reported since some moment: reports and predictions, whichever is more
    predicted  it reports nothing, or its reports contradict each other or its hits

A worker becomes exact when its reports begin with its cache, or say that the cache was emptied; partial when some
of them were lost, and while they are replayed (a late subscriber is sent past events, which say nothing about
requests sent since); predicted, for the rest of its life, when they cannot be true: blocks of another size than
its metrics say, or most of its last answers had other hits than predicted (events of another model, or tokens that
are not those of the worker's own tokenizer).
"""

import math
from collections import deque
from enum import StrEnum

from policies.model import RequestView, WorkerId
from policies.prefixes.kv_blocks import KvBlocks, Tally
from policies.prefixes.kv_events import Removed, Stored

_JUDGED = 32
_MOST_WRONG = 24
"""This many of the last `_JUDGED` hits predicted wrongly, by more than a block: reports are not trusted."""

_OVERFULL = 2
"""Reports of this many times the cache's capacity cannot be true (mixed attention may hold more than it says)."""


class Trust(StrEnum):
    """Where the knowledge of a worker's cache comes from."""

    EXACT = "exact"
    PARTIAL = "partial"
    PREDICTED = "predicted"


class Reports:
    """The KV cache reports of one pool's workers, as far as they are trusted."""

    def __init__(self) -> None:
        self.blocks = KvBlocks()
        self.version = 0
        """Grows whenever `match` may answer otherwise than before."""
        self._trust: dict[WorkerId, Trust] = {}
        self._replaying: dict[WorkerId, Trust] = {}
        """Workers whose past reports are being replayed, and the trust they have after that."""
        self._sizes: dict[WorkerId, int] = {}
        self._capacities: dict[WorkerId, int] = {}
        self._distrusted: dict[WorkerId, str] = {}
        self._wrong_hits: dict[WorkerId, deque[bool]] = {}

    # -- questions

    @property
    def any_trusted(self) -> bool:
        """Whether there is a worker whose reports are trusted."""
        return bool(self._trust)

    def trust(self, worker: WorkerId) -> Trust:
        return self._trust.get(worker, Trust.PREDICTED)

    def replaying(self, worker: WorkerId) -> bool:
        """Whether its past reports are still being replayed."""
        return worker in self._replaying

    def in_blocks(self, worker: WorkerId, tokens: int) -> int:
        """How much of `tokens` in its cache a worker can hit: full blocks, where their size is known."""
        size = self._sizes.get(worker) or self.blocks.block_size(worker) or 1
        return tokens // size * size

    def distrust_reason(self, worker: WorkerId) -> str | None:
        """Why its reports are not trusted; None for a worker that does not report, or reports correctly."""
        return self._distrusted.get(worker)

    def tally(self, worker: WorkerId) -> Tally | None:
        """Counts of its reported blocks; None for a worker whose reports are not trusted."""
        return self.blocks.tally(worker) if worker in self.blocks else None

    def exact(self) -> list[WorkerId]:
        """The workers whose reports alone count."""
        return [worker for worker, trust in self._trust.items() if trust is Trust.EXACT]

    def has_all(self, worker: WorkerId, request: RequestView, lora: str | None) -> bool:
        """Whether the worker has reported every full block of the prompt."""
        if request.chains is None:
            request.chains = {}
        return self.blocks.has_all(worker, request.key, lora, request.chains)

    def match(self, request: RequestView, lora: str | None, predicted: dict[WorkerId, int]) -> dict[WorkerId, int]:
        """Tokens of the prompt that each worker holds: the larger of `predicted`, in full blocks, and its reports.

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

    def start(self, worker: WorkerId) -> None:
        """The worker's reports begin: once it has caught up, they are all that its cache holds."""
        self._distrusted.pop(worker, None)
        self.blocks.follow(worker)
        self._replaying[worker] = Trust.EXACT
        self._set_trust(worker, Trust.EXACT)

    def caught_up(self, worker: WorkerId) -> None:
        """The replay is over: what it reports from now on happens now."""
        trust = self._replaying.pop(worker, None)
        if trust is not None:
            self._set_trust(worker, trust)

    def lost(self, worker: WorkerId, *, replaying: bool = False) -> None:
        """Some reports are missing: what came before is void, what follows is learned anew.

        `replaying`: what follows is past events, until `caught_up`.
        """
        if worker in self._trust:
            if replaying:
                self._replaying[worker] = Trust.PARTIAL
            self.blocks.clear(worker)
            self._set_trust(worker, Trust.PARTIAL)

    def stored(self, worker: WorkerId, event: Stored) -> None:
        """Blocks have come. Raises ValueError, changing nothing, if the event contradicts itself."""
        if worker not in self._trust:
            return
        self.blocks.stored(worker, event)
        self.version += 1
        self._compare_sizes(worker)
        # vLLM can be asked to report hits of a prompt again. They look like copies, which it never removes.
        if self.blocks.copied_tokens(worker) > _OVERFULL * self._capacities.get(worker, math.inf):
            self.lost(worker)

    def removed(self, worker: WorkerId, event: Removed) -> None:
        if worker in self._trust:
            self.blocks.removed(worker, event)
            self.version += 1

    def cleared(self, worker: WorkerId) -> None:
        """Its cache is empty, so that nothing in it is unknown any more."""
        if worker in self._trust:
            self.blocks.clear(worker)
            self._set_trust(worker, Trust.EXACT)

    # -- events: the worker

    def set_sizes(self, worker: WorkerId, block_size: int | None, kv_tokens: int | None = None) -> None:
        """Set tokens per block and tokens in the whole cache, by its metrics."""
        if kv_tokens is not None:
            self._capacities[worker] = kv_tokens
        if block_size is not None:
            self._sizes[worker] = block_size
            self._compare_sizes(worker)

    def record_cached(self, worker: WorkerId, predicted: int, cached: int) -> None:
        """The worker found `cached` tokens of a prompt in its cache, where `predicted` were expected."""
        if self._trust.get(worker) is not Trust.EXACT:
            return
        past = self._wrong_hits.setdefault(worker, deque(maxlen=_JUDGED))
        size = self._sizes.get(worker) or self.blocks.block_size(worker) or 1
        past.append(abs(cached - predicted) > size)
        if past[-1] and sum(past) >= _MOST_WRONG:
            self._distrust(worker, f"{sum(past)} of its last {len(past)} answers had other hits than reported")

    def remove_worker(self, worker: WorkerId) -> None:
        """Forget a worker that has left."""
        self._forget(worker)
        self._sizes.pop(worker, None)
        self._capacities.pop(worker, None)
        self._distrusted.pop(worker, None)

    # -- inside

    def _set_trust(self, worker: WorkerId, trust: Trust) -> None:
        if worker in self._replaying:
            self._replaying[worker] = trust
            trust = Trust.PARTIAL
        self._trust[worker] = trust
        self._wrong_hits.pop(worker, None)
        self.version += 1

    def _compare_sizes(self, worker: WorkerId) -> None:
        reported, size = self.blocks.block_size(worker), self._sizes.get(worker)
        if reported is not None and size is not None and reported != size:
            self._distrust(worker, f"its events have blocks of {reported} tokens, its metrics say {size}")

    def _distrust(self, worker: WorkerId, why: str) -> None:
        self._forget(worker)
        self._distrusted[worker] = why

    def _forget(self, worker: WorkerId) -> None:
        self._trust.pop(worker, None)
        self._replaying.pop(worker, None)
        self._wrong_hits.pop(worker, None)
        self.blocks.drop(worker)
        self.version += 1
