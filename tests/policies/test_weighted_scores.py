"""Weighted scores: each mark by itself, then their sum."""

import pytest
from views import chosen, full, request, worker

from policies.placements.weighted_scores import Settings, WeightedScores


def policy(**fields):
    return WeightedScores(Settings(**fields))


def test_the_score_is_the_weighted_sum_of_the_marks():
    fleet = [worker("a", requests=2, kv=100, kv_tokens=1000), worker("b", requests=6), worker("c", requests=0)]
    choice = policy(prefix=3.0, queue=5.0, kv=7.0).choose(request(tokens=1000), {"a": 800}, fleet, 0.0)
    assert choice.placement.decode == "a"
    assert choice.score == pytest.approx(-(3 * 0.8 + 5 * (6 - 2) / 6 + 7 * 0.9))


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
    assert chosen(policy(**weights), fleet, {"a": 500}) == name


def test_lines_that_are_alike_all_have_headroom():
    choice = policy().choose(request(), {}, [worker("a", requests=9), worker("b", requests=9)], 0.0)
    assert choice.score == -(2.0 + 2.0)


def test_a_cache_of_unknown_size_is_taken_to_be_as_large_as_set():
    choice = policy(kv_tokens=1000).choose(request(), {}, [worker("a", kv=250)], 0.0)
    assert choice.score == -(2.0 + 2.0 * 0.75)


def test_a_cache_that_is_overcommitted_is_full_and_no_more():
    choice = policy().choose(request(), {}, [worker("a", kv=5000, kv_tokens=1000)], 0.0)
    assert choice.score == -2.0


def test_equal_scores_go_to_the_worker_with_less_in_hand():
    assert chosen(policy(), [worker("a", owed=500), worker("b", owed=100)]) == "b"


def test_a_better_score_without_room_does_not_count():
    assert chosen(policy(), [worker("a", room=full()), worker("b", requests=9)], {"a": 999}) == "b"
