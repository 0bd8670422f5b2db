"""How fast each worker is: seconds from tokens, batch size and context, learned from what is observed.

`Profile` (a value): six numbers. A prompt costs a base, each token that is not cached, and each pair of such a
token with a token before it (attention: quadratic in length). A decode step costs a base (the weights are read
once), each sequence, and each token of context (the KV cache is read). They start as those of an 8B model on a
current GPU and every observation moves them: first all of them by one factor, until the scale is right, then each
by its share in the prediction, so that long prompts teach the quadratic term and full batches the cost of a
sequence. An observation moves an estimate by a bounded factor, so that one slow request (a preemption, a cold
kernel) cannot teach nonsense.

`PoolSpeed` and `WorkerSpeed`: the workers of a pool serve the same models and are mostly of one kind, so the six
numbers are learned from all of them together; a worker adds two factors, for prefill and for decode. When each
worker learned alone, equal workers came to look different, and requests went after the error
(`benchmarks/LOG.md`). A worker without observations is as fast as the pool. An observation moves the worker's
factors first, as far as the worker is new, then the pool by what they do not explain; while the pool itself is
new, nearly all goes to the pool.
"""

from collections.abc import Callable

from policies.value import value

_RATE = 0.1
"""Weight of one observation. Ten consistent ones close 65% of a gap."""
_SCALING = 16
"""The first observations, this many, move all numbers by one factor."""
_STEP = 4.0
"""The largest factor between an estimate and an observation that is taken at face value."""
_FIRST = 4
_FIRST_STEP = 64.0
"""The same for the first `_FIRST` observations: a worker may be far slower than the GPU that the defaults
describe."""
_LEAST_S = 1e-12
"""Lower bound of everything that is learned: prefill windows are computed by dividing by it."""
_WORKER_RATE = 0.02
"""Weight of one observation for a worker's factor, once it has many: well below its weight for the pool."""
_NEW = 16
"""Observations after which a pool knows its scale."""
_FOLLOWED = 64
"""Once the pool is no longer new, workers without observations follow it once in this many observations."""
_WORKER_STEP = 64.0
"""The largest factor between a worker's estimate and an observation that is taken at face value."""


