"""Estimates the length of an answer: an interval and a mean, in output tokens, from earlier answers.

Decayed histograms of output tokens per sequence, keyed from the particular to the general: (client, served name,
length of the prompt), (client, served name), (served name), everything. The first histogram that has seen enough
answers is used; before that, a prior. The interval runs from the 10% to the 95% quantile, so the truth should lie
inside for 85% of requests; `calibration` counts how often it did.

Bins are a quarter of an octave wide (19%), so quantiles are as exact as that. Decay is a growing weight of new
answers instead of a shrinking of old ones, which would touch every bin each time. At most `_MAX_KEYS` histograms:
the least recently used ones are dropped.
"""

import math
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

_PRIOR_TOKENS = 256
_PRIOR_RANGE = (16, 2048)
_LOWER, _UPPER = 0.10, 0.95
_BINS_PER_OCTAVE = 4
_BINS = 17 * _BINS_PER_OCTAVE + 1
"""Up to 131,072 tokens; longer answers count as 131,072."""
_LONGEST = 2 ** ((_BINS - 1) // _BINS_PER_OCTAVE)
_GROWTH = 1.02
"""Each answer weighs this much more than the one before: the memory is about fifty answers."""
_ENOUGH = 8.0
"""Effective answers that a histogram needs to be used."""
_RESCALE = 1e12
_REFRESH = 4
"""Answers between two computations of a histogram's summary."""
_MAX_KEYS = 8192

_Key = tuple[()] | tuple[str] | tuple[str, str] | tuple[str, str, int]
"""The last is the length of the prompt, in bits."""


class Length(NamedTuple):
    """Output tokens of one sequence: `lower <= expected <= upper`, none above what the request allows."""

    lower: int
    expected: int
    upper: int


@dataclass(slots=True)
class Calibration:
    """How often the true length lay inside the interval; it should be 85%."""

    answers: int = 0
    inside: int = 0

    @property
    def share(self) -> float | None:
        return self.inside / self.answers if self.answers else None


class AnswerLengths:
    """The estimates of one pool; `len` is the number of histograms kept."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self._histograms: OrderedDict[_Key, _Histogram] = OrderedDict()

    def estimate(self, client: str, served_name: str, input_tokens: int, max_output_tokens: int | None) -> Length:
        """The length to expect of a request before it runs."""
        found = self._find(client, served_name, input_tokens)
        return _bounded(found.summary() if found else _prior(), max_output_tokens)

    def estimate_longer(
        self, client: str, served_name: str, input_tokens: int, max_output_tokens: int | None, already: int
    ) -> Length:
        """The length to expect of an answer that already has `already` tokens."""
        found = self._find(client, served_name, input_tokens)
        length = found.summary(already) if found else _prior()
        longer = Length(*(max(tokens, already + 1) for tokens in length))
        return _bounded(longer, max_output_tokens)

    def record(
        self,
        client: str,
        served_name: str,
        input_tokens: int,
        output_tokens: float,
        estimate: Length | None = None,
    ) -> None:
        """Learn from a complete answer: tokens per sequence, and the estimate that was made for it."""
        at = _bin(output_tokens)
        if estimate is not None:
            self.calibration.answers += 1
            # A quantile is as wide as its bin: an answer in the same bin as the bound is inside.
            self.calibration.inside += _bin(estimate.lower) <= at <= _bin(estimate.upper)
        histograms = self._histograms
        for key in _keys(client, served_name, input_tokens):
            histogram = histograms.get(key)
            if histogram is None:
                histogram = histograms[key] = _Histogram()
                if len(histograms) > _MAX_KEYS:
                    histograms.popitem(last=False)
            histograms.move_to_end(key)
            histogram.add(output_tokens, at)

    def __len__(self) -> int:
        return len(self._histograms)

    def _find(self, client: str, served_name: str, input_tokens: int) -> "_Histogram | None":
        for key in _keys(client, served_name, input_tokens):
            histogram = self._histograms.get(key)
            if histogram is not None and histogram.effective >= _ENOUGH:
                return histogram
        return None


class _Histogram:
    """Decayed counts of answers by length; `weight` is that of the next one."""

    __slots__ = ("_bins", "_since", "_sum", "_summary", "_total", "_weight")

    def __init__(self) -> None:
        self._bins = array("d", bytes(8 * _BINS))
        self._weight = 1.0
        self._total = 0.0
        self._sum = 0.0
        self._since = 0
        self._summary: Length | None = None

    @property
    def effective(self) -> float:
        """Number of answers of full weight that the memory amounts to."""
        return self._total * _GROWTH / self._weight

    def add(self, tokens: float, at: int) -> None:
        """Add an answer of `tokens` tokens; `at` is its bin."""
        weight = self._weight
        self._bins[at] += weight
        self._total += weight
        self._sum += weight * tokens
        self._weight = weight * _GROWTH
        self._since += 1
        if self._since >= _REFRESH:
            self._summary, self._since = None, 0
        if self._weight > _RESCALE:
            self._rescale()

    def summary(self, above: int = 0) -> Length:
        """Quantiles and mean, of answers longer than `above` only."""
        if above:
            return self._summarise(_bin(above) + 1)
        if self._summary is None:
            self._summary = self._summarise(0)
        return self._summary

    def _summarise(self, first: int) -> Length:
        weights = self._bins[first:]
        total = sum(weights)
        if total <= 0:  # no answer was that long before: it ends soon, or it is the first of its kind
            edge = _tokens(first)
            return Length(edge, edge, 2 * edge)
        lower = upper = first
        seen = 0.0
        for index, weight in enumerate(weights, first):
            if seen <= _LOWER * total:
                lower = index
            if seen < _UPPER * total:
                upper = index
            seen += weight
        mean = self._sum / self._total
        if first:
            mean = sum(w * _tokens(i) for i, w in enumerate(weights, first)) / total
        low, high = _tokens(lower), _tokens(upper)
        return Length(low, min(max(round(mean), low), max(high, low)), high)

    def _rescale(self) -> None:
        self._bins = array("d", (weight / self._weight for weight in self._bins))
        self._total /= self._weight
        self._sum /= self._weight
        self._weight = 1.0


def _keys(client: str, served_name: str, input_tokens: int) -> tuple[_Key, ...]:
    """Keys from the particular to the general."""
    return (client, served_name, input_tokens.bit_length() or 1), (client, served_name), (served_name,), ()


def _prior() -> Length:
    return Length(_PRIOR_RANGE[0], _PRIOR_TOKENS, _PRIOR_RANGE[1])


def _bounded(length: Length, most: int | None) -> Length:
    """At least one token, unless none is allowed, and at most what the request allows."""
    least = 1 if most is None else min(1, most)
    bound = math.inf if most is None else most
    return Length(*(int(max(least, min(tokens, bound))) for tokens in length))


def _bin(tokens: float) -> int:
    """The bin of a length; 0 holds what is shorter than two tokens."""
    if tokens < 1:
        return 0
    return int(_BINS_PER_OCTAVE * math.log2(tokens)) if tokens < _LONGEST else _BINS - 1


def _tokens(index: int) -> int:
    """The middle of a bin."""
    return max(1, round(2 ** ((index + 0.5) / _BINS_PER_OCTAVE)))
