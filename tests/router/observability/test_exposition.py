"""Our text against the one of prometheus_client."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from router.observability.bucket_counts import BucketCounts
from router.observability.exposition import PIECE_LINES, Snapshot, counter, gauge, histogram, render

BOUNDS = (0, 0.005, 0.5, 1, 2.5)
NAMES = st.sampled_from(["a", "b", 'c"\\\n', "ü", ""])
NUMBERS = st.one_of(st.floats(0, 5), st.sampled_from(BOUNDS), st.floats(0, 1e300), st.sampled_from([1e6, 2**40]))
SIGNED = st.one_of(st.floats(), NUMBERS)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, NUMBERS)), SIGNED)
def test_the_page_is_the_one_that_prometheus_client_would_make(values, signed):
    disable_created_metrics()
    theirs = CollectorRegistry()
    text = "Text with \\ and\na line"
    counts = Counter("fairlead_requests", text, ("x", "y"), registry=theirs)
    level = Gauge("fairlead_level", text, registry=theirs)
    seconds = Histogram("fairlead_wait_seconds", text, ("z", "a"), buckets=BOUNDS, registry=theirs)
    ours = [counter("requests", text, "x", "y"), gauge("level", text)]
    ours.append(histogram("wait_seconds", text, BOUNDS, "z", "a"))
    totals: dict[tuple[str, str], float] = {}
    spreads: dict[tuple[str, str], BucketCounts] = {}
    level.set(signed)
    for x, y, value in values:
        counts.labels(x, y).inc(value)
        totals[x, y] = totals.get((x, y), 0.0) + value
        seconds.labels(x, y).observe(value)
        spreads.setdefault((x, y), BucketCounts(BOUNDS)).observe(value)
    snapshot = Snapshot({metric: [] for metric in ours})
    for labels, total in totals.items():
        snapshot.add(ours[0], total, *labels)
    snapshot.add(ours[1], signed)
    for labels, spread in spreads.items():
        snapshot.add(ours[2], spread.copy(), *labels)
    assert b"".join(render(snapshot)) == generate_latest(theirs)


def test_the_text_is_made_in_pieces_of_a_bounded_number_of_lines():
    metric = gauge("level", "Text", "x")
    snapshot = Snapshot({metric: []})
    for number in range(10 * PIECE_LINES):
        snapshot.add(metric, number, str(number))
    pieces = list(render(snapshot))
    assert len(pieces) > 10
    assert max(piece.count(b"\n") for piece in pieces) <= PIECE_LINES + 1


def test_what_was_copied_does_not_change_any_more():
    counts = BucketCounts(BOUNDS)
    counts.observe(0.1)
    copied = counts.copy()
    counts.observe(0.1)
    assert copied == (0, 0, 1, 0, 0, 0, 0.1)


def test_half_of_a_character_does_not_break_the_page():
    metric = gauge("level", "Text", "x")
    snapshot = Snapshot({metric: []})
    snapshot.add(metric, 1, "\ud800")
    assert b'fairlead_level{x="?"} 1.0\n' in b"".join(render(snapshot))


def test_a_histogram_has_buckets_and_nothing_else_has():
    for metric, value in ((gauge("level", "Text"), (1, 1.0)), (histogram("wait", "Text", ()), 1.0)):
        snapshot = Snapshot({metric: []})
        snapshot.add(metric, value)
        with pytest.raises(TypeError, match="histogram"):
            list(render(snapshot))
