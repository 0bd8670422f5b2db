"""The default placement: least cost in seconds, spilling, and warming up a worker that is cold."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import chosen, first, named, ranking, request, worker

from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import Reason
from policies.placements.fairlead import Fairlead, Settings

SPEED = Profile(base_s=0.0, per_token_s=0.001, per_pair_s=0.0, step_base_s=0.01, per_sequence_s=0.001)
"""A second per thousand tokens."""


def policy(knowledge=None, **fields):
    return Fairlead(Settings(**{"warm_up": 0.0, "decode": 0.0, **fields}), knowledge or Knowledge())


def busy(name, *, requests=0, until=0.0, profile=SPEED):
    """A worker that computes a prompt until then."""
    return replace(worker(name, requests=requests, profile=profile), prefill_due=until)


# -- where


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 1200),
            st.integers(0, 20),
            st.floats(-2.0, 2.0),
            st.builds(Profile, *[st.floats(1e-9, 0.1)] * 6),
        ),
        min_size=1,
        max_size=5,
    ),
    decode=st.sampled_from([0.0, 0.03, 1.0]),
    sequences=st.integers(1, 3),
)
def test_it_is_the_worker_where_all_requests_together_lose_least_time(rows, decode, sequences):
    fleet = [
        replace(busy(f"w{n}", requests=batch, until=1.0 + due, profile=profile), decode_tokens=500 * batch)
        for n, (_, batch, due, profile) in enumerate(rows)
    ]
    matches = {f"w{number}": matched for number, (matched, *_) in enumerate(rows) if matched}

    def cost(matched, batch, due, profile):
        before, after = (
            profile.step_s(batch, 500 * batch),
            profile.step_s(batch + sequences, 500 * batch + 1000 * sequences),
        )
        prefill = profile.prefill_s(max(1, 1000 - matched), matched)
        answer = 100 * after + batch * 100 * (after - before)
        return max(0.0, 1.0 + due - 1.0) + (prefill * (1 + batch) + decode * answer)

    asked = request(tokens=1000, sequences=sequences)
    order = ranking(policy(decode=decode), fleet, matches, asked, 1.0)
    assert {entry.worker.id: entry.cost for entry in order} == {f"w{n}": cost(*row) for n, row in enumerate(rows)}
    assert [entry.cost for entry in order] == sorted(entry.cost for entry in order)


@pytest.mark.parametrize(
    ("matches", "reason"), [({}, Reason.MISS), ({"a": 500}, Reason.HIT), ({"a": 500, "b": 900}, Reason.SPILL)]
)
def test_it_says_why(matches, reason):
    assert chosen(policy(), [busy("a"), busy("b", until=5.0)], matches) == ("a", reason)


def test_a_prefix_that_is_too_hot_spills_when_the_prefill_ahead_costs_more_than_computing_it():
    one = request(tokens=1000)
    assert named(policy(), [busy("holder", until=0.8), busy("free")], {"holder": 900}, one) == "holder"
    assert named(policy(), [busy("holder", until=1.0), busy("free")], {"holder": 900}, one) == "free"


def test_a_slow_worker_costs_what_its_own_profile_says():
    slow = replace(SPEED, per_token_s=0.01)
    assert named(policy(), [busy("slow", profile=slow), busy("fast")], {"slow": 800}) == "fast"
    assert named(policy(), [busy("slow", profile=slow), busy("fast")], {"slow": 950}) == "slow"


# -- warming up


def test_a_cold_worker_gets_a_slice_of_the_hits_of_others_and_keeps_them_apart():
    knowledge = Knowledge()
    prompt = bytes(1000)
    knowledge.prefixes.insert("warm", request(prompt=prompt), 0.0)
    made = policy(knowledge, warm_up=0.1)
    fleet = [busy("warm"), busy("cold")]
    asked = [request(f"r{number}", prompt=prompt) for number in range(2000)]
    choices = [first(made, fleet, knowledge.prefixes.match(one), one) for one in asked]
    cold = [choice for choice in choices if choice.worker.id == "cold"]
    assert 0.07 < len(cold) / len(asked) < 0.13
    assert {choice.reason for choice in cold} == {Reason.WARM_UP}
    assert choices == [first(made, fleet, knowledge.prefixes.match(one), one) for one in asked]
    knowledge.prefixes.insert("cold", request(prompt=prompt[:200]), 0.0)  # a fifth of what the other one holds
    assert {named(made, fleet, {"warm": 1000, "cold": 200}, one) for one in asked} == {"warm"}