@value
class Profile:
    """How long one worker takes, in seconds. A value: the `learn_...` methods return a new one."""

    base_s: float = 0.006
    per_token_s: float = 35e-6
    """2 x 8e9 floating-point operations a token at half of an H100's dense rate."""
    per_pair_s: float = 1e-9
    """32 layers x 4 x 4096 operations for each pair of tokens, at the same rate."""
    step_base_s: float = 0.007
    """16 GB of weights at 70% of 3.35 TB/s."""
    per_sequence_s: float = 30e-6
    per_context_token_s: float = 55e-9
    """128 kB of KV a token at the same bandwidth."""
    prefills: int = 0
    """Number of prefills observed."""
    decodes: int = 0
    """Number of decodes observed."""

    # -- questions

    def prefill_s(self, extend_tokens: int, context_tokens: int = 0) -> float:
        """Time to compute a prompt's uncached tokens, of which `context_tokens` are in the cache already."""
        token_pairs = extend_tokens * (context_tokens + extend_tokens / 2)  # `pairs`, without the call
        return self.base_s + self.per_token_s * extend_tokens + self.per_pair_s * token_pairs

    def prefill_of(self, extend_tokens: int, token_pairs: float) -> float:
        """Time to compute tokens of several prompts at once; `token_pairs`: the sum of `pairs` over them."""
        return self.base_s + self.per_token_s * extend_tokens + self.per_pair_s * token_pairs

    def step_s(self, batch: int = 1, context_tokens: int = 0) -> float:
        """Time of one decode step, in which each sequence of the batch gets a token."""
        return self.step_base_s + self.per_sequence_s * batch + self.per_context_token_s * context_tokens

    def decode_s(self, output_tokens: int, batch: int = 1, context_tokens: int = 0) -> float:
        step_s = self.step_base_s + self.per_sequence_s * batch + self.per_context_token_s * context_tokens
        return output_tokens * step_s

    def prefill_tokens(self, seconds: float) -> int:
        """Tokens of short prompts that make a prefill longer by `seconds`, base not counted; at least one."""
        return max(1, int(seconds / self.per_token_s))

    # -- learning: each returns the profile after one observation

    def learn_prefill(self, extend_tokens: int, seconds: float, token_pairs: float | None = None) -> "Profile":
        """Learn from prompts of `extend_tokens` uncached tokens in all that took `seconds` together.

        `token_pairs` is the sum of `pairs` over the prompts; None: it was one prompt with nothing cached.
        """
        amount = pairs(extend_tokens) if token_pairs is None else token_pairs
        base, token, pair = self._prefill_after(extend_tokens, amount, seconds)
        step, sequence, context = self.step_base_s, self.per_sequence_s, self.per_context_token_s
        return Profile(base, token, pair, step, sequence, context, self.prefills + 1, self.decodes)

    def learn_decode(
        self, output_tokens: int, seconds: float, batch: int = 1, context_tokens: int = 0
    ) -> "Profile":
        """Learn from `output_tokens` steps that took `seconds`, in a batch of about this size and context."""
        step, sequence, context = self._step_after(batch, context_tokens, seconds / output_tokens)
        base, token, pair = self.base_s, self.per_token_s, self.per_pair_s
        return Profile(base, token, pair, step, sequence, context, self.prefills, self.decodes + 1)

    def learn_whole_answer(
        self,
        extend_tokens: int,
        output_tokens: int,
        seconds: float,
        batch: int = 1,
        context_tokens: int = 0,
    ) -> "Profile":
        """Learn from an answer whose first token was not seen: its time is split as predicted."""
        prefill = self.prefill_s(extend_tokens)
        decode = self.decode_s(output_tokens, batch, context_tokens)
        share = prefill / (prefill + decode)
        if output_tokens == 0:
            return self.learn_prefill(extend_tokens, seconds * share)
        base, token, pair = self._prefill_after(extend_tokens, pairs(extend_tokens), seconds * share)
        step_s = seconds * (1 - share) / output_tokens
        step, sequence, context = self._step_after(batch, context_tokens, step_s)
        return Profile(base, token, pair, step, sequence, context, self.prefills + 1, self.decodes + 1)

    def _prefill_after(self, extend_tokens: int, token_pairs: float, seconds: float) -> tuple[float, float, float]:
        """Base, time per token and per pair, after a prefill that took `seconds`."""
        base, token, pair = self.base_s, self.per_token_s, self.per_pair_s
        terms = (base, token * extend_tokens, pair * token_pairs)
        first, second, third = _factors(terms, seconds, self.prefills)
        return max(base * first, _LEAST_S), max(token * second, _LEAST_S), max(pair * third, _LEAST_S)

    def _step_after(self, batch: int, context_tokens: int, seconds: float) -> tuple[float, float, float]:
        """Base, time per sequence and per token of context, after a step that took `seconds`."""
        base, sequence, context = self.step_base_s, self.per_sequence_s, self.per_context_token_s
        terms = (base, sequence * batch, context * context_tokens)
        first, second, third = _factors(terms, seconds, self.decodes)
        return max(base * first, _LEAST_S), max(sequence * second, _LEAST_S), max(context * third, _LEAST_S)


def pairs(extend_tokens: int, context_tokens: int = 0) -> float:
    """Number of pairs of a computed token and a token before it that attention reads."""
    return extend_tokens * (context_tokens + extend_tokens / 2)


def _factors(terms: tuple[float, float, float], seconds: float, seen: int) -> tuple[float, float, float]:
    """The factors by which three terms move so that their sum comes nearer to `seconds`."""
    one, two, three = terms
    predicted = one + two + three
    step = _FIRST_STEP if seen < _FIRST else _STEP
    ratio = min(max(seconds / predicted, 1.0 / step), step)
    if seen < _SCALING:
        factor: float = ratio ** max(_RATE, 1.0 / (seen + 1))
        return factor, factor, factor
    weight = 2 * _RATE
    return (
        ratio ** (weight * one / predicted),
        ratio ** (weight * two / predicted),
        ratio ** (weight * three / predicted),
    )


