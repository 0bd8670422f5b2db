"""Which worker holds which prefix, in tokens, from three sources: reports, predictions, assumed answers.

Prediction: what was sent to a worker is taken to be in its cache until the tree's bound (the worker's own KV
capacity) says that it must have been evicted (`radix_tree.py`). Assumed answers: where the next prompt of a
conversation continues with an answer (`answers.py`). Reports: what workers publish of their caches
(`kv_blocks.py`), as far as it is trusted (`trust.py`).

For a worker whose reports are exact, and keys of token ids, only reports count, and predictions until the worker
must have reported them: while the request runs, and a moment longer if its blocks are not known by then. Keys of
text cannot be looked up among blocks of tokens: they are matched with predictions at every worker.
"""

import math
from collections import Counter
from itertools import product

from policies.model import Matches, RequestView, WorkerFacts, WorkerId
from policies.prefixes.answers import Answer, Answers
from policies.prefixes.kv_blocks import TOKEN_WIDTH
from policies.prefixes.kv_events import Removed, Stored
from policies.prefixes.radix_tree import Pin, PrefixTree, TokenBudget, TreeStats
from policies.prefixes.trust import Reports, Trust
from policies.value import value

_KV_TOKENS = 500_000
"""Capacity assumed for a worker whose own is not known: about an 8B model on an 80 GB GPU."""
_REPORTED_AFTER_S = 1.0
"""vLLM reports blocks at the end of the step that fills them; those of a prompt come before its first token."""
_EXPIRE_EVERY_S = 0.25


Space = tuple[str | None, bytes, int]
"""What separates caches: adapter, salt, width of a key's units. Every other served name is the base model."""


@value
class Pinned:
    """The path of a running request: it cannot be evicted until it is released."""

    tree: PrefixTree
    pin: Pin
    worker: WorkerId
    request: RequestView
    space: Space
    answer: Answer | None
    """The answer that was assumed to follow what the worker held of the prompt."""


