"""How fast is each worker, with fellows that are equal, that are not, and that are new?"""

import random

import pytest

from policies.fleet.fleet import Roster
from policies.fleet.profile import Profile, pairs
from policies.fleet.speed import Pace, Pool
from policies.fleet.worker import Load
from policies.model import WorkerFacts

TRUE = Profile(0.02, 100e-6, 2e-9, 0.03, 1e-4, 1e-7)
"""What the workers here are really like; all that is unknown starts from something else."""


def workers(count):
    pool = Pool()
    return pool, [Pace(pool, lambda: None) for _ in range(count)]


def prefills(pace, slower=1.0, noise=0.0, rng=None):
    """One observation of a worker that is so much slower than the others."""
    rng = rng or random.Random(0)
    tokens = rng.choice([100, 500, 2000, 4000])
    took = slower * TRUE.prefill_s(tokens) * (1 + rng.uniform(-noise, noise))
    pace.saw_prefill(tokens, took, pairs(tokens))


def well_known(made, rng):
    for _ in range(60):
        for pace in made:
            prefills(pace, rng=rng)


def decodes(pace, slower=1.0, rng=None):
    rng = rng or random.Random(0)
    batch = rng.choice([1, 8, 64])
    pace.saw_decode(100, slower * TRUE.decode_s(100, batch, 1000 * batch), batch, 1000 * batch)


def test_equal_workers_look_equal_whatever_each_has_happened_to_see():
    rng = random.Random(1)
    _, made = workers(4)
    for _ in range(400):
        prefills(rng.choice(made), noise=0.5, rng=rng)
    seen = [pace.profile.prefill_s(1000) for pace in made]
    assert max(seen) < 1.15 * min(seen)
    assert seen == pytest.approx([TRUE.prefill_s(1000)] * 4, rel=0.25)


def test_one_that_is_slower_is_found_out_and_its_fellows_are_not_blamed():
    rng = random.Random(2)
    _, made = workers(4)
    for _ in range(100):
        for number, pace in enumerate(made):
            prefills(pace, slower=3.0 if number == 0 else 1.0, rng=rng)
            decodes(pace, slower=2.0 if number == 0 else 1.0, rng=rng)
    slow, *others = [pace.profile for pace in made]
    for other in others:
        assert slow.prefill_s(2000) / other.prefill_s(2000) == pytest.approx(3.0, rel=0.15)
        assert slow.step_s(8, 8000) / other.step_s(8, 8000) == pytest.approx(2.0, rel=0.15)


def test_a_newcomer_is_as_fast_as_its_fellows_and_goes_on_learning_from_them():
    rng = random.Random(3)
    pool, (one,) = workers(1)
    told = []
    new = Pace(pool, lambda: told.append(1))
    for _ in range(30):
        prefills(one, rng=rng)
        assert new.profile is pool.profile
    for _ in range(70):
        prefills(one, rng=rng)
        assert new.profile.prefill_s(1000) == pytest.approx(pool.profile.prefill_s(1000), rel=0.1)
    assert 30 < len(told) < 40, "every lesson makes their views anew, and there may be many of them"
    late = Pace(pool, lambda: None)
    assert late.profile.prefill_s(1000) == pytest.approx(TRUE.prefill_s(1000), rel=0.1)
    assert late.profile.prefills == 100


def test_a_newcomer_of_another_kind_shows_it_within_a_few_requests():
    rng = random.Random(4)
    pool, made = workers(3)
    well_known(made, rng)
    before = made[0].profile.prefill_s(1000)
    new = Pace(pool, lambda: None)
    for _ in range(5):
        prefills(new, slower=10.0, rng=rng)
    assert new.profile.prefill_s(1000) / before == pytest.approx(10.0, rel=0.3)
    prefills(made[0], rng=rng)
    assert made[0].profile.prefill_s(1000) == pytest.approx(before, rel=0.2)


def test_whole_answers_teach_both():
    rng = random.Random(5)
    _, (one, other) = workers(2)
    for _ in range(150):
        for pace, slower in ((one, 1.0), (other, 2.0)):
            tokens = rng.choice([100, 1000])
            took = slower * (TRUE.prefill_s(tokens) + TRUE.decode_s(50, 4, 4000))
            pace.saw_whole(tokens, 50, took, 4, 4000)
    for tokens in (100, 1000):
        whole = [pace.profile.prefill_s(tokens) + pace.profile.decode_s(50, 4, 4000) for pace in (one, other)]
        assert whole[1] / whole[0] == pytest.approx(2.0, rel=0.1)


def test_one_observation_that_is_far_off_moves_little():
    rng = random.Random(6)
    _, made = workers(2)
    well_known(made, rng)
    before = [pace.profile.prefill_s(1000) for pace in made]
    made[0].saw_prefill(1000, 1000.0, pairs(1000))
    made[1].saw_prefill(1000, TRUE.prefill_s(1000), pairs(1000))
    after = [pace.profile.prefill_s(1000) for pace in made]
    assert all(now < 1.6 * then for now, then in zip(after, before, strict=True))


def test_who_has_left_is_not_kept():
    roster = Roster(0.2, None)
    for name in ("a", "b"):
        roster.tell(WorkerFacts(name, frozenset({"m"})))
    newcomers = roster["a"]._pace._pool.newcomers
    assert len(newcomers) == 2
    roster.leave("a")
    assert newcomers == {roster["b"]._pace}


def test_what_a_worker_looks_like_changes_with_what_its_fellows_show():
    """The view is remembered until something changes, and this does."""
    roster = Roster(0.2, None)
    for name in ("a", "b"):
        roster.tell(WorkerFacts(name, frozenset({"m"})))
    before = roster["b"].view()
    assert roster["b"].window() == 0, "one prompt while no speed is known"
    for _ in range(20):
        prefills(roster["a"]._pace)
    assert roster["b"].view() is not before
    assert roster["b"].view().profile.prefill_s(1000) > 2 * before.profile.prefill_s(1000)
    assert roster["b"].window() > 0
    assert Load(WorkerFacts("c", frozenset()), window_s=0.2, window_tokens=None).window() == 0, "of another pool"
