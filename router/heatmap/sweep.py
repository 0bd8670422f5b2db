"""What is run to make a heatmap, and how the times that it takes become a map.

For each rate, prompt length and ratio a *batch* of requests of that one shape runs on either side: as many
colocated workers as the pairs have together, so that a gain is one of arrangement and not of hardware. The
requests of a batch come at random moments (exponential gaps), the same ones on both sides, at `rate_per_s` per
worker. A request's time is from the moment it was due until its last token.

A batch that no side can keep up with measures how long the batch is, not what an arrangement is worth: where the
last request of the faster side ends much later than a short line explains, the cell is left out at that rate and
judged by the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

from policies.estimates.heatmap import Heatmap, Layer

_BEHIND = 0.5
"""The faster side has not kept up if its batch ends later than it should by this share of the arrivals' span."""


class Place(NamedTuple):
    """A batch's place in the map: rate, row, column, each counted from 0."""

    rate: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of a batch looks like, and when they come."""

    prefill_tokens: int
    output_tokens: int
    arrivals: tuple[float, ...]
    """Seconds from the start, ascending."""


@dataclass(frozen=True, slots=True)
class Side:
    """How one side fared with a batch."""

    mean_s: float
    """Completion time of a request, on average."""
    last_s: float
    """When the last one ended, from the start of the batch."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything that decides what is run. Raises ValueError for numbers that make no map."""

    prefill_tokens: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
    ratios: tuple[float, ...] = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
    rates_per_s: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Per worker."""
    requests: int = 32
    """Of a batch, per worker."""
    most_output_tokens: int = 8192
    """Shapes with longer answers are left out."""
    most_tokens: int | None = None
    """Longest prompt and answer together that the model takes."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prefill_tokens", "ratios", "rates_per_s"):
            values: Sequence[float] = getattr(self, name)
            if not values or values[0] <= 0 or any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"{name}: expected positive numbers, each larger than the one before")
        if self.requests < 1:
            raise ValueError("requests: expected at least 1")

    def places(self) -> Iterator[Place]:
        """Every batch that can be run, rate by rate: a sweep that is cut short has whole layers first."""
        for rate in range(len(self.rates_per_s)):
            for row, prefill in enumerate(self.prefill_tokens):
                for column in range(len(self.ratios)):
                    output = self._output(prefill, column)
                    fits = self.most_tokens is None or prefill + output <= self.most_tokens
                    if fits and 1 <= output <= self.most_output_tokens:
                        yield Place(rate, row, column)

    def shape(self, place: Place, workers: int) -> Shape:
        """The batch of a place for `workers` workers on each side."""
        chance = Random(f"{self.seed}/{place.rate}/{place.row}/{place.column}")
        rate, at, arrivals = self.rates_per_s[place.rate] * workers, 0.0, []
        for _ in range(self.requests * workers):
            arrivals.append(at)
            at += chance.expovariate(rate)
        prefill = self.prefill_tokens[place.row]
        return Shape(prefill, self._output(prefill, place.column), tuple(arrivals))

    def _output(self, prefill_tokens: int, column: int) -> int:
        return round(prefill_tokens * self.ratios[column])


@dataclass(slots=True)
class Findings:
    """The gains that were measured so far; None for a batch that no worker could keep up with."""

    sweep: Sweep
    gains: dict[Place, float | None] = field(default_factory=dict)

    def add(self, place: Place, shape: Shape, colocated: Side, disaggregated: Side) -> None:
        """Both sides of a batch have been run."""
        faster = min(colocated, disaggregated, key=lambda side: side.mean_s)
        late = faster.last_s - shape.arrivals[-1] - faster.mean_s
        behind = late > _BEHIND * max(shape.arrivals[-1], faster.mean_s)
        self.gains[place] = None if behind else colocated.mean_s / disaggregated.mean_s - 1

    def heatmap(self, conditions: Mapping[str, Any]) -> Heatmap:
        """The map as far as it goes: at least one cell has to be measured."""
        sweep = self.sweep
        layers = [
            Layer(
                rate,
                tuple(
                    tuple(self.gains.get(Place(number, row, column)) for column in range(len(sweep.ratios)))
                    for row in range(len(sweep.prefill_tokens))
                ),
            )
            for number, rate in enumerate(sweep.rates_per_s)
        ]
        return Heatmap(sweep.prefill_tokens, sweep.ratios, tuple(layers), conditions)

    @property
    def any(self) -> bool:
        return any(gain is not None for gain in self.gains.values())


def side(arrivals: Sequence[float], ends: Sequence[float]) -> Side:
    """From when each request of a batch was due and when it ended."""
    return Side(fmean(end - due for due, end in zip(arrivals, ends, strict=True)), max(ends))
