"""How fast a worker is: times from tokens, learned from what is observed.

The model is the simplest that late binding needs: a prompt costs `base_s` plus `per_token_s` for each token that
is not in the cache, and each output token costs `step_s`. Every observation moves the estimate by a bounded
factor, so that one slow request (a preemption, a cold kernel) cannot teach nonsense.
"""

from dataclasses import dataclass, replace

_RATE = 0.1
"""Weight of one observation. Ten consistent ones close 65% of a gap."""
_LEAST_S = 1e-9
"""No time is learned to be shorter: windows are computed by dividing by it."""
_STEP = 4.0
"""The largest factor between an estimate and an observation that is taken at face value."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Times of one worker, seconds. The start values are those of an 8B model on a current GPU."""

    base_s: float = 0.01
    per_token_s: float = 50e-6
    step_s: float = 0.01
    observations: int = 0

    def prefill_s(self, extend_tokens: int) -> float:
        return self.base_s + self.per_token_s * extend_tokens

    def decode_s(self, output_tokens: int) -> float:
        return self.step_s * output_tokens

    def prefill_tokens(self, seconds: float) -> int:
        """Extend tokens that can be computed in so many seconds, at least one."""
        return max(1, int((seconds - self.base_s) / self.per_token_s))

    def saw_prefill(self, extend_tokens: int, seconds: float) -> "Profile":
        """Learn from a first token that came after `seconds` of work on `extend_tokens`."""
        factor = _blend(seconds / self.prefill_s(extend_tokens), self.observations)
        return replace(
            self,
            base_s=_scaled(self.base_s, factor),
            per_token_s=_scaled(self.per_token_s, factor),
            observations=self.observations + 1,
        )

    def saw_decode(self, output_tokens: int, seconds: float) -> "Profile":
        factor = _blend(seconds / output_tokens / self.step_s, self.observations)
        return replace(self, step_s=_scaled(self.step_s, factor), observations=self.observations + 1)

    def saw_whole(self, extend_tokens: int, output_tokens: int, seconds: float) -> "Profile":
        """Learn from an answer whose first token was not seen: both parts are scaled alike."""
        predicted = self.prefill_s(extend_tokens) + self.decode_s(output_tokens)
        factor = _blend(seconds / predicted, self.observations)
        return Profile(
            _scaled(self.base_s, factor),
            _scaled(self.per_token_s, factor),
            _scaled(self.step_s, factor),
            self.observations + 1,
        )


def _scaled(seconds: float, factor: float) -> float:
    return max(_LEAST_S, seconds * factor)


def _blend(ratio: float, seen: int) -> float:
    """The factor by which an estimate moves: in full steps at first, by `_RATE` once it has settled."""
    weight = max(_RATE, 1.0 / (seen + 1))
    bounded: float = min(max(ratio, 1.0 / _STEP), _STEP) ** weight
    return bounded
