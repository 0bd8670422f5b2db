"""How evenly clients were served while they competed: Jain's index.

The *window* is the time in which at least two clients have requests that have arrived and not ended, be they
queued or running. Each client's service within the window (input + 2 x output tokens; input counts at the first
token, output evenly from there to the end) is divided by its weight and by the part of the window in which the
client itself has such requests: service per second of being backlogged. The index is `(sum x)^2 / (n sum x^2)`
over the clients that are backlogged in the window at all: 1 is even, 1/n is one client taking everything. A client
that asks for less than its share lowers it, whatever the policy.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from router.lab.results import RequestResult


def jain(results: Iterable[RequestResult]) -> float | None:
    """The index over a run; None if there are never two clients backlogged at once."""
    ended = [result for result in results if result.ended is not None and result.ended > result.arrived]
    backlogs = _backlogs(ended)
    window = _Window(backlogs.values())
    if not window.total_s:
        return None
    service = dict.fromkeys(backlogs, 0.0)
    for result in ended:
        service[result.client] += window.service(result) / result.weight
    rates = []
    for client, intervals in backlogs.items():
        seconds = sum(window.upto(end) - window.upto(start) for start, end in intervals)
        if seconds > 0:
            rates.append(service[client] / seconds)
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else None


def _backlogs(results: Iterable[RequestResult]) -> dict[str, list[tuple[float, float]]]:
    """By client the intervals in which it has a request that has arrived and not ended, in rising order."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if result.ended is not None:
            spans.setdefault(result.client, []).append((result.arrived, result.ended))
    return {client: _union(intervals) for client, intervals in spans.items()}


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


class _Window:
    """The time in which at least two clients are backlogged, and how much of it has gone by at any moment."""

    def __init__(self, backlogs: Iterable[list[tuple[float, float]]]) -> None:
        changes = sorted(
            change for intervals in backlogs for start, end in intervals for change in ((start, 1), (end, -1))
        )
        active = list(accumulate(step for _, step in changes))
        self._at = [at for at, _ in changes]
        self._open = [clients >= 2 for clients in active]
        lengths = [
            after - before if opened else 0.0
            for before, after, opened in zip(self._at, self._at[1:], self._open, strict=False)
        ]
        self._gone = [0.0, *accumulate(lengths)]

    @property
    def total_s(self) -> float:
        return self._gone[-1]

    def upto(self, at: float) -> float:
        """Seconds of the window before `at`."""
        last = bisect_right(self._at, at) - 1
        if last < 0:
            return 0.0
        return self._gone[last] + (at - self._at[last] if self._open[last] else 0.0)

    def service(self, result: RequestResult) -> float:
        """What a request has received within the window."""
        first, end = result.first_at, result.ended
        if first is None or end is None:
            return 0.0
        last = bisect_right(self._at, first) - 1
        service = float(result.input_tokens) if last >= 0 and self._open[last] else 0.0
        if end > first:
            service += 2 * result.output_tokens * (self.upto(end) - self.upto(first)) / (end - first)
        return service
