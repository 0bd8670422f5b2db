"""Which worker holds which prefix, in tokens: what workers report of their caches, else what is predicted.

A prediction: what was sent to a worker is taken to be in its cache until the tree's bound (the worker's own KV
capacity) says that it must have been evicted; an answer, where the next prompt goes on with it (`answers.py`). One
radix tree per line and kind of key.

Of a worker whose reports are exact, and for keys of token ids, only what it reports is believed, and predictions
until it must have reported them: while the request runs, and a moment longer if its blocks are not known by then.
Keys of text cannot be looked up among blocks of tokens: they are matched with predictions at every worker.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product

from xxhash import xxh3_64_digest

from policies.model import Matches, PrefixKey, RequestView, WorkerFacts, WorkerId
from policies.prefixes.answers import Answer, Answers
from policies.prefixes.believed_cache import Pin
from policies.prefixes.kv_blocks import TOKEN_WIDTH
from policies.prefixes.kv_events import Removed, Stored
from policies.prefixes.prefix_tree import PrefixTree, TreeStats
from policies.prefixes.trust import Index, Reported
from policies.value import value

_KV_TOKENS = 500_000
"""Capacity assumed for a worker that does not tell its own: about an 8B model on an 80 GB GPU."""
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
    """What was supposed to stand behind what the worker held of it."""


@dataclass(frozen=True, slots=True)
class _LineTree:
    tree: PrefixTree
    tokens_per_unit: float
    answers: Answers


class Prefixes:
    """What is known of the caches of one pool's workers. `reported` takes their reports in."""

    def __init__(self) -> None:
        self.reported = Reported()
        self.foretold = Counter(dict.fromkeys(product(Index, (True, False)), 0))
        """Answers by how the worker's cache was known, and whether their hits were foretold to the token."""
        self._trees: dict[tuple[str, int], _LineTree] = {}
        self._capacity: dict[WorkerId, int] = {}
        self._adapters: dict[WorkerId, frozenset[str]] = {}
        self._adapter_lines: frozenset[str] = frozenset()
        """Every other line is the base model, by whatever name."""
        self._unreported: dict[WorkerId, list[tuple[float, Pinned]]] = {}
        """Requests that have ended, and when, and whose blocks are still to be reported."""
        self._expire_at = -math.inf

    # -- questions

    def match(self, request: RequestView) -> Matches:
        """Tokens of the request's prefix that each worker holds; never more than the prompt less one."""
        key = request.key
        if not key.data:
            return {}
        if key.width != TOKEN_WIDTH:
            return self._predicted(request)
        if self.reported.anybody:
            self._expire(request.arrived)
        return self.reported.match(request, self._adapter(request.line), self._predicted(request))

    @property
    def version(self) -> int:
        """Moves whenever `match` may answer otherwise for a request that was there before.

        Whoever goes on with an answer has come after it.
        """
        version = self.reported.version
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
        reported = self.reported.blocks.held_tokens(worker)
        if self.reported.index(worker) is Index.EXACT:
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
        line, units = self._line(request.line, request.key), _units(request.key)
        pin = line.tree.insert(worker, units, now)
        return Pinned(line, pin, worker, request, line.answers.supposed(worker, units, pin.known))

    def generated(self, pinned: Pinned, input_tokens: int, output_tokens: int) -> None:
        """The worker has read and generated so many tokens, these in all its sequences."""
        worker, request, key = pinned.worker, pinned.request, pinned.request.key
        computed = output_tokens // request.sequences - 1  # the last token has been sampled, no more
        reports = key.width == TOKEN_WIDTH and self.reported.index(worker) is Index.EXACT
        if computed > 0 and not reports:
            beside_key = request.input_tokens - int(len(key.data) // key.width * key.tokens_per_unit)
            answer = Answer(worker, beside_key + computed, input_tokens + computed)
            pinned.tree.answers.given(_units(key), answer)

    def release(self, pinned: Pinned, now: float) -> None:
        """The request has ended; its path counts as used until now, as vLLM frees blocks at the end."""
        worker, request = pinned.worker, pinned.request
        pinned.tree.tree.release(pinned.pin, now)
        if request.key.width == TOKEN_WIDTH and self.reported.index(worker) is Index.EXACT:
            if not self._is_reported(pinned):
                self._unreported.setdefault(worker, []).append((now, pinned))
            self._expire(now)

    def forget(self, worker: WorkerId, request: RequestView, keep_tokens: int) -> None:
        """The worker never computed this prompt beyond the first `keep_tokens`."""
        key = request.key
        line = self._trees.get((request.line, key.width))
        if line is not None:
            line.tree.evict(worker, _units(key), _before(key) + int(keep_tokens / key.tokens_per_unit))

    def answered(self, worker: WorkerId, request: RequestView, matches: Matches, cached_tokens: int) -> None:
        """The worker has said how much of the prompt it found in its cache, where `matches` was foretold."""
        if request.sequences > 1 or request.resume_tokens:
            return
        foretold, tokens = matches.get(worker, 0), request.key.width == TOKEN_WIDTH
        self.foretold[self.reported.index(worker) if tokens else Index.PREDICTED, foretold == cached_tokens] += 1
        if tokens:
            self.reported.answered(worker, foretold, cached_tokens)

    def continued(self, pinned: Pinned, cached_tokens: int) -> None:
        """The same, for what was supposed: whether the prompt has gone on with the answer to an earlier one."""
        worker, request, answer = pinned.worker, pinned.request, pinned.answer
        if answer is None or request.sequences > 1 or request.resume_tokens:
            return
        prompt = self.reported.in_blocks(worker, answer.context - answer.tokens)
        supposed = self.reported.in_blocks(worker, answer.context) - prompt
        if supposed > 0:
            pinned.tree.answers.found(supposed, cached_tokens - prompt)

    # -- events: workers

    def tell(self, facts: WorkerFacts) -> None:
        """What is known of a worker, whole."""
        self._have_adapters(facts.id, facts.adapters)
        self.reported.sized(facts.id, facts.block_size, facts.kv_tokens)
        self.set_capacity(facts.id, facts.kv_tokens)

    def set_capacity(self, worker: WorkerId, kv_tokens: int | None) -> None:
        tokens = kv_tokens or _KV_TOKENS
        if self._capacity.get(worker) == tokens:
            return
        self._capacity[worker] = tokens
        for line in self._trees.values():
            line.tree.set_capacity(worker, int(tokens / line.tokens_per_unit))

    def stored(self, worker: WorkerId, event: Stored) -> None:
        """It reports blocks that have come. ValueError if the event contradicts itself; nothing changes then."""
        self.reported.stored(worker, event)
        ended = self._unreported.pop(worker, None)
        if ended is not None and self.reported.index(worker) is Index.EXACT:
            self._keep_waiting(worker, [each for each in ended if not self._is_reported(each[1])])

    def removed(self, worker: WorkerId, event: Removed) -> None:
        """It reports blocks that have gone."""
        self.reported.removed(worker, event)

    def cleared(self, worker: WorkerId) -> None:
        """It reports that it has emptied its cache. What runs there is not in it yet."""
        self.reported.cleared(worker)
        if self.reported.behind(worker):
            return  # who knows what was sent to it since
        self._unreported.pop(worker, None)
        for line in self._trees.values():
            line.tree.expire(worker, math.inf)
            line.answers.forget(worker)

    def remove(self, worker: WorkerId) -> None:
        self._capacity.pop(worker, None)
        self._have_adapters(worker, frozenset())
        self._unreported.pop(worker, None)
        self.reported.gone(worker)
        for line in self._trees.values():
            line.tree.remove_worker(worker)
            line.answers.forget(worker)

    # -- inside

    def _predicted(self, request: RequestView) -> dict[WorkerId, int]:
        key = request.key
        line = self._trees.get((request.line, key.width))
        if line is None:
            return {}
        most, scale, before = max(0, request.input_tokens - 1), key.tokens_per_unit, _before(key)
        units = _units(key)
        held = line.tree.match(units)
        found = {w: tokens for w, n in held.items() if (tokens := min(int((n - before) * scale), most)) > 0}
        for worker, tokens in line.answers.behind(units, held).items():
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
        """Whether the worker has reported the whole prompt; then its reports alone say what becomes of it."""
        worker, request = ended.worker, ended.request
        known = self.reported.has_all(worker, request, self._adapter(request.line))
        if known:
            ended.tree.tree.evict(worker, _units(request.key), 0)
        return known

    def _keep_waiting(self, worker: WorkerId, ended: list[tuple[float, Pinned]]) -> None:
        if ended:
            self._unreported[worker] = ended
        else:
            self._unreported.pop(worker, None)

    def _expire(self, now: float) -> None:
        """Predictions of those whose reports are exact live until they must have been reported."""
        if now < self._expire_at:
            return
        self._expire_at = now + _EXPIRE_EVERY_S
        for worker, ended in list(self._unreported.items()):
            self._keep_waiting(worker, [each for each in ended if each[0] > now - _REPORTED_AFTER_S])
        for worker in self.reported.exact():
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
    """Units that stand before the prompt, for its salt."""
    return _SALT_BYTES // key.width if key.salt else 0


def _units(key: PrefixKey) -> bytes:
    """The key as the tree has it."""
    return xxh3_64_digest(key.salt) + key.data if key.salt else key.data
