"""Cache aware: the longest match, unless the load is uneven by both measures."""

from views import chosen, ranking, worker

from policies.model import Reason
from policies.placements.cache_aware import CacheAware, Settings


def aware(*workers, matches=None, **settings):
    return chosen(CacheAware(Settings(**settings)), workers, matches)


def test_it_prefers_the_longest_match():
    fleet = [worker("a"), worker("b", requests=20), worker("c", requests=30)]
    assert aware(*fleet, matches={"b": 400, "c": 900}) == ("c", Reason.HIT)


def test_those_that_follow_hold_less_and_then_have_more_to_do():
    fleet = [worker("a", requests=2), worker("b", requests=20), worker("c", requests=30), worker("d")]
    order = ranking(CacheAware(Settings()), fleet, {"b": 400, "c": 900})
    assert [entry.worker.id for entry in order] == ["c", "b", "d", "a"]


def test_of_equal_matches_the_less_loaded_wins():
    fleet = [worker("a"), worker("b", requests=20), worker("c", requests=10)]
    assert aware(*fleet, matches={"b": 900, "c": 900}) == ("c", Reason.HIT)


def test_a_match_that_covers_too_little_is_ignored():
    fleet = [worker("a", requests=1), worker("b", requests=5)]
    assert aware(*fleet, matches={"b": 300}) == ("a", Reason.MISS)
    assert aware(*fleet, matches={"b": 301}) == ("b", Reason.HIT)


def test_it_spills_when_the_load_is_uneven_by_both_measures():
    assert aware(worker("a"), worker("b", requests=65), matches={"b": 900}) == ("a", Reason.SPILL)
    assert aware(worker("a"), worker("b", requests=64), matches={"b": 900}) == ("b", Reason.HIT)
    even = [worker("a", requests=200), worker("b", requests=290)]
    assert aware(*even, matches={"b": 900}) == ("b", Reason.HIT)


def test_without_a_match_the_least_loaded_worker_takes_it():
    assert aware(worker("a", requests=2), worker("b", requests=1)) == ("b", Reason.MISS)
    assert aware(worker("a"), worker("b", requests=65)) == ("a", Reason.MISS)
