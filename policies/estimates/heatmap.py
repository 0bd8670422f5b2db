"""Whether a request of this shape is done sooner on a prefill/decode pair, or on one worker that does both.

`Heatmap` is what was measured offline, after the heatmap of DeepServe (arXiv 2501.14417). Rows are prompt lengths,
columns the ratio of answer to prompt; a cell is a *gain*: `completion time colocated / completion time
disaggregated - 1`, so that more than zero says disaggregate and +0.5 that the pair takes two thirds of the time.
It is measured with batches of equal requests at a fixed rate, on as many workers on either side: one layer per
rate, and a request is judged by the sum of the layers. Here the sum is divided by their number, which changes no
sign and keeps a gain's meaning. Both axes are logarithmic, since times are roughly powers of lengths; between
cells the gain is interpolated bilinearly, outside of the map its edge counts. A cell that was not measured (an
answer longer than the model allows) takes the gain of the nearest measured one.

`LearnedHeatmap` moves the measured gains by how long requests really take. To compare two ways of serving, both
have to be seen: each cell keeps two decayed means of *slowdown*, measured over predicted completion time, one for
requests that ran colocated and one for those that ran on a pair. The prediction is that of an idle worker and the
same for both sides, so that differences of size within a cell cancel and differences of load remain. Where both
means rest on enough requests their ratio less 1 is the cell's learned gain; the measured map counts as `_PRIOR`
requests more. Both means fade with every request of their cell: the side that is no longer used is forgotten in
time, the cell becomes undecided, and a small share of its requests (`EXPLORED`) tries the side that the map
advises against.

Invariants: axes grow strictly; each layer has a row per length and a column per ratio; at least one cell is
measured. A learned gain changes its sign only to one of at least `_CLEAR`; without evidence the gains are the
measured ones.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

from policies.fleet.speed import Profile

EXPLORED = 0.02
"""Share of an undecided cell's requests that run on the side the map advises against."""
_DECAY = 0.999
"""Factor of both weights with each request of the cell; with 2% explored the rarer side stays below 20."""
_ENOUGH = 8.0
"""Weight that both means need."""
_PRIOR = 4.0
"""Weight of the measured gain against what is learned."""
_CLEAR = 0.1
_ALONE = Profile()
"""The profile that slowdowns are measured against: any would do, as long as it is the same for both sides."""

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
    """A cell beside a request's place in the map, and its share in the interpolated gain."""

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
    """The gains that decide: the mean over the layers, by row and column."""
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
        """The gain for a request of this many uncached prompt tokens and output tokens, interpolated."""
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
    """Fill cells that were not measured with the nearest measured gain; of equally near ones, the upper left."""
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
"""Sees no difference anywhere, so that everything stays colocated until something is learned."""

Cell = tuple[int, int]
"""Row and column."""


@dataclass(slots=True)
class Mean:
    """A decayed mean and the weight of what it rests on."""

    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.weight += 1.0
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class Evidence:
    """The slowdowns of one cell's requests, by how they were served."""

    colocated: Mean = field(default_factory=Mean)
    disaggregated: Mean = field(default_factory=Mean)

    @property
    def weight(self) -> float:
        """The weight of the side that was seen less."""
        return min(self.colocated.weight, self.disaggregated.weight)

    @property
    def gain(self) -> float:
        """The gain by these requests alone; only where both sides were seen."""
        return self.colocated.value / self.disaggregated.value - 1

    def add(self, slowdown: float, *, disaggregated: bool) -> None:
        for mean in (self.colocated, self.disaggregated):
            mean.weight *= _DECAY
        (self.disaggregated if disaggregated else self.colocated).add(slowdown)


class LearnedHeatmap:
    """A measured map, and what has been learned from the requests of this pool since."""

    def __init__(self, measured: Heatmap = NOTHING_KNOWN) -> None:
        self.measured = measured
        self._gains = [list(row) for row in measured.total]
        self._evidence: dict[Cell, Evidence] = {}

    @property
    def gains(self) -> tuple[tuple[float, ...], ...]:
        """The gain of each cell now, by row and column."""
        return tuple(tuple(row) for row in self._gains)

    @property
    def evidence(self) -> Mapping[Cell, Evidence]:
        """By cell, for those that have seen a request."""
        return self._evidence

    def gain(self, prefill_tokens: int, output_tokens: int) -> float:
        """As `Heatmap.gain`, with what has been learned since."""
        corners = self.measured.corners(prefill_tokens, output_tokens)
        return sum(corner.share * self._gains[corner.row][corner.column] for corner in corners)

    def undecided(self, prefill_tokens: int, output_tokens: int) -> bool:
        """Whether requests like this one should still try both sides."""
        cell = self._cell(prefill_tokens, output_tokens)
        evidence = self._evidence.get(cell)
        return evidence is None or evidence.weight < _ENOUGH or abs(self._gains[cell[0]][cell[1]]) < _CLEAR

    def record(self, prefill_tokens: int, output_tokens: int, seconds: float, *, disaggregated: bool) -> None:
        """Learn from a request of these uncached prompt and output tokens, `seconds` from dispatch to end."""
        row, column = cell = self._cell(prefill_tokens, output_tokens)
        evidence = self._evidence.setdefault(cell, Evidence())
        predicted = _ALONE.prefill_s(prefill_tokens) + _ALONE.decode_s(output_tokens, 1, prefill_tokens)
        evidence.add(max(seconds, 1e-6) / predicted, disaggregated=disaggregated)
        weight = evidence.weight
        if weight < _ENOUGH:
            return
        gain = (weight * evidence.gain + _PRIOR * self.measured.total[row][column]) / (weight + _PRIOR)
        if abs(gain) >= _CLEAR or (gain > 0) == (self._gains[row][column] > 0):
            self._gains[row][column] = gain

    def restore(self, cell: Cell, evidence: Evidence, gain: float) -> None:
        """Take over what an earlier run has learned about a cell."""
        self._evidence[cell] = evidence
        self._gains[cell[0]][cell[1]] = gain

    def _cell(self, prefill_tokens: int, output_tokens: int) -> Cell:
        nearest = self.measured.corners(prefill_tokens, output_tokens)[0]
        return nearest.row, nearest.column