class Prefixes:
    """What is known of the caches of one pool's workers. `reports` takes in their reports.

    What a worker is believed to hold is bounded by its own KV tokens, whatever the number of adapters, salts and
    kinds of key; a worker that is removed is forgotten.
    """

    def __init__(self) -> None:
        self.reports = Reports()
        self.predictions = Counter(dict.fromkeys(product(Trust, (True, False)), 0))
        """Answers by how the worker's cache was known, and whether their hits were predicted to the token."""
        self._budget = TokenBudget(_KV_TOKENS)
        self._trees: dict[int, PrefixTree] = {}
        """By width of a key's units."""
        self._answers = Answers()
        self._adapters_of: dict[WorkerId, frozenset[str]] = {}
        self._adapters: frozenset[str] = frozenset()
        self._unreported: dict[WorkerId, list[tuple[float, Pinned]]] = {}
        """Requests that have ended, and when, whose blocks are still to be reported."""
        self._expire_at = -math.inf

    # -- questions

    def match(self, request: RequestView) -> Matches:
        """Tokens of the request's prefix that each worker holds; never more than the prompt less one."""
        key = request.key
        if not key.data:
            return {}
        tokens = key.width == TOKEN_WIDTH
        if tokens and self.reports.any_trusted:
            self._expire(request.arrived)
        name = request.served_name
        adapter = name if name in self._adapters else None
        found: dict[WorkerId, int] = {}
        tree = self._trees.get(key.width)
        if tree is not None:
            space: Space = (adapter, key.salt, key.width)
            held = tree.match(key.data, space)
            most, scale = request.input_tokens - 1, key.tokens_per_unit
            for worker, units in held.items():
                if (hit := min(int(units * scale), most)) > 0:
                    found[worker] = hit
            for worker, more in self._answers.following(space, key.data, key.width, held).items():
                found[worker] = min(found.get(worker, 0) + more, most)
        return self.reports.match(request, adapter, found) if tokens else found

    @property
    def version(self) -> int:
        """Grows whenever `match` may answer otherwise for a request that was submitted before.

        Answers do not count: a prompt that continues with one is submitted after it.
        """
        version = self.reports.version
        for tree in self._trees.values():
            version += tree.version
        return version

    def pinned_tokens(self, worker: WorkerId) -> int:
        """KV tokens of the prompts running on a worker, shared prefixes counted once."""
        tokens = 0.0
        for tree in self._trees.values():
            if (cache := tree.caches.get(worker)) is not None:
                tokens += cache.pinned * tree.tokens_per_unit
        return int(tokens)

    def held_tokens(self, worker: WorkerId) -> int:
        """KV tokens that a worker holds, as far as it is known, running or only cached."""
        reported = self.reports.blocks.held_tokens(worker)
        if self.reports.trust(worker) is Trust.EXACT:
            return reported
        predicted = sum(tree.held(worker) * tree.tokens_per_unit for tree in self._trees.values())
        return max(reported, int(predicted))

    def stats(self) -> dict[int, TreeStats]:
        """The trees' sizes, by width of a key's units in bytes."""
        return {width: tree.stats() for width, tree in self._trees.items()}

    def sizes(self) -> dict[str, int]:
        """Entries of everything here that grows, by name."""
        return {
            "prefix_spaces": sum(tree.stats().spaces for tree in self._trees.values()),
            "answers": len(self._answers),
            "kv_blocks": len(self.reports.blocks),
            "unreported": sum(map(len, self._unreported.values())),
        }

    # -- events: requests

    def insert(self, worker: WorkerId, request: RequestView, now: float) -> Pinned | None:
        """The worker will hold the request's prompt; pinned until `release`."""
        key = request.key
        if not key.data:
            return None
        width = key.width
        if width == TOKEN_WIDTH and self.reports.any_trusted:
            self._expire(now)
        tree = self._trees.get(width)
        if tree is None:
            tree = self._trees[width] = PrefixTree(width, budget=self._budget)
        # Text: as far as it is learned by now. All keys of the tree count by the latest.
        tree.tokens_per_unit = key.tokens_per_unit
        name = request.served_name
        space = (name if name in self._adapters else None), key.salt, width
        pin = tree.insert(worker, key.data, now, space)
        answer = self._answers.assumed(worker, space, key.data, pin.known * width)
        return Pinned(tree, pin, worker, request, space, answer)

    def record_answer(self, pinned: Pinned, input_tokens: int, output_tokens: int) -> None:
        """The worker has read `input_tokens` and generated `output_tokens`, in all sequences together."""
        worker, request, key = pinned.worker, pinned.request, pinned.request.key
        computed = output_tokens // request.sequences - 1  # the last token has been sampled, no more
        reports = key.width == TOKEN_WIDTH and self.reports.trust(worker) is Trust.EXACT
        if computed > 0 and not reports:
            beside_key = request.input_tokens - int(len(key.data) // key.width * key.tokens_per_unit)
            answer = Answer(worker, beside_key + computed, input_tokens + computed)
            self._answers.record_answer(pinned.space, key.data, answer)

    def release(self, pinned: Pinned, now: float) -> None:
        """The request has ended; its path counts as used until now, as vLLM frees blocks at the end."""
        worker, request = pinned.worker, pinned.request
        pinned.tree.release(pinned.pin, now)
        if request.key.width == TOKEN_WIDTH and self.reports.trust(worker) is Trust.EXACT:
            if not self._is_reported(pinned):
                self._unreported.setdefault(worker, []).append((now, pinned))
            self._expire(now)

    def forget(self, worker: WorkerId, request: RequestView, keep_tokens: int) -> None:
        """The worker never computed this prompt beyond the first `keep_tokens`."""
        key = request.key
        tree = self._trees.get(key.width)
        if tree is not None:
            tree.evict(worker, key.data, int(keep_tokens / key.tokens_per_unit), self._space(request))

    def record_cached(self, worker: WorkerId, request: RequestView, matches: Matches, cached_tokens: int) -> None:
        """The worker reports how much of the prompt it found in its cache, where `matches` was predicted."""
        if request.sequences > 1 or request.resume_tokens:
            return
        predicted, tokens = matches.get(worker, 0), request.key.width == TOKEN_WIDTH
        self.predictions[
            self.reports.trust(worker) if tokens else Trust.PREDICTED, predicted == cached_tokens
        ] += 1
        if tokens:
            self.reports.record_cached(worker, predicted, cached_tokens)

    def record_continuation(self, pinned: Pinned, cached_tokens: int) -> None:
        """The same for an assumed answer: did the prompt continue with the answer to an earlier one?"""
        worker, request, answer = pinned.worker, pinned.request, pinned.answer
        if answer is None or request.sequences > 1 or request.resume_tokens:
            return
        prompt = self.reports.in_blocks(worker, answer.context - answer.tokens)
        assumed = self.reports.in_blocks(worker, answer.context) - prompt
        if assumed > 0:
            self._answers.record_found(assumed, cached_tokens - prompt)

    # -- events: workers

    def update_facts(self, facts: WorkerFacts) -> None:
        """Take in a worker, or replace what is known of it."""
        self._have_adapters(facts.id, facts.adapters)
        self.reports.set_sizes(facts.id, facts.block_size, facts.kv_tokens)
        self.set_capacity(facts.id, facts.kv_tokens)

    def set_capacity(self, worker: WorkerId, kv_tokens: int | None) -> None:
        """Bound what the worker is believed to hold; None: its capacity is not known."""
        tokens = kv_tokens or _KV_TOKENS
        if self._budget.capacities.get(worker) != tokens:
            self._budget.set_capacity(worker, tokens)

    def stored(self, worker: WorkerId, event: Stored) -> None:
        """Blocks have come. Raises ValueError, changing nothing, if the event contradicts itself."""
        self.reports.stored(worker, event)
        ended = self._unreported.pop(worker, None)
        if ended is not None and self.reports.trust(worker) is Trust.EXACT:
            self._keep_waiting(worker, [each for each in ended if not self._is_reported(each[1])])

    def removed(self, worker: WorkerId, event: Removed) -> None:
        """Blocks have gone."""
        self.reports.removed(worker, event)

    def cleared(self, worker: WorkerId) -> None:
        """The worker has emptied its cache. What runs there is not in it yet."""
        self.reports.cleared(worker)
        if self.reports.replaying(worker):
            return  # the event is past: requests may have been sent since
        self._unreported.pop(worker, None)
        for tree in self._trees.values():
            tree.expire(worker, math.inf)
        self._answers.forget(worker)

    def remove_worker(self, worker: WorkerId) -> None:
        """Forget a worker that has left."""
        self._have_adapters(worker, frozenset())
        self._unreported.pop(worker, None)
        self.reports.remove_worker(worker)
        self._budget.remove_worker(worker)
        self._answers.forget(worker)

    # -- inside

    def _space(self, request: RequestView) -> Space:
        name, key = request.served_name, request.key
        return (name if name in self._adapters else None), key.salt, key.width

    def _adapter(self, served_name: str) -> str | None:
        return served_name if served_name in self._adapters else None

    def _have_adapters(self, worker: WorkerId, adapters: frozenset[str]) -> None:
        if self._adapters_of.get(worker, frozenset()) != adapters:
            self._adapters_of[worker] = adapters
            self._adapters = frozenset[str]().union(*self._adapters_of.values())
        if not adapters:
            self._adapters_of.pop(worker, None)

    def _is_reported(self, ended: Pinned) -> bool:
        """Whether the worker has reported the whole prompt; from then on its reports alone count for it."""
        worker, request = ended.worker, ended.request
        known = self.reports.has_all(worker, request, self._adapter(request.served_name))
        if known:
            ended.tree.evict(worker, request.key.data, 0, ended.space)
        return known

    def _keep_waiting(self, worker: WorkerId, ended: list[tuple[float, Pinned]]) -> None:
        if ended:
            self._unreported[worker] = ended
        else:
            self._unreported.pop(worker, None)

    def _expire(self, now: float) -> None:
        """Drop predictions at workers with exact reports, once they must have been reported."""
        if now < self._expire_at:
            return
        self._expire_at = now + _EXPIRE_EVERY_S
        for worker, ended in list(self._unreported.items()):
            self._keep_waiting(worker, [each for each in ended if each[0] > now - _REPORTED_AFTER_S])
        tree = self._trees.get(TOKEN_WIDTH)
        if tree is not None:
            for worker in self.reports.exact():
                tree.expire(worker, now - _REPORTED_AFTER_S)
