"""TTFT feasibility: the affine worker as long as it is in time, then the fastest."""

import pytest
from views import chosen, first, named, ranking, request, worker

from policies.fleet.speed import Profile
from policies.model import Reason
from policies.placements.ttft_feasible import Settings, TtftFeasible, predicted_ttft

LINEAR = Profile(base_s=0.0, per_token_s=0.001, per_pair_s=0.0)
"""A second per thousand tokens."""
FAST = Profile(base_s=0.0, per_token_s=0.0001, per_pair_s=0.0)


def policy(**fields):
    return TtftFeasible(Settings(**{"target_s": 1.0, **fields}))


def busy(name, owed=0, profile=LINEAR):
    return worker(name, owed=owed, profile=profile)


@pytest.mark.parametrize(
    ("one", "view", "matched", "now", "seconds"),
    [
        (request(tokens=1000), busy("a"), 0, 0.0, 1.0),
        (request(tokens=1000), busy("a"), 900, 0.0, 0.1),
        (request(tokens=1000), busy("a", owed=500), 900, 0.0, 0.6),
        (request(tokens=1000, arrived=2.0), busy("a", owed=500), 900, 5.0, 3.6),
    ],
    ids=["all of it", "uncached", "behind others", "having waited"],
)
def test_the_prediction_is_the_wait_so_far_the_prefill_owed_and_its_own(one, view, matched, now, seconds):
    assert predicted_ttft(one, view, matched, now) == pytest.approx(seconds)


def test_the_affine_worker_keeps_a_request_that_will_be_in_time_although_another_is_faster():
    fleet = [busy("a", owed=299), busy("b", profile=FAST)]
    assert chosen(policy(), fleet, {"a": 300}) == ("a", Reason.HIT)
    assert [entry.worker.id for entry in ranking(policy(), fleet, {"a": 300})] == ["a", "b"]


def test_a_request_that_would_be_late_goes_to_the_fastest():
    fleet = [busy("a", owed=301), busy("b", owed=100), busy("c", profile=FAST)]
    best = first(policy(), fleet, {"a": 300})
    assert (best.worker.id, best.reason) == ("c", Reason.SPILL)
    assert best.cost == pytest.approx(0.1)


def test_a_request_that_is_late_everywhere_stays_where_nothing_is_faster():
    assert named(policy(), [busy("a", owed=4000), busy("b", owed=5000)], {"a": 300}) == "a"


def test_of_equal_matches_the_fastest_is_the_affine_one():
    assert named(policy(), [busy("a", owed=500), busy("b", owed=100)], {"a": 900, "b": 900}) == "b"


def test_without_a_match_the_fastest_takes_it():
    assert chosen(policy(), [busy("a", owed=100), busy("b")]) == ("b", Reason.MISS)


def test_a_request_that_has_waited_for_its_target_goes_to_the_fastest():
    fleet = [busy("a", owed=100), busy("b", profile=FAST)]
    assert named(policy(), fleet, {"a": 900}, request(arrived=5.0), now=5.1) == "a"
    assert named(policy(), fleet, {"a": 900}, request(arrived=4.2), now=5.1) == "b"
