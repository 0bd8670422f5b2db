"""TTFT feasibility: the affine worker as long as it is in time, then the fastest."""

import pytest
from views import chosen, full, request, worker

from policies.fleet.speed import Profile
from policies.model import Hold, Reason
from policies.placements.ttft_feasible import Settings, TtftFeasible, predicted_ttft

LINEAR = Profile(base_s=0.0, per_token_s=0.001, per_pair_s=0.0)
"""A second per thousand tokens."""


def policy(**fields):
    return TtftFeasible(Settings(**{"target_s": 1.0, **fields}))


def line(name, owed=0, room=None, profile=LINEAR):
    more = {} if room is None else {"room": room}
    return worker(name, owed=owed, profile=profile, **more)


@pytest.mark.parametrize(
    ("one", "view", "matched", "now", "seconds"),
    [
        (request(tokens=1000), line("a"), 0, 0.0, 1.0),
        (request(tokens=1000), line("a"), 900, 0.0, 0.1),
        (request(tokens=1000), line("a", owed=500), 900, 0.0, 0.6),
        (request(tokens=1000, arrived=2.0), line("a", owed=500), 900, 5.0, 3.6),
        (request(tokens=1000), line("a", owed=500, room=full(4.0)), 900, 1.0, 1.0 + 3.0 + 0.1),
        (request(tokens=1000), line("a", owed=500, room=full(1.2)), 900, 1.0, 1.0 + 0.5 + 0.1),
    ],
    ids=["all of it", "uncached", "behind others", "having waited", "until there is room", "owed after that"],
)
def test_the_prediction_is_the_wait_so_far_the_line_and_its_own_prefill(one, view, matched, now, seconds):
    assert predicted_ttft(one, view, matched, now) == pytest.approx(seconds)


def test_the_affine_worker_keeps_a_request_that_will_be_in_time_although_another_is_faster():
    choice = policy().choose(request(tokens=1000), {"a": 300}, [line("a", owed=299), line("b", profile=FAST)], 0.0)
    assert (choice.placement.decode, choice.reason) == ("a", Reason.HIT)


FAST = Profile(base_s=0.0, per_token_s=0.0001, per_pair_s=0.0)


def test_a_request_that_would_be_late_goes_to_the_fastest():
    fleet = [line("a", owed=301), line("b", owed=100), line("c", profile=FAST)]
    choice = policy().choose(request(tokens=1000), {"a": 300}, fleet, 0.0)
    assert (choice.placement.decode, choice.reason) == ("c", Reason.SPILL)
    assert choice.score == pytest.approx(0.1)


def test_a_request_that_is_late_everywhere_stays_if_nobody_is_faster():
    assert chosen(policy(), [line("a", owed=4000), line("b", owed=5000)], {"a": 300}) == "a"


def test_of_equal_matches_the_fastest_is_the_affine_one():
    assert chosen(policy(), [line("a", owed=500), line("b", owed=100)], {"a": 900, "b": 900}) == "b"


def test_without_a_match_the_fastest_takes_it():
    choice = policy().choose(request(), {}, [line("a", owed=100), line("b")], 0.0)
    assert (choice.placement.decode, choice.reason) == ("b", Reason.MISS)


def test_a_full_affine_worker_is_waited_for_while_that_is_in_time():
    soon, late = [line("a", room=full(0.8)), line("b")], [line("a", room=full(0.95)), line("b")]
    one = request(tokens=1000)
    assert policy().choose(one, {"a": 900}, soon, 0.0) == Hold("a", 0.8)
    assert chosen(policy(), late, {"a": 900}, one) == "b"
    assert chosen(policy(hold=False), soon, {"a": 900}, one) == "b"
    assert chosen(policy(), [soon[0]], {"a": 900}, one) is None


def test_who_has_waited_for_its_target_waits_no_longer():
    fleet = [line("a", room=full(5.5)), line("b")]
    assert chosen(policy(), fleet, {"a": 999}, request(arrived=5.0), now=5.1) == Hold("a", 5.5)
    assert chosen(policy(), fleet, {"a": 999}, request(arrived=4.4), now=5.1) == "b"
