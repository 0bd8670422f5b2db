"""Looking at the ends only says the same as walking through every step; the fast question says it again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fleet.kv_fit import Batch, Member, fits

MEMBERS = st.builds(
    Member,
    prompt=st.integers(0, 30),
    answer=st.integers(0, 12),
    remaining=st.integers(0, 12),
    sequences=st.integers(1, 3),
)
BATCHES = st.lists(MEMBERS, max_size=8)
NEWCOMERS = st.builds(
    Member,
    prompt=st.integers(0, 30),
    answer=st.just(0),
    remaining=st.integers(0, 15),
    sequences=st.sampled_from([1, 1, 1, 2]),
)


def most(members, until):
    """The most that a batch of strangers ever holds up to a step, walked through step by step."""
    return max(
        sum(m.prompt + m.answer + m.sequences * step for m in members if m.remaining >= step)
        for step in range(until + 1)
    )


@settings(max_examples=200)
@given(BATCHES, NEWCOMERS, st.integers(-3, 3))
def test_who_fits_never_overflows_and_who_does_not_would(batch, newcomer, off):
    capacity = most([*batch, newcomer], newcomer.remaining) + off
    assert fits(batch, newcomer, capacity) == (off >= 0)


@settings(max_examples=100)
@given(BATCHES, NEWCOMERS, st.integers(-3, 3))
def test_in_a_batch_that_fits_by_itself_nobody_ever_overflows(batch, newcomer, off):
    """A batch that was admitted one by one: then the newcomer's own time is all that matters."""
    alone = most(batch, 12) if batch else 0
    capacity = max(alone, most([*batch, newcomer], newcomer.remaining) + off)
    whole = most([*batch, newcomer], 15) <= capacity
    assert fits(batch, newcomer, capacity) == whole


@settings(max_examples=300)
@given(BATCHES, NEWCOMERS, st.integers(0, 200), st.none() | st.tuples(st.integers(0, 60), st.integers(0, 30)))
def test_the_fast_question_is_the_same_question(batch, newcomer, capacity, sharing):
    pinned = fresh = None
    if sharing is not None:
        shared, fresh = sharing
        pinned, fresh = max(0, sum(m.prompt for m in batch) - shared), min(fresh, newcomer.prompt)
    made = Batch(batch, capacity, pinned)
    expected = fits(batch, newcomer, capacity, pinned, fresh)
    assert made.fits(newcomer, fresh) == expected
    assert made.fits(newcomer, fresh) == expected


@settings(max_examples=200)
@given(BATCHES, NEWCOMERS, st.data())
def test_the_fast_question_is_exact_at_the_edge(batch, newcomer, data):
    """The capacity is the least at which the newcomer fits, or one below."""
    pinned = data.draw(st.integers(0, sum(m.prompt for m in batch)))
    fresh = data.draw(st.integers(0, newcomer.prompt))
    least = next(c for c in range(2000) if fits(batch, newcomer, c, pinned, fresh))
    assert Batch(batch, least, pinned).fits(newcomer, fresh)
    assert not Batch(batch, least - 1, pinned).fits(newcomer, fresh)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 10)), max_size=6),
    st.integers(0, 20),
    st.tuples(st.integers(1, 20), st.integers(0, 10)),
    st.integers(0, 150),
)
def test_a_shared_prefix_is_held_once_and_as_long_as_anybody_needs_it(others, prefix, new, capacity):
    """Walked through step by step: all prompts begin with one prefix. What fits never overflows."""
    batch = [Member(prefix + own, 0, remaining) for own, remaining in others]
    own, remaining = new
    fresh = own if others else prefix + own
    pinned = prefix + sum(private for private, _ in others) if others else 0
    if fits(batch, Member(prefix + own, 0, remaining), capacity, pinned, fresh):
        for step in range(remaining + 1):
            alive = [private for private, end in [*others, new] if end >= step]
            assert prefix + sum(alive) + step * len(alive) <= capacity


