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
from dataclasses import dataclass
from itertools import product

from xxhash import xxh3_64_digest

from policies.model import Matches, PrefixKey, RequestView, WorkerFacts, WorkerId
from policies.prefixes.answers import Answer, Answers
from policies.prefixes.kv_blocks import TOKEN_WIDTH
from policies.prefixes.kv_events import Removed, Stored
from policies.prefixes.radix_tree import Pin, PrefixTree, TreeStats
from policies.prefixes.trust import Reports, Trust
from policies.value import value

_KV_TOKENS = 500_000
"""Capacity assumed for a worker whose own is not known: about an 8B model on an 80 GB GPU."""
_REPORTED_AFTER_S = 1.0
"""vLLM reports blocks at the end of the step that fills them; those of a prompt come before its first token."""
_EXPIRE_EVERY_S = 0.25
_SALT_BYTES = 8


@value
class Pinned:
    """The path of a running request: it cannot be evicted until it is released."""

    tree: "_LineTree"
    pin: Pin
    worker: WorkerId
    request: RequestView
    answer: Answer | None
    """The answer that was assumed to follow what the worker held of the prompt."""


@dataclass(frozen=True, slots=True)
class _LineTree:
    tree: PrefixTree
    tokens_per_unit: float
    answers: Answers


class Prefixes:
    """What is known of the caches of one pool's workers. `reports` takes in their reports."""

    def __init__(self) -> None:
        self.reports = Reports()
        self.predictions = Counter(dict.fromkeys(product(Trust, (True, False)), 0))
        """Answers by how the worker's cache was known, and whether their hits were predicted to the token."""
        self._trees: dict[tuple[str, int], _LineTree] = {}
        self._capacity: dict[WorkerId, int] = {}
        self._adapters: dict[WorkerId, frozenset[str]] = {}
        self._adapter_lines: frozenset[str] = frozenset()
        """Every other line is the base model, by whatever name."""
        self._unreported: dict[WorkerId, list[tuple[float, Pinned]]] = {}
        """Requests that have ended, and when, whose blocks are still to be reported."""
        self._expire_at = -math.inf

    # -- questions

    def match(self, request: RequestView) -> Matches:
        """Tokens of the request's prefix that each worker holds; never more than the prompt less one."""
        key = request.key
        if not key.data:
            return {}
        if key.width != TOKEN_WIDTH:
            return self._predicted(request)
        if self.reports.any_trusted:
            self._expire(request.arrived)
        return self.reports.match(request, self._adapter(request.served_name), self._predicted(request))

    @property
    def version(self) -> int:
        """Grows whenever `match` may answer otherwise for a request that was submitted before.

        Answers do not count: a prompt that continues with one is submitted after it.
        """
        version = self.reports.version
        for line in self._trees.values():
            version += line.tree.version
        return version

    def pinned_tokens(self, worker: WorkerId) -> int:
        """KV tokens of the prompts running on a worker, shared prefixes counted once."""
        tokens = 0.0
        for line in self._trees.values():
            tokens += line.tree.pinned(worker) * line.tokens_per_unit
        return int(tokens)

    def held_tokens(self, worker: WorkerId) -> int:
        """KV tokens that a worker holds, as far as it is known, running or only cached."""
        reported = self.reports.blocks.held_tokens(worker)
        if self.reports.trust(worker) is Trust.EXACT:
            return reported
        return max(
            reported, int(sum(line.tree.held(worker) * line.tokens_per_unit for line in self._trees.values()))
        )

    def stats(self) -> dict[str, TreeStats]:
        """By line and width: `llama/1`."""
        return {f"{name}/{width}": line.tree.stats() for (name, width), line in self._trees.items()}

    # -- events: requests

    def insert(self, worker: WorkerId, request: RequestView, now: float) -> Pinned | None:
        """The worker will hold the request's prompt; pinned until `release`."""
        if not request.key.data:
            return None
        self._expire(now)
        line, units = self._line(request.served_name, request.key), _units(request.key)
        pin = line.tree.insert(worker, units, now)
        return Pinned(line, pin, worker, request, line.answers.assumed(worker, units, pin.known))

    def record_answer(self, pinned: Pinned, input_tokens: int, output_tokens: int) -> None:
        """The worker has read `input_tokens` and generated `output_tokens`, in all sequences together."""
        worker, request, key = pinned.worker, pinned.request, pinned.request.key
        computed = output_tokens // request.sequences - 1  # the last token has been sampled, no more
        reports = key.width == TOKEN_WIDTH and self.reports.trust(worker) is Trust.EXACT
        if computed > 0 and not reports:
            beside_key = request.input_tokens - int(len(key.data) // key.width * key.tokens_per_unit)
            answer = Answer(worker, beside_key + computed, input_tokens + computed)
            pinned.tree.answers.record_answer(_units(key), answer)

    def release(self, pinned: Pinned, now: float) -> None:
        """The request has ended; its path counts as used until now, as vLLM frees blocks at the end."""
        worker, request = pinned.worker, pinned.request
        pinned.tree.tree.release(pinned.pin, now)
        if request.key.width == TOKEN_WIDTH and self.reports.trust(worker) is Trust.EXACT:
            if not self._is_reported(pinned):
                self._unreported.setdefault(worker, []).append((now, pinned))
            self._expire(now)

    def forget(self, worker: WorkerId, request: RequestView, keep_tokens: int) -> None:
        """The worker never computed this prompt beyond the first `keep_tokens`."""
        key = request.key
        line = self._trees.get((request.served_name, key.width))
        if line is not None:
            line.tree.evict(worker, _units(key), _before(key) + int(keep_tokens / key.tokens_per_unit))

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
            pinned.tree.answers.record_found(assumed, cached_tokens - prompt)

    # -- events: workers

    def update_facts(self, facts: WorkerFacts) -> None:
        """Take in a worker, or replace what is known of it."""
        self._have_adapters(facts.id, facts.adapters)
        self.reports.set_sizes(facts.id, facts.block_size, facts.kv_tokens)
        self.set_capacity(facts.id, facts.kv_tokens)

    def set_capacity(self, worker: WorkerId, kv_tokens: int | None) -> None:
        tokens = kv_tokens or _KV_TOKENS
        if self._capacity.get(worker) == tokens:
            return
        self._capacity[worker] = tokens
        for line in self._trees.values():
            line.tree.set_capacity(worker, int(tokens / line.tokens_per_unit))

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
        for line in self._trees.values():
            line.tree.expire(worker, math.inf)
            line.answers.forget(worker)

    def remove_worker(self, worker: WorkerId) -> None:
        self._capacity.pop(worker, None)
        self._have_adapters(worker, frozenset())
        self._unreported.pop(worker, None)
        self.reports.remove_worker(worker)
        for line in self._trees.values():
            line.tree.remove_worker(worker)
            line.answers.forget(worker)

    # -- inside

    def _predicted(self, request: RequestView) -> dict[WorkerId, int]:
        key = request.key
        line = self._trees.get((request.served_name, key.width))
        if line is None:
            return {}
        most, scale, before = max(0, request.input_tokens - 1), key.tokens_per_unit, _before(key)
        units = _units(key)
        held = line.tree.match(units)
        found = {w: tokens for w, n in held.items() if (tokens := min(int((n - before) * scale), most)) > 0}
        for worker, tokens in line.answers.following(units, held).items():
            found[worker] = min(found.get(worker, 0) + tokens, most)
        return found

    def _adapter(self, line: str) -> str | None:
        return line if line in self._adapter_lines else None

    def _have_adapters(self, worker: WorkerId, adapters: frozenset[str]) -> None:
        if self._adapters.get(worker, frozenset()) != adapters:
            self._adapters[worker] = adapters
            self._adapter_lines = frozenset[str]().union(*self._adapters.values())
        if not adapters:
            self._adapters.pop(worker, None)

    def _is_reported(self, ended: Pinned) -> bool:
        """Whether the worker has reported the whole prompt; from then on its reports alone count for it."""
        worker, request = ended.worker, ended.request
        known = self.reports.has_all(worker, request, self._adapter(request.served_name))
        if known:
            ended.tree.tree.evict(worker, _units(request.key), 0)
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
        for worker in self.reports.exact():
            for (_, width), line in self._trees.items():
                if width == TOKEN_WIDTH:
                    line.tree.expire(worker, now - _REPORTED_AFTER_S)

    def _line(self, name: str, key: PrefixKey) -> _LineTree:
        line = self._trees.get((name, key.width))
        if line is None:
            units = int(_KV_TOKENS / key.tokens_per_unit)
            tree = PrefixTree(key.width, default_capacity=units)
            line = _LineTree(tree, key.tokens_per_unit, Answers(key.width))
            self._trees[name, key.width] = line
            for worker, tokens in self._capacity.items():
                line.tree.set_capacity(worker, int(tokens / key.tokens_per_unit))
        return line


def _before(key: PrefixKey) -> int:
    """Units before the prompt that stand for its salt."""
    return _SALT_BYTES // key.width if key.salt else 0


def _units(key: PrefixKey) -> bytes:
    """The key as the tree has it: with the salt in front."""
    return xxh3_64_digest(key.salt) + key.data if key.salt else key.data
