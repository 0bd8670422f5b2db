"""Which profile explains the measured points? Non-negative least squares over the terms of an engine's step.

The step of `workers/simulator/profiles.py` is linear in its coefficients but for one maximum: reading the weights,
or computing the products, whichever takes longer. Once it is said for each step which of the two it is, the rest
is least squares. Small steps read weights and large ones compute, so every border between the measured sizes is
tried; from there the sides are chosen anew by the coefficients that were found, until none changes.

Each equation is divided by its measured time: what is made small is the relative error, so that prefills of
seconds do not drown decodes of milliseconds. A seventh coefficient, `transport_s`, takes what the time to a first
token has beyond the engine's steps (HTTP, tokens into text, a busy client); it is no part of the profile.

Terms that the points cannot separate (weights and overhead, where every step reads weights) go to the first of the
terms in the order of `TERMS`, and the others stay 0: predictions are the same, within the range that was measured.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from router.lab.profiling.points import Point, Step
from workers.simulator.profiles import Profile

TERMS = ("overhead_s", "weights_s", "token_s", "pair_s", "context_s", "transport_s", "sample_s")
_ROUNDS = 20
_DEPENDENT = 1e-9
"""A pivot of so little of its diagonal: the column says nothing that those before it have not said."""
_BETTER = 1e-12

Matrix = list[list[float]]


class UndeterminedError(ValueError):
    """Points that determine no profile; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is not measured: the name and the limits of the profile."""

    name: str
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A profile, and how well it explains what was measured."""

    profile: Profile
    transport_s: float
    """What a first token takes beyond the engine's steps."""
    points: tuple[Point, ...] = field(repr=False)

    def predicted_s(self, point: Point) -> float:
        extra = self.transport_s if point.kind == "prefill" else 0.0
        return extra + sum(step.seconds(self.profile) for step in point.steps)

    def residual(self, point: Point) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s(point) / point.measured_s - 1.0

    def error(self) -> float:
        """Mean of the residuals' sizes."""
        return math.fsum(abs(self.residual(point)) for point in self.points) / len(self.points)

    def squares(self) -> float:
        """What the fit makes small."""
        return math.fsum(self.residual(point) ** 2 for point in self.points)


def fit(points: Sequence[Point], limits: Limits) -> Fit:
    """Find the profile with the least squared relative error. Raises UndeterminedError."""
    if not any(point.kind == "prefill" for point in points):
        raise UndeterminedError("no prompt was measured")
    if not any(point.kind == "decode" for point in points):
        raise UndeterminedError("no decoding was measured")
    if any(not point.measured_s > 0 for point in points):
        raise UndeterminedError("a measured time is not positive")
    sizes = sorted({_tokens(step) for point in points for step in point.steps})
    borders = [0, *sizes]  # up to the border weights are read, beyond it products are computed
    return min((_from_border(points, limits, border) for border in borders), key=Fit.squares)


def nonnegative_least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return x >= 0 with the least |rows x - targets|², exactly, for a handful of columns.

    The best x is the unconstrained solution on the columns where it is positive, so if the solution on all columns
    has a negative part or is not unique, every subset is asked. Of equally good ones the smallest and then the one
    of the earliest columns is taken.
    """
    width = len(rows[0])
    gram = [[math.fsum(row[i] * row[j] for row in rows) for j in range(width)] for i in range(width)]
    right = [math.fsum(row[i] * target for row, target in zip(rows, targets, strict=True)) for i in range(width)]
    full = _solve(gram, right, range(width))
    if full is not None and min(full) >= 0:
        return full
    total = math.fsum(target * target for target in targets)
    best, best_gain = [0.0] * width, 0.0
    for columns in _subsets(width):
        found = _solve(gram, right, columns)
        if found is None or min(found) < 0:
            continue
        gain = math.fsum(value * right[column] for value, column in zip(found, columns, strict=True))
        if gain > best_gain + _BETTER * total:
            best, best_gain = [0.0] * width, gain
            for value, column in zip(found, columns, strict=True):
                best[column] = value
    return best


def _from_border(points: Sequence[Point], limits: Limits, border: int) -> Fit:
    sides = [[_tokens(step) > border for step in point.steps] for point in points]
    best: Fit | None = None
    for _ in range(_ROUNDS):
        rows = [_row(point, chosen) for point, chosen in zip(points, sides, strict=True)]
        found = _fit_of(nonnegative_least_squares(rows, [1.0] * len(rows)), points, limits)
        if best is None or found.squares() < best.squares():
            best = found
        chosen_anew = [[_computes(step, found.profile) for step in point.steps] for point in points]
        if chosen_anew == sides:
            break
        sides = chosen_anew
    assert best is not None  # noqa: S101 - there is at least one round
    return best


def _fit_of(values: Sequence[float], points: Sequence[Point], limits: Limits) -> Fit:
    found = dict(zip(TERMS, values, strict=True))
    transport_s = found.pop("transport_s")
    profile = Profile(
        name=limits.name,
        kv_tokens=limits.kv_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        **found,
    )
    return Fit(profile, transport_s, tuple(points))


def _row(point: Point, computes: Sequence[bool]) -> list[float]:
    """What multiplies each of TERMS in this point, relative to its measured time."""
    totals = dict.fromkeys(TERMS, 0.0)
    totals["transport_s"] = float(point.kind == "prefill")
    for step, products in zip(point.steps, computes, strict=True):
        totals["overhead_s"] += 1
        totals["context_s"] += step.context
        totals["pair_s"] += step.chunk_pairs
        if products:
            totals["token_s"] += _tokens(step)
            totals["sample_s"] += step.sequences + step.samples
        else:
            totals["weights_s"] += 1
    return [totals[term] / point.measured_s for term in TERMS]


def _tokens(step: Step) -> int:
    return step.sequences + step.chunk_tokens


def _computes(step: Step, profile: Profile) -> bool:
    """Whether the products take longer than reading the weights."""
    samples = step.sequences + step.samples
    return _tokens(step) * profile.token_s + samples * profile.sample_s > profile.weights_s


def _subsets(width: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, width + 1):
        yield from combinations(range(width), size)


def _solve(gram: Matrix, right: Sequence[float], columns: Sequence[int]) -> list[float] | None:
    """The normal equations on some of the columns; None where these depend on each other.

    Gauss-Jordan without exchange of rows: the matrix is symmetric and not indefinite. Columns are scaled to length
    1, so that a pivot is the share of a column that those before it do not explain.
    """
    if any(gram[i][i] <= 0 for i in columns):
        return None
    scale = [1 / math.sqrt(gram[i][i]) for i in columns]
    table = [
        [*(gram[i][j] * a * b for j, b in zip(columns, scale, strict=True)), right[i] * a]
        for i, a in zip(columns, scale, strict=True)
    ]
    for k, pivot_row in enumerate(table):
        pivot = pivot_row[k]
        if pivot < _DEPENDENT:
            return None
        pivot_row[:] = [value / pivot for value in pivot_row]
        for i, row in enumerate(table):
            if i != k and (factor := row[k]):
                row[:] = [value - factor * above for value, above in zip(row, pivot_row, strict=True)]
    return [row[-1] * a for row, a in zip(table, scale, strict=True)]