@given(BATCHES, st.lists(NEWCOMERS, max_size=4), NEWCOMERS, st.integers(0, 250), st.integers(0, 60))
def test_a_batch_grows_one_by_one(batch, added, newcomer, capacity, pinned):
    made = Batch(batch, capacity, pinned)
    for member in added:
        before, made = made, made.plus(member, member.prompt // 2)
        assert len(made) == len(before) + 1
    pinned += sum(member.prompt // 2 for member in added)
    assert made.fits(newcomer) == fits([*batch, *added], newcomer, capacity, pinned)


def test_answers_that_end_make_room_for_those_that_grow():
    """Reserving whole lengths would need 10 + 90 + 10 + 90 tokens; the first has ended when the second is long."""
    half_done = Member(prompt=10, answer=45, remaining=45)
    assert fits([half_done], Member(10, 0, 90), 155)  # at step 45: 10 + 90 and 10 + 45
    assert not fits([half_done], Member(10, 0, 90), 154)


def test_what_a_shared_prefix_saves_is_counted_once():
    running = [Member(100, 5, 5) for _ in range(4)]
    assert fits(running, Member(100, 0, 10), 100 + 4 * 10 + 10, pinned=100, fresh=0)
    assert not fits(running, Member(100, 0, 10), 100 + 4 * 10 + 4, pinned=100, fresh=0)


def test_prompts_nobody_shares_are_given_back_at_their_end():
    """When the newcomer is longest only its own prompt and answer are left."""
    assert Batch([Member(50, 0, 10)], 125, pinned=50).fits(Member(50, 0, 60), fresh=50)
    assert not Batch([Member(50, 0, 10)], 119, pinned=50).fits(Member(50, 0, 60), fresh=50)


def test_several_answers_grow_several_tokens_a_step():
    assert fits([], Member(10, 0, 5, sequences=3), 25)
    assert not fits([], Member(10, 0, 5, sequences=3), 24)
    assert not Batch([], 24).fits(Member(10, 0, 5, sequences=3))


@pytest.mark.parametrize("made", [fits, lambda batch, *rest: Batch(batch, rest[1]).fits(rest[0])])
def test_an_overflow_after_the_newcomers_end_is_not_its_fault(made):
    """Two answers turned out long and will not fit in the end; a short one still goes through."""
    long = [Member(0, 10, 100), Member(0, 10, 100)]
    assert made(long, Member(5, 0, 10), 60)
    assert not made(long, Member(5, 0, 40), 60)


def test_an_array_of_fields_is_a_batch():
    rows = np.array([[10], [5], [5], [1]])
    assert Batch(rows, 26).fits(Member(1, 0, 5))
    assert not Batch(rows, 25).fits(Member(1, 0, 5))


# -- when there will be room


@settings(max_examples=200)
@given(BATCHES, st.integers(0, 30), st.integers(0, 20), st.integers(0, 150))
def test_when_a_request_is_expected_to_fit_it_does_whatever_it_needs_until_then(batch, prompt, answers, capacity):
    steps = Batch(batch, capacity).steps_until_free(prompt, prompt, answers)
    left = [m for m in batch if m.remaining > steps]
    assert steps in {0, *(m.remaining for m in batch)}
    if left:
        held = [sum(m.prompt + m.held(step) for m in left if m.remaining >= step) for step in range(steps + 1, 13)]
        assert prompt + answers + max(held) <= capacity


@settings(max_examples=200)
@given(BATCHES, st.integers(1, 20))
def test_sequences_are_expected_to_have_ended_when_the_shortest_have(batch, wanted):
    steps = Batch(batch, 0).steps_until_ended(wanted)
    total = sum(m.sequences for m in batch)
    assert sum(m.sequences for m in batch if m.remaining <= steps) >= min(wanted, total)
    assert sum(m.sequences for m in batch if m.remaining < steps) < wanted


def test_a_prompt_that_the_batch_shares_needs_less_memory():
    batch = Batch([Member(80, 0, 10), Member(80, 0, 50)], 200, pinned=80)
    assert batch.steps_until_free(80, 80, 60) == 50
    assert batch.steps_until_free(80, 0, 60) == 10


def test_room_is_not_expected_before_those_that_still_grow_have_ended():
    """Of 40 tokens some 16 are held for three steps, and 30 in the end: 20 more fit only then."""
    batch = Batch([Member(1, 0, 1), Member(1, 0, 2), Member(5, 0, 3), Member(0, 0, 10, 3)], 40)
    assert batch.steps_until_free(20, 20, 0) == 10
    assert batch.steps_until_free(9, 9, 1) == 1