class PoolSpeed:
    """What has been learned from all workers of one pool."""

    def __init__(self) -> None:
        self.profile = Profile()
        self.newcomers: set[WorkerSpeed] = set()
        self._observations = 0

    def update(self, profile: Profile) -> None:
        """Replace the pool's profile after an observation; workers without observations of their own follow.

        They follow at once while the pool is new, later once in `_FOLLOWED` observations: in a large fleet many
        workers may still wait for their first request.
        """
        self.profile = profile
        self._observations += 1
        if self._observations <= 2 * _NEW or self._observations % _FOLLOWED == 0:
            for worker in self.newcomers:
                worker.follow_pool(profile)


class WorkerSpeed:
    """One worker: `profile` is the pool's, times the worker's own two factors, as of its last observation."""

    def __init__(self, pool: PoolSpeed, changed: Callable[[], None]) -> None:
        """`changed` is called when `profile` was replaced because the pool has learned something."""
        self.profile = pool.profile
        self._pool = pool
        self._changed = changed
        self._prefill = self._decode = 1.0
        self._prefills = self._decodes = 0
        pool.newcomers.add(self)

    def leave(self) -> None:
        """The worker has left the pool. Should it come back, its factors still count."""
        self._pool.newcomers.discard(self)

    def follow_pool(self, profile: Profile) -> None:
        """Without observations of its own, the worker is as fast as the pool."""
        self.profile = profile
        self._changed()

    def learn_prefill(self, extend_tokens: int, seconds: float, token_pairs: float) -> None:
        """As `Profile.learn_prefill`."""
        pool = self._pool.profile
        expected_s = self._prefill * pool.prefill_of(extend_tokens, token_pairs)
        self._prefill *= _worker_factor(seconds / expected_s, self._prefills, pool.prefills)
        self._prefills += 1
        self._learn(pool.learn_prefill(extend_tokens, seconds / self._prefill, token_pairs))

    def learn_decode(self, output_tokens: int, seconds: float, batch: int, context_tokens: int) -> None:
        """As `Profile.learn_decode`."""
        pool = self._pool.profile
        expected_s = self._decode * pool.decode_s(output_tokens, batch, context_tokens)
        self._decode *= _worker_factor(seconds / expected_s, self._decodes, pool.decodes)
        self._decodes += 1
        self._learn(pool.learn_decode(output_tokens, seconds / self._decode, batch, context_tokens))

    def learn_whole_answer(
        self, extend_tokens: int, output_tokens: int, seconds: float, batch: int, context_tokens: int
    ) -> None:
        """As `Profile.learn_whole_answer`."""
        pool = self._pool.profile
        prefill_s = pool.prefill_s(extend_tokens)
        decode_s = pool.decode_s(output_tokens, batch, context_tokens)
        ratio = seconds / (self._prefill * prefill_s + self._decode * decode_s)
        self._prefill *= _worker_factor(ratio, self._prefills, pool.prefills)
        self._decode *= _worker_factor(ratio, self._decodes, pool.decodes)
        self._prefills += 1
        self._decodes += 1
        slower = (self._prefill * prefill_s + self._decode * decode_s) / (prefill_s + decode_s)
        self._learn(pool.learn_whole_answer(extend_tokens, output_tokens, seconds / slower, batch, context_tokens))

    def _learn(self, pool: Profile) -> None:
        """Take in what an observation has made of the pool's profile; the factors have been moved before."""
        prefill, decode = self._prefill, self._decode
        self.profile = Profile(
            pool.base_s * prefill,
            pool.per_token_s * prefill,
            pool.per_pair_s * prefill,
            pool.step_base_s * decode,
            pool.per_sequence_s * decode,
            pool.per_context_token_s * decode,
            pool.prefills,
            pool.decodes,
        )
        self._pool.newcomers.discard(self)
        self._pool.update(pool)


def _worker_factor(ratio: float, seen: int, seen_by_all: int) -> float:
    """The factor by which an observation moves a worker's own factor.

    `ratio`: observed over expected seconds; `seen`: observations of this worker; `seen_by_all`: of the pool.
    """
    weight = max(_WORKER_RATE, 1.0 / (seen + 1)) if seen_by_all >= _NEW else _WORKER_RATE
    moved: float = min(max(ratio, 1.0 / _WORKER_STEP), _WORKER_STEP) ** weight
    return moved
