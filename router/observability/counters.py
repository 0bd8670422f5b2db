"""Counters and histograms for whoever counts a dozen things per request.

Prometheus's own children check, lock and convert at every call, which costs ten times as much as the counting.
Here a child is a slot that is added to, and families are made of them when somebody asks. Names, labels and text
come out as `prometheus_client` would have them. To be counted from one thread only.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Total:
    """A sum that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Spread:
    """How many values lie up to each bound and above the one before; the last count is of those above all."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child")


class _Family(Collector, Generic[Child]):
    """One metric: a child for each combination of label values, in the order in which they came."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def remove(self, *values: str) -> None:
        self._children.pop(values, None)

    def describe(self) -> Iterable[Metric]:
        return [self._shown([])]

    def collect(self) -> Iterator[Metric]:
        yield self._shown(list(self._children.items()))

    @abstractmethod
    def _make(self) -> Child: ...

    @abstractmethod
    def _shown(self, children: list[tuple[tuple[str, ...], Child]]) -> Metric: ...


class Totals(_Family[Total]):
    """A counter."""

    def _make(self) -> Total:
        return Total()

    def _shown(self, children: list[tuple[tuple[str, ...], Total]]) -> Metric:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, total in children:
            family.add_metric(values, total.value)
        return family


class Spreads(_Family[Spread]):
    """A histogram with these upper bounds, ascending, and infinity."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, text, labels)
        self._bounds = bounds
        self._edges = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]

    def _make(self) -> Spread:
        return Spread(self._bounds)

    def _shown(self, children: list[tuple[tuple[str, ...], Spread]]) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, spread in children:
            buckets = list(zip(self._edges, accumulate(spread.counts), strict=True))
            family.add_metric(values, buckets, spread.sum)
        return family
