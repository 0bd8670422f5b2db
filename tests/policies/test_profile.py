"""A profile follows what it observes, is not thrown by one outlier, and stays a positive finite number."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fleet.profile import Profile


def scaled(factor):
    """The default profile of a worker that is so many times slower."""
    default = Profile()
    return Profile(*(factor * getattr(default, name) for name in TIMES))


TIMES = ("base_s", "per_token_s", "per_pair_s", "step_base_s", "per_sequence_s", "per_context_token_s")
SECONDS = st.one_of(st.just(0.0), st.floats(1e-9, 1e4))
OBSERVATIONS = st.one_of(
    st.tuples(st.just("saw_prefill"), st.integers(1, 10**6), SECONDS),
    st.tuples(st.just("saw_decode"), st.integers(1, 10**5), SECONDS),
    st.tuples(st.just("saw_whole"), st.integers(1, 10**6), st.integers(0, 10**5), SECONDS),
)


def test_a_prompt_costs_a_base_and_its_tokens():
    profile = Profile(base_s=0.01, per_token_s=1e-4, per_pair_s=0.0)
    assert profile.prefill_s(1000) == pytest.approx(0.11)


def test_as_many_tokens_as_fit_into_a_time_take_no_longer():
    profile = Profile(base_s=0.01, per_token_s=1e-4, per_pair_s=0.0)
    tokens = profile.prefill_tokens(0.2)
    assert profile.prefill_s(tokens) <= 0.2 < profile.prefill_s(tokens + 2)


def test_one_token_fits_into_any_time():
    assert Profile(base_s=5.0).prefill_tokens(0.2) == 1


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_consistent_observations_are_learned(factor):
    truth = scaled(factor)
    learned = Profile()
    for tokens in [100, 4000, 900] * 50:
        learned = learned.saw_prefill(tokens, truth.prefill_s(tokens)).saw_decode(tokens, truth.decode_s(tokens))
    assert learned.prefill_s(1000) == pytest.approx(truth.prefill_s(1000), rel=0.05)
    assert learned.decode_s(100) == pytest.approx(truth.decode_s(100), rel=0.05)


def test_whole_answers_teach_both_parts():
    truth = scaled(3.0)
    learned = Profile()
    for _ in range(100):
        learned = learned.saw_whole(1000, 200, truth.prefill_s(1000) + truth.decode_s(200))
    assert learned.prefill_s(1000) == pytest.approx(truth.prefill_s(1000), rel=0.05)
    assert learned.decode_s(200) == pytest.approx(truth.decode_s(200), rel=0.05)


def test_the_first_observation_counts_in_full():
    assert Profile().saw_decode(100, 2.0).step_s() == pytest.approx(0.02)


def test_one_outlier_does_not_move_a_settled_profile_far():
    settled = Profile(prefills=100, decodes=100)
    assert settled.saw_decode(100, 1e6).step_s() < 1.4 * settled.step_s()
    assert settled.saw_prefill(100, 0.0).prefill_s(100) > 0.7 * settled.prefill_s(100)


def test_an_observation_leaves_the_old_profile_as_it_was():
    before = Profile()
    assert before.saw_prefill(10, 1.0) != before == Profile()


def test_answers_in_no_time_do_not_end_in_a_division_by_zero():
    """A virtual clock may well stand still between two events."""
    profile = Profile()
    for _ in range(20_000):
        profile = profile.saw_whole(1, 1, 0.0)
    assert profile.saw_prefill(1, 0.0).prefill_tokens(0.2) > 0
    assert profile.saw_decode(1, 0.0).step_s() > 0


@settings(max_examples=60)
@given(st.lists(OBSERVATIONS, max_size=60))
def test_every_time_stays_positive_and_finite(observations):
    profile = Profile()
    for kind, *values in observations:
        profile = getattr(profile, kind)(*values)
    for seconds in (
        profile.base_s,
        profile.per_token_s,
        profile.per_pair_s,
        profile.step_base_s,
        profile.per_sequence_s,
    ):
        assert 0.0 < seconds < math.inf
    assert profile.prefill_tokens(0.2) >= 1


def test_long_prompts_teach_what_is_quadratic():
    truth = Profile(per_pair_s=4e-9)
    learned = Profile()
    for tokens in [100, 1000, 30_000] * 100:
        learned = learned.saw_prefill(tokens, truth.prefill_s(tokens))
    for tokens in (100, 1000, 30_000):
        assert learned.prefill_s(tokens) == pytest.approx(truth.prefill_s(tokens), rel=0.1)


def test_full_batches_teach_what_a_sequence_costs():
    truth = Profile(per_sequence_s=300e-6)
    learned = Profile()
    for batch in [1, 8, 64] * 100:
        learned = learned.saw_decode(100, truth.decode_s(100, batch), batch)
    for batch in (1, 8, 64):
        assert learned.step_s(batch) == pytest.approx(truth.step_s(batch), rel=0.1)


def test_what_is_cached_costs_attention_only():
    profile = Profile()
    assert profile.prefill_s(100) < profile.prefill_s(100, 10_000) < profile.prefill_s(10_100)
