"""Is a request of this shape done sooner on a prefill/decode pair, or on one worker that does both?

After the heatmap of DeepServe (arXiv 2501.14417). Rows are prompt lengths, columns the ratio of answer to prompt;
a cell is a *gain*: `completion time colocated / completion time disaggregated - 1`, so that more than zero says
disaggregate and +0.5 that the pair takes two thirds of the time. It is measured with batches of equal requests at
a fixed rate, on as many workers on either side: one layer per rate, and a request is judged by what the layers sum
up to. Here the sum is divided by their number, which changes no sign and keeps a gain's meaning.

Theory: both axes are logarithmic, for times are roughly powers of lengths; between cells the gain is interpolated
bilinearly, outside of the map its edge counts. A cell that nobody measured (an answer longer than the model
allows) is worth what the nearest measured one is.

Invariants: axes grow strictly; each layer has a row per length and a column per ratio; at least one cell is
measured.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

Gains = tuple[tuple[float | None, ...], ...]
"""By row and column; None where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The map at one rate of arrival."""

    rate_per_s: float
    """Requests per second and worker."""
    gains: Gains


@dataclass(frozen=True, slots=True)
class Corner:
    """A cell next to a request's place in the map, and its share in what the map says there."""

    row: int
    column: int
    share: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Measured gains and what they were measured under. See the module for what it means."""

    prefill_tokens: tuple[int, ...]
    ratios: tuple[float, ...]
    """Output tokens / prompt tokens."""
    layers: tuple[Layer, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Model, profile, hardware, versions ...: for people, and for judging whether it applies."""
    total: tuple[tuple[float, ...], ...] = field(init=False)
    """The gains that decide: the mean over the layers, in every cell."""
    _rows: tuple[float, ...] = field(init=False, repr=False)
    _columns: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = range(len(self.prefill_tokens)), range(len(self.ratios))
        means = [
            [_mean([layer.gains[row][column] for layer in self.layers]) for column in shape[1]] for row in shape[0]
        ]
        object.__setattr__(self, "total", _filled(means))
        object.__setattr__(self, "_rows", tuple(log(tokens) for tokens in self.prefill_tokens))
        object.__setattr__(self, "_columns", tuple(log(ratio) for ratio in self.ratios))

    def corners(self, prefill_tokens: int, output_tokens: int) -> list[Corner]:
        """The one to four cells around a request, whose shares add up to 1, the largest share first."""
        prefill, output = max(1, prefill_tokens), max(1, output_tokens)
        rows = _between(self._rows, log(prefill))
        columns = _between(self._columns, log(output / prefill))
        corners = [Corner(row, column, high * wide) for row, high in rows for column, wide in columns]
        return sorted(corners, key=lambda corner: -corner.share)

    def gain(self, prefill_tokens: int, output_tokens: int) -> float:
        """What disaggregating would save this request, as a share of the time that the pair takes."""
        return sum(c.share * self.total[c.row][c.column] for c in self.corners(prefill_tokens, output_tokens))

    def agreement(self) -> float | None:
        """Share of the cells measured at several rates whose sign is the same at all of them; None without any."""
        agree = several = 0
        for row in range(len(self.prefill_tokens)):
            for column in range(len(self.ratios)):
                gains = [gain for layer in self.layers if (gain := layer.gains[row][column]) is not None]
                several += len(gains) > 1
                agree += len(gains) > 1 and len({gain > 0 for gain in gains}) == 1
        return agree / several if several else None


def _mean(gains: Sequence[float | None]) -> float | None:
    known = [gain for gain in gains if gain is not None]
    return sum(known) / len(known) if known else None


def _filled(means: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    """With the nearest measured cell's gain in each that was not measured; in doubt the upper left one's."""
    measured = [(r, c, gain) for r, row in enumerate(means) for c, gain in enumerate(row) if gain is not None]

    def nearest(row: int, column: int) -> float:
        return min(measured, key=lambda cell: ((cell[0] - row) ** 2 + (cell[1] - column) ** 2, cell))[2]

    return tuple(
        tuple(nearest(r, c) if gain is None else gain for c, gain in enumerate(row)) for r, row in enumerate(means)
    )


def _between(axis: Sequence[float], at: float) -> list[tuple[int, float]]:
    """The one or two places of an axis around a value, with their weights."""
    after = bisect_right(axis, at)
    if after == 0:
        return [(0, 1.0)]
    if after == len(axis):
        return [(after - 1, 1.0)]
    share = (at - axis[after - 1]) / (axis[after] - axis[after - 1])
    return [(after - 1, 1.0 - share), (after, share)] if share else [(after - 1, 1.0)]


NOTHING_KNOWN = Heatmap((1,), (1.0,), (Layer(1.0, ((0.0,),)),), {"model": "none: nothing was measured"})
"""Finds no difference anywhere, so that everything stays colocated until something is learned."""
