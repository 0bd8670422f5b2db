"""Prometheus' text format from values that were copied before, piece by piece.

`prometheus_client` makes an object per line and the page all at once: with a hundred models and a hundred clients
that takes hundreds of milliseconds, during which nothing else runs. Here a `Snapshot` holds a small row per child,
which is quick to take, and `render` makes text of it on any thread: the text that the library would have written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from typing import Any

from prometheus_client.utils import floatToGoString

PIECE_LINES = 200
"""Lines per piece of a page: about a fifth of a millisecond of work."""
_EXACT = 1e6
"""Below it Go and Python write a number alike."""
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Buckets = tuple[float, ...]
"""Of a histogram: how many values per bucket (not cumulative; the last: above all bounds), then their sum."""
Row = tuple[Any, ...]
"""What was counted, a number or `Buckets`, then the values of the metric's labels, in their order.

One flat tuple: a page has thousands of rows, and what it allocates brings the garbage collector nearer.
"""


class Kind(Enum):
    """What a metric is; values as the format has them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A name with its labels. `bounds`: upper bounds of a histogram's buckets, ascending, infinity left out."""

    kind: Kind
    name: str
    """A counter's without `_total`, which the page adds."""
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def counter(name: str, text: str, *labels: str) -> Metric:
    """A counter, `fairlead_` before its name."""
    return Metric(Kind.COUNTER, f"fairlead_{name}", text, labels)


def gauge(name: str, text: str, *labels: str) -> Metric:
    """A gauge, `fairlead_` before its name."""
    return Metric(Kind.GAUGE, f"fairlead_{name}", text, labels)


def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    """A histogram, `fairlead_` before its name."""
    return Metric(Kind.HISTOGRAM, f"fairlead_{name}", text, labels, bounds)


@dataclass(slots=True)
class Snapshot:
    """What every metric was at one moment, or nearly one: copies, which nothing changes any more."""

    rows: dict[Metric, list[Row]] = field(default_factory=dict)

    def add(self, metric: Metric, *row: Any) -> None:
        """One child of a metric: its value, then its labels (see `Row`)."""
        self.rows[metric].append(row)


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """The page, in pieces of about `PIECE_LINES` lines. A metric without rows has its head all the same."""
    lines: list[str] = []
    for metric, rows in snapshot.rows.items():
        name = f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name
        text = metric.text.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {metric.kind.value}\n")
        one_row = _buckets if metric.kind is Kind.HISTOGRAM else _value
        for line in one_row(name, metric, rows):
            lines.append(line)
            if len(lines) >= PIECE_LINES:
                yield "".join(lines).encode(errors="replace")
                lines.clear()
    yield "".join(lines).encode(errors="replace")


def _value(name: str, metric: Metric, rows: Sequence[Row]) -> Iterator[str]:
    order = _order(metric.labels)
    for row in rows:
        pairs = ",".join(_pairs(order, row))
        yield f"{name}{{{pairs}}} {_number(row[0])}\n" if pairs else f"{name} {_number(row[0])}\n"


def _buckets(name: str, metric: Metric, rows: Sequence[Row]) -> Iterator[str]:
    """A histogram's lines; the bound `le` has its place among the labels by the alphabet."""
    order = _order(metric.labels)
    before = sum(label < "le" for label in metric.labels)
    edges = [floatToGoString(bound) for bound in (*metric.bounds, float("inf"))]  # type: ignore[no-untyped-call]
    for row in rows:
        if not isinstance(row[0], tuple):
            raise TypeError(f"{name} is a histogram")
        *counts, total = row[0]
        pairs = _pairs(order, row)
        head = "".join(f"{pair}," for pair in pairs[:before])
        tail = "".join(f",{pair}" for pair in pairs[before:])
        shown = "{" + ",".join(pairs) + "}" if pairs else ""
        count = 0
        for edge, count in zip(edges, accumulate(counts), strict=True):
            yield f'{name}_bucket{{{head}le="{edge}"{tail}}} {_number(count)}\n'
        yield f"{name}_count{shown} {_number(count)}\n{name}_sum{shown} {_number(total)}\n"


def _order(labels: Sequence[str]) -> list[tuple[int, str]]:
    """Each label's place in a row, and its name, in the order of the page: the alphabet's."""
    return sorted(enumerate(labels, 1), key=lambda each: each[1])


def _pairs(order: Sequence[tuple[int, str]], row: Row) -> list[str]:
    return [f'{label}="{row[place].translate(_ESCAPED)}"' for place, label in order]


def _number(value: float | Buckets) -> str:
    if isinstance(value, tuple):
        raise TypeError("only a histogram has buckets")
    if -_EXACT < value < _EXACT:
        return repr(float(value))
    return floatToGoString(value)  # type: ignore[no-untyped-call, no-any-return]
