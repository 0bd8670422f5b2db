"""Which worker holds which prefix: one radix tree per line and kind of key, counted in tokens.

Entries are predictions: what was sent to a worker is taken to be in its cache until the tree's bound (the
worker's own KV capacity) says that it must have been evicted.
"""

from dataclasses import dataclass

from policies.model import Matches, PrefixKey, RequestView, WorkerId
from policies.prefix_tree import Pin, PrefixTree, TreeStats

_KV_TOKENS = 500_000
"""Capacity assumed for a worker that does not tell its own: about an 8B model on an 80 GB GPU."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The path of a running request: it cannot be evicted until it is released."""

    tree: "_LineTree"
    pin: Pin


@dataclass(frozen=True, slots=True)
class _LineTree:
    tree: PrefixTree
    tokens_per_unit: float


class Prefixes:
    """The prefix trees of one pool."""

    def __init__(self) -> None:
        self._trees: dict[tuple[str, int], _LineTree] = {}
        self._capacity: dict[WorkerId, int] = {}

    def match(self, request: RequestView) -> Matches:
        """Tokens of the request's prefix that each worker holds; never more than the prompt less one."""
        line = self._trees.get((request.line, request.key.width))
        if line is None or not request.key.data:
            return {}
        most = max(0, request.input_tokens - 1)
        scale = request.key.tokens_per_unit
        held = line.tree.match(request.key.data).items()
        return {w: tokens for w, units in held if (tokens := min(int(units * scale), most)) > 0}

    def insert(self, worker: WorkerId, request: RequestView, now: float) -> Pinned | None:
        """The worker will hold the request's prompt; pinned until `release`."""
        if not request.key.data:
            return None
        line = self._line(request.line, request.key)
        return Pinned(line, line.tree.insert(worker, request.key.data, now))

    def release(self, pinned: Pinned, now: float) -> None:
        """The request has ended; its path counts as used until now, as vLLM frees blocks at the end."""
        pinned.tree.tree.release(pinned.pin, now)

    def forget(self, worker: WorkerId, request: RequestView, keep_tokens: int) -> None:
        """The worker never computed this prompt beyond the first `keep_tokens`."""
        line = self._trees.get((request.line, request.key.width))
        if line is not None:
            keep = int(keep_tokens / request.key.tokens_per_unit)
            line.tree.evict(worker, request.key.data, keep)

    def pinned_tokens(self, worker: WorkerId) -> int:
        """KV tokens of the prompts running on a worker, shared prefixes counted once."""
        return int(sum(line.tree.pinned(worker) * line.tokens_per_unit for line in self._trees.values()))

    def held_tokens(self, worker: WorkerId) -> int:
        """KV tokens that a worker is taken to hold, running or only cached."""
        return int(sum(line.tree.held(worker) * line.tokens_per_unit for line in self._trees.values()))

    def set_capacity(self, worker: WorkerId, kv_tokens: int | None) -> None:
        tokens = kv_tokens or _KV_TOKENS
        if self._capacity.get(worker) == tokens:
            return
        self._capacity[worker] = tokens
        for line in self._trees.values():
            line.tree.set_capacity(worker, int(tokens / line.tokens_per_unit))

    def remove(self, worker: WorkerId) -> None:
        self._capacity.pop(worker, None)
        for line in self._trees.values():
            line.tree.remove_worker(worker)

    def stats(self) -> dict[str, TreeStats]:
        """By line and width: `llama/1`."""
        return {f"{name}/{width}": line.tree.stats() for (name, width), line in self._trees.items()}

    def _line(self, name: str, key: PrefixKey) -> _LineTree:
        line = self._trees.get((name, key.width))
        if line is None:
            units = int(_KV_TOKENS / key.tokens_per_unit)
            line = _LineTree(PrefixTree(key.width, default_capacity=units), key.tokens_per_unit)
            self._trees[name, key.width] = line
            for worker, tokens in self._capacity.items():
                line.tree.set_capacity(worker, int(tokens / key.tokens_per_unit))
        return line
