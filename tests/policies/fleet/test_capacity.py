"""Room is prefill in flight, KV and slots; and one request always fits a worker with nothing in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fleet.capacity import Room
from policies.fleet.kv_fit import Batch, Member

BOUND = st.one_of(st.none(), st.integers(-50, 200))
FIELDS = {
    "idle": st.booleans(),
    "prefill_idle": st.booleans(),
    "prefill_free": st.integers(-50, 200),
    "slots_free": BOUND,
    "kv_free": BOUND,
}
MEMBERS = st.lists(st.builds(Member, *(st.integers(0, 40) for _ in range(3)), st.integers(1, 3)), max_size=5)


@st.composite
def rooms(draw):
    fields = {name: draw(values) for name, values in FIELDS.items()}
    if fields["kv_free"] is not None and draw(st.booleans()):
        members = draw(MEMBERS)
        held = sum(one.prompt + one.answer for one in members)
        ends = sum(one.prompt + one.answer + one.sequences * one.remaining for one in members)
        capacity = max(0, ends + fields["kv_free"])
        fields |= {"kv_free": capacity - ends, "kv_now": capacity - held, "batch": Batch(members, capacity)}
    return Room(**fields)


def room(**fields):
    values = {"idle": False, "prefill_idle": False, "prefill_free": 100, "slots_free": 4, "kv_free": 1000}
    return Room(**{**values, **fields})


def crowded(*members, capacity, pinned=None):
    """Room on a worker where these run; there is only just too little KV for all of them at their longest."""
    batch = Batch(members, capacity, pinned)
    answers = sum(one.answer for one in members)
    ends = batch.pinned + answers + sum(one.sequences * one.remaining for one in members)
    return room(kv_free=capacity - ends, kv_now=capacity - batch.pinned - answers, batch=batch)


def test_a_request_within_every_bound_fits():
    assert room().admits(100, 100, 225, 4)


@pytest.mark.parametrize("asked", [(200, 101, 10, 1), (100, 100, 226, 4), (100, 100, 100, 5)])
def test_a_request_beyond_one_bound_does_not_fit(asked):
    assert not room().admits(*asked)


def test_any_request_fits_a_worker_with_nothing_in_flight():
    full = room(idle=True, prefill_free=-1, slots_free=0, kv_free=-5)
    assert full.admits(10**9, 10**9, 10**9, 10**6)
    assert full.admits_prefill(10**9, 10**9)
    assert full.admits_decode(10**9, 10**9, 10**9, 10**6)
    assert full.open


def test_a_prompt_of_any_length_starts_when_no_other_is_being_computed():
    assert room(prefill_idle=True, prefill_free=1).admits(500, 500, 500, 1)


def test_a_free_window_does_not_make_up_for_slots_or_memory():
    assert not room(prefill_idle=True, slots_free=0).admits(1, 1, 1, 1)
    assert not room(prefill_idle=True, kv_free=10).admits(1, 1, 10, 1)


def test_an_unknown_bound_does_not_bind():
    assert room(slots_free=None, kv_free=None).admits(100, 100, 10**9, 10**6)


def test_answers_that_end_in_time_make_room():
    """Reserving would need 20 + 40 for the first and 20 + 60 for the second."""
    assert crowded(Member(20, 30, 10), capacity=115).admits(20, 20, 60, 1)
    assert not crowded(Member(20, 30, 10), capacity=89).admits(20, 20, 60, 1)


def test_what_is_held_now_is_not_free_whatever_ends_soon():
    assert not crowded(Member(20, 70, 0), capacity=100).admits(20, 20, 1, 1)


def test_a_cached_prefix_that_nobody_uses_has_to_be_held_too():
    """All but one token of the prompt is cached, but only 20 tokens of prompts are in use."""
    assert crowded(Member(20, 0, 5), capacity=100).admits(70, 1, 5, 1)
    assert not crowded(Member(20, 0, 5), capacity=70).admits(70, 1, 5, 1)


def test_a_prefix_in_use_is_not_held_twice():
    assert crowded(Member(60, 0, 5), capacity=75).admits(61, 1, 5, 1)


# -- the two sides of a pair


def test_a_prefill_needs_the_window_and_memory_for_the_prompt_but_no_slot():
    assert room(slots_free=0).admits_prefill(100, 100)
    assert not room(slots_free=0).admits_prefill(101, 101)
    assert room(prefill_idle=True).admits_prefill(101, 101)
    assert not room(prefill_idle=True, kv_free=100).admits_prefill(101, 101)
    assert crowded(Member(20, 30, 10), capacity=70).admits_prefill(20, 20)
    assert not crowded(Member(20, 30, 10), capacity=69).admits_prefill(20, 20)


def test_a_decode_needs_a_slot_and_memory_but_no_window():
    assert room(prefill_free=-5).admits_decode(500, 500, 500, 1)
    assert not room(slots_free=0).admits_decode(1, 1, 1, 1)
    assert not room().admits_decode(500, 500, 501, 1)
    assert crowded(Member(20, 30, 10), capacity=115).admits_decode(20, 20, 60, 1)


def test_a_worker_with_one_role_is_open_as_long_as_that_role_has_room():
    assert room(prefill_free=0, prefills=False).open
    assert room(slots_free=0, decodes=False).open
    assert not room(prefill_free=0).open
    assert not room(slots_free=0).open
    assert not room(prefill_free=0, decodes=False).open
    assert not room(slots_free=0, prefills=False).open
    assert not room(kv_free=0, prefills=False).open
    assert room(kv_free=-5, kv_now=1, batch=Batch([], 1)).open
    assert not room(kv_free=-5, kv_now=0, batch=Batch([], 1)).open


# -- whatever the room

ASKED = st.tuples(st.integers(1, 200), st.integers(1, 200), st.integers(1, 60), st.integers(1, 9)).map(
    lambda asked: (max(asked[:2]), *asked[1:])
)


@given(rooms(), ASKED, ASKED)
def test_what_fits_still_fits_when_it_is_smaller(room, asked, other):
    smaller = tuple(min(pair) for pair in zip(asked, other, strict=True))
    assert room.admits(*smaller) or not room.admits(*asked)


@given(rooms(), ASKED)
def test_who_is_admitted_finds_the_worker_open_and_both_sides_of_it(room, asked):
    prompt, extend, _, _ = asked
    if room.admits(*asked):
        assert room.open
        assert room.admits_prefill(prompt, extend)
        assert room.admits_decode(*asked)
