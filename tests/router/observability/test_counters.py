"""Our counters and histograms against the ones of prometheus_client."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from router.observability.counters import Spreads, Totals

BOUNDS = (0, 0.005, 0.5, 1, 2.5)
NAMES = st.sampled_from(["a", "b", 'c"\\\n'])


def registered(*families):
    registry = CollectorRegistry()
    for family in families:
        registry.register(family)
    return registry


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, st.one_of(st.floats(0, 5), st.sampled_from(BOUNDS)))))
def test_the_page_is_the_one_that_prometheus_client_would_make(values):
    disable_created_metrics()
    theirs = CollectorRegistry()
    counter = Counter("requests", "Text", ("x", "y"), registry=theirs)
    histogram = Histogram("wait_seconds", "Text", ("x", "y"), buckets=BOUNDS, registry=theirs)
    totals, spreads = Totals("requests", "Text", ("x", "y")), Spreads("wait_seconds", "Text", ("x", "y"), BOUNDS)
    for x, y, value in values:
        for count, spread in ((counter, histogram), (totals, spreads)):
            count.labels(x, y).inc(value)
            spread.labels(x, y).observe(value)
    assert generate_latest(registered(totals, spreads)) == generate_latest(theirs)


def test_a_removed_child_is_gone_and_begins_at_zero_if_it_comes_back():
    totals = Totals("requests", "Text", ("x",))
    totals.labels("a").inc()
    totals.remove("a")
    totals.remove("never there")
    assert b'x="a"' not in generate_latest(registered(totals))
    assert totals.labels("a").value == 0


def test_a_name_can_be_registered_once():
    with pytest.raises(ValueError, match="requests"):
        registered(Totals("requests", "Text", ("x",)), Spreads("requests", "Text", ("x",), BOUNDS))
