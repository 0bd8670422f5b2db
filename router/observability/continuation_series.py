"""What is counted of streams whose worker died: how many went on elsewhere, and how long they stood still."""

from collections import Counter
from collections.abc import Iterator

from router.observability.bucket_counts import BucketCounts
from router.observability.exposition import Metric, Snapshot, counter, histogram

_GAP = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STREAMS = counter(
    "continuations", "Streams whose worker died, by how it died or why they could not go on", "outcome", "reason"
)
_GAPS = histogram("continuation_gap_seconds", "From a worker's death to the stream's next token", _GAP)
_DEATHS = ("cut", "silent", "aborted", "engine")
"""Shown from 0 on."""


class ContinuationSeries:
    """The counters of one gateway."""

    metrics: tuple[Metric, ...] = (_STREAMS, _GAPS)

    def __init__(self) -> None:
        self._streams: Counter[tuple[str, str]] = Counter({("continued", death): 0 for death in _DEATHS})
        self._gaps = BucketCounts(_GAP)

    def count(self, outcome: str, reason: str) -> None:
        """One stream's worker has died; `reason`: one of a bounded set of words."""
        self._streams[outcome, reason] += 1

    def gap(self, seconds: float) -> None:
        """A stream goes on that has stood still for so long."""
        self._gaps.observe(seconds)

    def read(self, into: Snapshot) -> Iterator[None]:
        """What was counted."""
        for (outcome, reason), count in sorted(self._streams.items()):
            into.add(_STREAMS, count, outcome, reason)
        into.add(_GAPS, self._gaps.copy())
        yield
