"""Whose life takes the least memory for the least time, when all that is known of an answer is short or long?

Source: 1-bit SVF, the variant of SVF that needs a single bit about the length of an answer (arXiv 2606.22327).

Ascending volume and first fit, as in `svf`, with an answer as long as its kind is taken to be [ours]: of the paper
only the abstract could be read, which names the bit and not the rule. So the prompt decides among requests of one
kind, and a long answer is worth as much as a prompt that is longer by some. The bit is whether the mean estimate
exceeds `threshold_tokens`; a predictor that knows no more than this bit would do. The test of memory reserves what
the kind is taken for, and never more than the request allows. An answer that outgrows it is from then on expected
to be as long as other answers that were so long already. Several workers and ageing as in `svf`.
"""

from dataclasses import dataclass

from policies.model import RequestView
from policies.orders.kit.sizes import SizedOrder, kv_over_life


@dataclass(frozen=True, slots=True)
class Settings:
    threshold_tokens: int = 192
    """An answer is long if more tokens than this are expected."""
    short_tokens: int = 64
    """What a short answer is taken to be."""
    long_tokens: int = 512
    """What a long answer is taken to be."""
    halves_s: float = 120.0
    """A request counts as half as large each time it has waited this many seconds."""
    window: int = 64
    """Requests offered per step."""


class OneBitSvf(SizedOrder):
    """Smallest volume first by one bit of length, wherever it fits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(kv_over_life, skips=True, halves_s=settings.halves_s, window=settings.window)
        self._settings = settings

    def estimate(self, request: RequestView) -> int:
        """What an answer of its kind is taken to be."""
        long = request.expected_output_tokens > self._settings.threshold_tokens
        tokens = self._settings.long_tokens if long else self._settings.short_tokens
        return tokens if request.max_output_tokens is None else min(tokens, request.max_output_tokens)
