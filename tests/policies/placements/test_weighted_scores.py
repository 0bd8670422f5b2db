"""Weighted scores: each mark by itself, then their sum."""

import pytest
from views import first, named, request, worker

from policies.placements.weighted_scores import Settings, WeightedScores


def policy(**fields):
    return WeightedScores(Settings(**fields))


def test_the_score_is_the_weighted_sum_of_the_marks():
    fleet = [worker("a", requests=2, kv=100, kv_tokens=1000), worker("b", requests=6), worker("c", requests=0)]
    best = first(policy(prefix=3.0, queue=5.0, kv=7.0), fleet, {"a": 800}, request(tokens=1000))
    assert best.worker.id == "a"
    assert best.cost == pytest.approx(-(3 * 0.8 + 5 * (6 - 2) / 6 + 7 * 0.9))


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ({"queue": 0.0, "kv": 0.0}, "a"),
        ({"prefix": 0.0, "kv": 0.0}, "b"),
        ({"prefix": 0.0, "queue": 0.0}, "c"),
    ],
)
def test_each_mark_decides_where_the_others_weigh_nothing(weights, name):
    fleet = [
        worker("a", requests=5, kv=900, kv_tokens=1000),
        worker("b", requests=1, kv=900, kv_tokens=1000),
        worker("c", requests=5, kv=100, kv_tokens=1000),
    ]
    assert named(policy(**weights), fleet, {"a": 500}) == name


def test_queues_that_are_alike_all_have_headroom():
    assert first(policy(), [worker("a", requests=9), worker("b", requests=9)]).cost == -(2.0 + 2.0)


def test_a_cache_of_unknown_size_is_taken_to_be_as_large_as_set():
    assert first(policy(kv_tokens=1000), [worker("a", kv=250)]).cost == -(2.0 + 2.0 * 0.75)


def test_a_cache_that_is_overcommitted_is_full_and_no_more():
    assert first(policy(), [worker("a", kv=5000, kv_tokens=1000)]).cost == -2.0


def test_equal_scores_go_to_the_worker_with_less_in_hand():
    assert named(policy(), [worker("a", owed=500), worker("b", owed=100)]) == "b"
