"""Pauses that grow, and stop growing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.bounds.backoff import Backoff


def test_each_failure_doubles_the_pause_up_to_the_longest():
    backoff = Backoff(first_s=0.25, longest_s=2.0)
    assert [backoff.delay_s(failures) for failures in range(1, 6)] == [0.25, 0.5, 1.0, 2.0, 2.0]


@given(st.integers(min_value=0, max_value=10**9))
def test_however_often_it_fails_the_pause_stays_between_its_bounds(failures):
    delay_s = Backoff(first_s=1.0, longest_s=60.0, factor=10.0).delay_s(failures)
    assert 1.0 <= delay_s <= 60.0


@pytest.mark.parametrize(
    "wrong", [{"first_s": 0}, {"first_s": 9, "longest_s": 8}, {"factor": 0.5}, {"first_s": math.nan}]
)
def test_pauses_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        Backoff(**wrong)
