"""Room is prefill in flight, KV and slots; and one request always fits a worker with nothing in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.room import Room

BOUND = st.one_of(st.none(), st.integers(-50, 200))
ROOMS = st.builds(
    Room,
    idle=st.booleans(),
    prefill_idle=st.booleans(),
    prefill_free=st.integers(-50, 200),
    slots_free=BOUND,
    kv_free=BOUND,
    expected_at=st.just(0.0),
)
TOKENS = st.integers(1, 200)


def room(**fields):
    values = {"idle": False, "prefill_idle": False, "prefill_free": 100, "slots_free": 4, "kv_free": 1000}
    return Room(**{**values, **fields}, expected_at=0.0)


def test_a_request_within_every_bound_fits():
    assert room().admits(100, 1000, 4)


@pytest.mark.parametrize("asked", [(101, 1000, 4), (100, 1001, 4), (100, 1000, 5)])
def test_a_request_beyond_one_bound_does_not_fit(asked):
    assert not room().admits(*asked)


def test_any_request_fits_a_worker_with_nothing_in_flight():
    full = room(idle=True, prefill_free=-1, slots_free=0, kv_free=-5)
    assert full.admits(10**9, 10**9, 10**6)
    assert full.open


def test_a_prompt_of_any_length_starts_when_no_other_is_being_computed():
    assert room(prefill_idle=True, prefill_free=1).admits(500, 1000, 1)


def test_a_free_window_does_not_make_up_for_slots_or_memory():
    assert not room(prefill_idle=True, slots_free=0).admits(1, 1, 1)
    assert not room(prefill_idle=True, kv_free=10).admits(1, 11, 1)


def test_an_unknown_bound_does_not_bind():
    assert room(slots_free=None, kv_free=None).admits(100, 10**9, 10**6)


ASKED = st.tuples(TOKENS, TOKENS, st.integers(1, 9))


@given(ROOMS, ASKED, ASKED)
def test_what_fits_still_fits_when_it_is_smaller(room, asked, other):
    smaller = tuple(min(pair) for pair in zip(asked, other, strict=True))
    assert room.admits(*smaller) or not room.admits(*asked)
