"""How fast a worker is: times from tokens, batch and context, learned from what is observed.

A prompt costs a base, each token that is not cached, and each pair of such a token with a token before it
(attention: quadratic in length). A decode step costs a base (the weights are read once), each sequence, and each
token of context (the KV cache is read). Six numbers, all of them seconds, start as those of an 8B model on a
current GPU and are moved by every observation: first all of them by one factor, until the scale is right, then
each by its share in the prediction, so that long prompts teach what is quadratic and full batches what a sequence
costs.

An observation moves an estimate by a bounded factor: one slow request (a preemption, a cold kernel) cannot teach
nonsense.
"""

from policies.value import value

_RATE = 0.1
"""Weight of one observation. Ten consistent ones close 65% of a gap."""
_SCALING = 16
"""So many observations move everything by one factor."""
_STEP = 4.0
"""The largest factor between an estimate and an observation that is taken at face value."""
_FIRST = 4
_FIRST_STEP = 64.0
"""That of the first few: a worker may be as much slower than the GPU that everything starts from."""
_LEAST_S = 1e-12
"""No time is learned to be shorter: windows are computed by dividing by it."""


@value
class Profile:
    """Times of one worker, seconds."""

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
    """Observations so far; so with decodes."""
    decodes: int = 0

    # -- questions

    def prefill_s(self, extend_tokens: int, context_tokens: int = 0) -> float:
        """Time to compute a prompt's uncached tokens, of which `context_tokens` are in the cache already."""
        token_pairs = extend_tokens * (context_tokens + extend_tokens / 2)  # `pairs`, without the call
        return self.base_s + self.per_token_s * extend_tokens + self.per_pair_s * token_pairs

    def prefill_of(self, extend_tokens: int, token_pairs: float) -> float:
        """Time to compute so many tokens of several prompts at once, with so many `pairs` between them."""
        return self.base_s + self.per_token_s * extend_tokens + self.per_pair_s * token_pairs

    def step_s(self, batch: int = 1, context_tokens: int = 0) -> float:
        """Time of one decode step, in which each sequence of the batch gets a token."""
        return self.step_base_s + self.per_sequence_s * batch + self.per_context_token_s * context_tokens

    def decode_s(self, output_tokens: int, batch: int = 1, context_tokens: int = 0) -> float:
        return output_tokens * self.step_s(batch, context_tokens)

    def prefill_tokens(self, seconds: float) -> int:
        """Tokens of short prompts that can be computed in so many seconds, at least one."""
        return max(1, int((seconds - self.base_s) / self.per_token_s))

    def scaled(self, prefill: float, decode: float) -> "Profile":
        """That of a worker whose prefill and decode take so many times as long."""
        return Profile(
            self.base_s * prefill,
            self.per_token_s * prefill,
            self.per_pair_s * prefill,
            self.step_base_s * decode,
            self.per_sequence_s * decode,
            self.per_context_token_s * decode,
            self.prefills,
            self.decodes,
        )

    # -- lessons

    def saw_prefill(self, extend_tokens: int, seconds: float, token_pairs: float | None = None) -> "Profile":
        """Learn from first tokens that came after `seconds` of work on so many tokens.

        `token_pairs` sums `pairs` over the prompts; None: it was one prompt with nothing cached.
        """
        amount = pairs(extend_tokens) if token_pairs is None else token_pairs
        base, token, pair = self._prefill_after(extend_tokens, amount, seconds)
        step, sequence, context = self.step_base_s, self.per_sequence_s, self.per_context_token_s
        return Profile(base, token, pair, step, sequence, context, self.prefills + 1, self.decodes)

    def saw_decode(self, output_tokens: int, seconds: float, batch: int = 1, context_tokens: int = 0) -> "Profile":
        """Learn from so many steps that took `seconds`, in a batch of about this size and context."""
        step, sequence, context = self._step_after(batch, context_tokens, seconds / output_tokens)
        base, token, pair = self.base_s, self.per_token_s, self.per_pair_s
        return Profile(base, token, pair, step, sequence, context, self.prefills, self.decodes + 1)

    def saw_whole(
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
            return self.saw_prefill(extend_tokens, seconds * share)
        base, token, pair = self._prefill_after(extend_tokens, pairs(extend_tokens), seconds * share)
        step_s = seconds * (1 - share) / output_tokens
        step, sequence, context = self._step_after(batch, context_tokens, step_s)
        return Profile(base, token, pair, step, sequence, context, self.prefills + 1, self.decodes + 1)

    def _prefill_after(self, extend_tokens: int, token_pairs: float, seconds: float) -> tuple[float, float, float]:
        """Base, time per token and per pair, after a prefill that took so long."""
        base, token, pair = self.base_s, self.per_token_s, self.per_pair_s
        terms = (base, token * extend_tokens, pair * token_pairs)
        first, second, third = _lesson(terms, seconds, self.prefills)
        return _longer(base * first), _longer(token * second), _longer(pair * third)

    def _step_after(self, batch: int, context_tokens: int, seconds: float) -> tuple[float, float, float]:
        """Base, time per sequence and per token of context, after a step that took so long."""
        base, sequence, context = self.step_base_s, self.per_sequence_s, self.per_context_token_s
        terms = (base, sequence * batch, context * context_tokens)
        first, second, third = _lesson(terms, seconds, self.decodes)
        return _longer(base * first), _longer(sequence * second), _longer(context * third)


def pairs(extend_tokens: int, context_tokens: int = 0) -> float:
    """How many pairs of a computed token and one before it attention looks at."""
    return extend_tokens * (context_tokens + extend_tokens / 2)


def _lesson(terms: tuple[float, float, float], seconds: float, seen: int) -> tuple[float, float, float]:
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


def _longer(seconds: float) -> float:
    return max(seconds, _LEAST_S)
