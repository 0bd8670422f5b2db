"""The heatmap in use: what was measured offline, moved by how long requests really take.

Theory: to compare two ways of serving, both have to be seen. Each cell keeps two decayed means of *slowdown*,
measured over predicted completion time, one for requests that ran colocated and one for those that ran on a pair.
The prediction is that of an idle worker and the same for both sides, so that differences of size within a cell
cancel and differences of load remain. Where both means rest on enough requests their ratio less 1 is the cell's
learned gain; the measured map counts as a few requests more (`_PRIOR`).

Both means fade with every request of their cell: the side that is not used any more is forgotten in time, its cell
becomes undecided, and a small share of that cell's requests (`EXPLORED`) tries the side that the map advises
against. A cell changes its sign only if the new one is clear by `_CLEAR`.

Invariants: a gain changes sign only to one of at least `_CLEAR`; without evidence the gains are the measured ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.estimates.heatmap import NOTHING_KNOWN, Heatmap
from policies.fleet.profile import Profile

EXPLORED = 0.02
"""Share of an undecided cell's requests that run on the side the map advises against."""
_DECAY = 0.999
"""Of both weights, with each request of the cell. With 2% explored the rarer side's weight stays below 20."""
_ENOUGH = 8.0
"""Weight that both means need."""
_PRIOR = 4.0
"""Weight of the measured gain against what is learned."""
_CLEAR = 0.1
_ALONE = Profile()
"""Whose predictions slowdowns are told by: any would do, as long as it is the same for both sides."""

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
    """What requests of one cell have shown."""

    colocated: Mean = field(default_factory=Mean)
    disaggregated: Mean = field(default_factory=Mean)

    @property
    def weight(self) -> float:
        """Of the side that was seen less."""
        return min(self.colocated.weight, self.disaggregated.weight)

    @property
    def gain(self) -> float:
        """As far as these requests go; only where both sides were seen."""
        return self.colocated.value / self.disaggregated.value - 1

    def add(self, slowdown: float, *, disaggregated: bool) -> None:
        for mean in (self.colocated, self.disaggregated):
            mean.weight *= _DECAY
        (self.disaggregated if disaggregated else self.colocated).add(slowdown)


class LearnedHeatmap:
    """A measured map, and what the requests of this pool have shown since."""

    def __init__(self, measured: Heatmap = NOTHING_KNOWN) -> None:
        self.measured = measured
        self._gains = [list(row) for row in measured.total]
        self._evidence: dict[Cell, Evidence] = {}

    @property
    def gains(self) -> tuple[tuple[float, ...], ...]:
        """What each cell is worth now."""
        return tuple(tuple(row) for row in self._gains)

    @property
    def evidence(self) -> Mapping[Cell, Evidence]:
        """Of the cells that any request has come to."""
        return self._evidence

    def gain(self, prefill_tokens: int, output_tokens: int) -> float:
        """As `Heatmap.gain`, with what has been learned."""
        corners = self.measured.corners(prefill_tokens, output_tokens)
        return sum(corner.share * self._gains[corner.row][corner.column] for corner in corners)

    def undecided(self, prefill_tokens: int, output_tokens: int) -> bool:
        """Whether requests like this one should still try both sides."""
        cell = self._cell(prefill_tokens, output_tokens)
        evidence = self._evidence.get(cell)
        return evidence is None or evidence.weight < _ENOUGH or abs(self._gains[cell[0]][cell[1]]) < _CLEAR

    def saw(self, prefill_tokens: int, output_tokens: int, seconds: float, *, disaggregated: bool) -> None:
        """A request with so many uncached prompt tokens and so much output took so long, one way or the other."""
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

    def take(self, cell: Cell, evidence: Evidence, gain: float) -> None:
        """What an earlier run has learned about a cell."""
        self._evidence[cell] = evidence
        self._gains[cell[0]][cell[1]] = gain

    def _cell(self, prefill_tokens: int, output_tokens: int) -> Cell:
        nearest = self.measured.corners(prefill_tokens, output_tokens)[0]
        return nearest.row, nearest.column
