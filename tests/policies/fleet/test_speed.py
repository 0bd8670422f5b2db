"""A profile follows what it observes and stays finite; workers share the pool's speed, times two factors."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fleet.fleet import Fleet
from policies.fleet.speed import PoolSpeed, Profile, WorkerSpeed, pairs
from policies.fleet.worker import Worker
from policies.model import WorkerFacts


def scaled(factor):
    """The default profile of a worker that is a number of times slower."""
    default = Profile()
    return Profile(*(factor * getattr(default, name) for name in TIMES))


TIMES = ("base_s", "per_token_s", "per_pair_s", "step_base_s", "per_sequence_s", "per_context_token_s")
SECONDS = st.one_of(st.just(0.0), st.floats(1e-9, 1e4))
OBSERVATIONS = st.one_of(
    st.tuples(st.just("learn_prefill"), st.integers(1, 10**6), SECONDS),
    st.tuples(st.just("learn_decode"), st.integers(1, 10**5), SECONDS),
    st.tuples(st.just("learn_whole_answer"), st.integers(1, 10**6), st.integers(0, 10**5), SECONDS),
)


def test_a_prompt_costs_a_base_and_its_tokens():
    profile = Profile(base_s=0.01, per_token_s=1e-4, per_pair_s=0.0)
    assert profile.prefill_s(1000) == pytest.approx(0.11)


@pytest.mark.parametrize("base_s", [0.01, 5.0])
def test_as_many_tokens_as_fit_into_a_time_make_a_prefill_no_more_than_that_longer(base_s):
    profile = Profile(base_s=base_s, per_token_s=1e-4, per_pair_s=0.0)
    tokens = profile.prefill_tokens(0.2)
    assert profile.prefill_s(tokens) - base_s <= 0.2 + 1e-9 < profile.prefill_s(tokens + 2) - base_s


def test_one_token_fits_into_any_time():
    assert Profile(per_token_s=5.0).prefill_tokens(0.2) == 1


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_consistent_observations_are_learned(factor):
    truth = scaled(factor)
    learned = Profile()
    for tokens in [100, 4000, 900] * 50:
        learned = learned.learn_prefill(tokens, truth.prefill_s(tokens)).learn_decode(
            tokens, truth.decode_s(tokens)
        )
    assert learned.prefill_s(1000) == pytest.approx(truth.prefill_s(1000), rel=0.05)
    assert learned.decode_s(100) == pytest.approx(truth.decode_s(100), rel=0.05)


def test_whole_answers_teach_both_parts():
    truth = scaled(3.0)
    learned = Profile()
    for _ in range(100):
        learned = learned.learn_whole_answer(1000, 200, truth.prefill_s(1000) + truth.decode_s(200))
    assert learned.prefill_s(1000) == pytest.approx(truth.prefill_s(1000), rel=0.05)
    assert learned.decode_s(200) == pytest.approx(truth.decode_s(200), rel=0.05)


def test_the_first_observation_counts_in_full():
    assert Profile().learn_decode(100, 2.0).step_s() == pytest.approx(0.02)


def test_one_outlier_does_not_move_a_settled_profile_far():
    settled = Profile(prefills=100, decodes=100)
    assert settled.learn_decode(100, 1e6).step_s() < 1.4 * settled.step_s()
    assert settled.learn_prefill(100, 0.0).prefill_s(100) > 0.7 * settled.prefill_s(100)


def test_an_observation_leaves_the_old_profile_as_it_was():
    before = Profile()
    assert before.learn_prefill(10, 1.0) != before == Profile()


def test_answers_in_no_time_do_not_end_in_a_division_by_zero():
    """A virtual clock may well stand still between two events."""
    profile = Profile()
    for _ in range(20_000):
        profile = profile.learn_whole_answer(1, 1, 0.0)
    assert profile.learn_prefill(1, 0.0).prefill_tokens(0.2) > 0
    assert profile.learn_decode(1, 0.0).step_s() > 0


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
        learned = learned.learn_prefill(tokens, truth.prefill_s(tokens))
    for tokens in (100, 1000, 30_000):
        assert learned.prefill_s(tokens) == pytest.approx(truth.prefill_s(tokens), rel=0.1)


def test_full_batches_teach_what_a_sequence_costs():
    truth = Profile(per_sequence_s=300e-6)
    learned = Profile()
    for batch in [1, 8, 64] * 100:
        learned = learned.learn_decode(100, truth.decode_s(100, batch), batch)
    for batch in (1, 8, 64):
        assert learned.step_s(batch) == pytest.approx(truth.step_s(batch), rel=0.1)


def test_what_is_cached_costs_attention_only():
    profile = Profile()
    assert profile.prefill_s(100) < profile.prefill_s(100, 10_000) < profile.prefill_s(10_100)


# -- workers of a pool


TRUE = Profile(0.02, 100e-6, 2e-9, 0.03, 1e-4, 1e-7)
"""The true speed of the workers here; estimates start from another one."""


def workers(count):
    pool = PoolSpeed()
    return pool, [WorkerSpeed(pool, lambda: None) for _ in range(count)]


def prefills(worker, slower=1.0, noise=0.0, rng=None):
    """One observation of a worker that is so much slower than the others."""
    rng = rng or random.Random(0)
    tokens = rng.choice([100, 500, 2000, 4000])
    took = slower * TRUE.prefill_s(tokens) * (1 + rng.uniform(-noise, noise))
    worker.learn_prefill(tokens, took, pairs(tokens))


def well_known(made, rng):
    for _ in range(60):
        for worker in made:
            prefills(worker, rng=rng)


def decodes(worker, slower=1.0, rng=None):
    rng = rng or random.Random(0)
    batch = rng.choice([1, 8, 64])
    worker.learn_decode(100, slower * TRUE.decode_s(100, batch, 1000 * batch), batch, 1000 * batch)


def test_equal_workers_look_equal_whatever_each_has_happened_to_see():
    rng = random.Random(1)
    _, made = workers(4)
    for _ in range(400):
        prefills(rng.choice(made), noise=0.5, rng=rng)
    seen = [worker.profile.prefill_s(1000) for worker in made]
    assert max(seen) < 1.15 * min(seen)
    assert seen == pytest.approx([TRUE.prefill_s(1000)] * 4, rel=0.25)


def test_one_that_is_slower_is_found_out_and_its_peers_are_not_blamed():
    rng = random.Random(2)
    _, made = workers(4)
    for _ in range(100):
        for number, worker in enumerate(made):
            prefills(worker, slower=3.0 if number == 0 else 1.0, rng=rng)
            decodes(worker, slower=2.0 if number == 0 else 1.0, rng=rng)
    slow, *others = [worker.profile for worker in made]
    for other in others:
        assert slow.prefill_s(2000) / other.prefill_s(2000) == pytest.approx(3.0, rel=0.15)
        assert slow.step_s(8, 8000) / other.step_s(8, 8000) == pytest.approx(2.0, rel=0.15)


def test_a_newcomer_is_as_fast_as_its_peers_and_goes_on_learning_from_them():
    rng = random.Random(3)
    pool, (one,) = workers(1)
    told = []
    new = WorkerSpeed(pool, lambda: told.append(1))
    for _ in range(30):
        prefills(one, rng=rng)
        assert new.profile is pool.profile
    for _ in range(70):
        prefills(one, rng=rng)
        assert new.profile.prefill_s(1000) == pytest.approx(pool.profile.prefill_s(1000), rel=0.1)
    assert 30 < len(told) < 40, "every lesson makes their views anew, and there may be many of them"
    late = WorkerSpeed(pool, lambda: None)
    assert late.profile.prefill_s(1000) == pytest.approx(TRUE.prefill_s(1000), rel=0.1)
    assert late.profile.prefills == 100


def test_a_newcomer_of_another_kind_shows_it_within_a_few_requests():
    rng = random.Random(4)
    pool, made = workers(3)
    well_known(made, rng)
    before = made[0].profile.prefill_s(1000)
    new = WorkerSpeed(pool, lambda: None)
    for _ in range(5):
        prefills(new, slower=10.0, rng=rng)
    assert new.profile.prefill_s(1000) / before == pytest.approx(10.0, rel=0.3)
    prefills(made[0], rng=rng)
    assert made[0].profile.prefill_s(1000) == pytest.approx(before, rel=0.2)


def test_whole_answers_teach_both():
    rng = random.Random(5)
    _, (one, other) = workers(2)
    for _ in range(150):
        for worker, slower in ((one, 1.0), (other, 2.0)):
            tokens = rng.choice([100, 1000])
            took = slower * (TRUE.prefill_s(tokens) + TRUE.decode_s(50, 4, 4000))
            worker.learn_whole_answer(tokens, 50, took, 4, 4000)
    for tokens in (100, 1000):
        whole = [
            worker.profile.prefill_s(tokens) + worker.profile.decode_s(50, 4, 4000) for worker in (one, other)
        ]
        assert whole[1] / whole[0] == pytest.approx(2.0, rel=0.1)


def test_one_observation_that_is_far_off_moves_little():
    rng = random.Random(6)
    _, made = workers(2)
    well_known(made, rng)
    before = [worker.profile.prefill_s(1000) for worker in made]
    made[0].learn_prefill(1000, 1000.0, pairs(1000))
    made[1].learn_prefill(1000, TRUE.prefill_s(1000), pairs(1000))
    after = [worker.profile.prefill_s(1000) for worker in made]
    assert all(now < 1.6 * then for now, then in zip(after, before, strict=True))


def test_a_worker_that_has_left_is_not_kept():
    fleet = Fleet(0.2, None)
    for name in ("a", "b"):
        fleet.update_facts(WorkerFacts(name, frozenset({"m"})))
    newcomers = fleet["a"]._speed._pool.newcomers
    assert len(newcomers) == 2
    fleet.remove("a")
    assert newcomers == {fleet["b"]._speed}


def test_what_a_worker_looks_like_changes_with_what_its_peers_show():
    """The view is remembered until something changes, and this does."""
    fleet = Fleet(0.2, None)
    for name in ("a", "b"):
        fleet.update_facts(WorkerFacts(name, frozenset({"m"})))
    before = fleet["b"].view()
    assert fleet["b"].prefill_window() == 0, "one prompt while no speed is known"
    for _ in range(20):
        prefills(fleet["a"]._speed)
    assert fleet["b"].view() is not before
    assert fleet["b"].view().profile.prefill_s(1000) > 2 * before.profile.prefill_s(1000)
    assert fleet["b"].prefill_window() > 0
    assert Worker(WorkerFacts("c", frozenset()), window_s=0.2, window_tokens=None).prefill_window() == 0, (
        "of another pool"
    )
