"""The default placement: least cost in seconds, holding for a holder, spilling, and warming up who is cold."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import OPEN, chosen, full, request, worker

from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import Hold, Reason
from policies.placements.fairlead import Fairlead, Settings

SPEED = Profile(base_s=0.0, per_token_s=0.001, per_pair_s=0.0, step_base_s=0.01, per_sequence_s=0.001)
"""A second per thousand tokens."""


def policy(knowledge=None, **fields):
    return Fairlead(Settings(**{"warm_up": 0.0, "decode": 0.0, "harm": 0.0, **fields}), knowledge or Knowledge())


def line(name, *, requests=0, room=None, profile=SPEED):
    return replace(worker(name, requests=requests, profile=profile), room=room or OPEN)


def until(at):
    """Room for short prompts only until then: another prompt is computed."""
    return replace(OPEN, prefill_idle=False, expected_at=at)


# -- where


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 900),
            st.integers(0, 20),
            st.sampled_from([0.0, 0.3, 2.0]),
            st.sampled_from([0.0005, 0.001]),
        ),
        min_size=1,
        max_size=5,
    ),
    harm=st.sampled_from([0.0, 0.1, 1.0]),
    decode=st.sampled_from([0.0, 0.03, 1.0]),
)
def test_it_is_the_worker_where_everybody_together_loses_least_time(rows, harm, decode):
    profiles = [replace(SPEED, per_token_s=per_token) for *_, per_token in rows]
    fleet = [
        line(f"w{number}", requests=batch, room=until(1.0 + due), profile=profile)
        for number, ((_, batch, due, _), profile) in enumerate(zip(rows, profiles, strict=True))
    ]
    matches = {f"w{number}": matched for number, (matched, *_) in enumerate(rows) if matched}

    def cost(number):
        (matched, batch, due, _), profile = rows[number], profiles[number]
        before, after = profile.step_s(batch, 0), profile.step_s(batch + 1, 1000)
        prefill = profile.prefill_s(1000 - matched, matched)
        answer = 100 * after + harm * batch * 100 * (after - before)
        return due + prefill * (1 + harm * batch) + decode * answer

    choice = policy(harm=harm, decode=decode, hold=False).choose(request(tokens=1000), matches, fleet, 1.0)
    costs = [cost(number) for number in range(len(rows))]
    assert costs[int(choice.placement.decode[1:])] == pytest.approx(min(costs))
    assert choice.score == pytest.approx(min(costs))


@pytest.mark.parametrize(
    ("matches", "reason"), [({}, Reason.MISS), ({"a": 500}, Reason.HIT), ({"a": 500, "b": 900}, Reason.SPILL)]
)
def test_it_says_why(matches, reason):
    fleet = [line("a"), line("b", room=until(5.0))]
    assert policy().choose(request(), matches, fleet, 0.0).reason is reason


def test_a_prefix_that_is_too_hot_spills_when_its_holders_line_costs_more_than_computing_it():
    one = request(tokens=1000)
    assert chosen(policy(), [line("holder", room=until(0.8)), line("free")], {"holder": 900}, one) == "holder"
    assert chosen(policy(), [line("holder", room=until(1.0)), line("free")], {"holder": 900}, one) == "free"


def test_nobody_with_room_is_nobody():
    assert policy().choose(request(), {}, [line("a", room=full()), line("b", room=full())], 0.0) is None
    assert policy().choose(request(), {"a": 900}, [line("a", room=full())], 0.0) is None


# -- waiting


def test_it_waits_for_a_holder_where_that_is_cheaper_and_saves_half_of_the_wait():
    def asked(at, held=900, **fields):
        fleet = [line("holder", room=full(at)), line("free")]
        return chosen(policy(**fields), fleet, {"holder": held}, request(tokens=1000))

    assert asked(0.5) == Hold("holder", 0.5)
    assert asked(0.89) == Hold("holder", 0.89)
    assert asked(0.91) == "free"  # 0.91 s and 0.1 s of prefill, beside a whole second of it now
    assert asked(0.5, held=0) == "free"
    assert asked(0.5, hold=False) == "free"
    assert asked(0.5, hold_gain=2.0) == "free"


def test_a_little_saving_is_not_worth_an_idle_worker():
    """The other one is slow: waiting is cheaper by far, but saves next to no prefill."""
    busy = line("free", requests=50, profile=replace(SPEED, per_token_s=0.002))
    fleet = [line("holder", room=full(0.5)), busy]
    one = request(tokens=1000)
    assert chosen(policy(harm=0.1), fleet, {"holder": 900}, one) == Hold("holder", 0.5)
    assert chosen(policy(harm=0.1), fleet, {"holder": 900, "free": 850}, one) == "free"


def test_what_is_overdue_is_taken_to_last_as_long_again():
    def asked(now):
        fleet = [line("holder", room=full(1.0)), line("free")]
        return chosen(policy(), fleet, {"holder": 900}, request(tokens=1000), now)

    assert asked(1.0) == Hold("holder", 1.0 + SPEED.step_s(0))
    assert asked(1.4) == Hold("holder", pytest.approx(1.8))
    assert asked(2.0) == "free"


# -- warming up


def test_a_cold_worker_gets_a_slice_of_the_hits_of_others_and_keeps_them_apart():
    knowledge = Knowledge()
    prompt = bytes(1000)
    knowledge.prefixes.insert("warm", request(prompt=prompt), 0.0)
    made = policy(knowledge, warm_up=0.1)
    fleet = [line("warm"), line("cold")]
    asked = [request(f"r{number}", prompt=prompt) for number in range(2000)]
    choices = [made.choose(one, knowledge.prefixes.match(one), fleet, 0.0) for one in asked]
    cold = [choice for choice in choices if choice.placement.decode == "cold"]
    assert 0.07 < len(cold) / len(asked) < 0.13
    assert {choice.reason for choice in cold} == {Reason.WARM_UP}
    assert choices == [made.choose(one, knowledge.prefixes.match(one), fleet, 0.0) for one in asked]
    knowledge.prefixes.insert("cold", request(prompt=prompt[:200]), 0.0)  # a fifth of what the other one holds
    assert all(
        made.choose(one, {"warm": 1000, "cold": 200}, fleet, 0.0).placement.decode == "warm" for one in asked
    )
