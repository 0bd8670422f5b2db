"""Workloads played faster, cut short, dealt to other clients."""

from collections import Counter

import pytest

from router.lab.workload import Request, Workload, WorkloadError
from router.lab.workloads.generators import generate
from router.lab.workloads.transforms import composed, faster, first


def clients_of(shares, weights=()):
    """A client trace in which each client has a number of requests."""
    rows = [Request(0.0, name, b"", 1, 1) for name, count in shares.items() for _ in range(count)]
    return Workload("crowd", 16, rows, dict.fromkeys(shares, 1.0) | dict(weights))


def test_twice_as_fast_halves_moments_and_pauses_and_nothing_else():
    slow = generate("chat", 1, requests=200)
    fast = faster(slow, 2)
    assert len(fast.requests) == 200
    for one, other in zip(slow.requests, fast.requests, strict=True):
        assert other.at == one.at / 2
        assert other.after == (None if one.after is None else (one.after[0], one.after[1] / 2))
        assert (other.key, other.reply_key, other.input_tokens, other.output_tokens, other.client) == (
            *(one.key, one.reply_key, one.input_tokens, one.output_tokens, one.client),
        )
        assert (other.session, other.priority, other.weight) == (one.session, one.priority, one.weight)


def test_the_first_requests_are_the_first_requests():
    workload = generate("tot", 1, requests=100)
    assert list(first(workload, 7).requests) == workload.requests[:7]
    assert list(first(workload, 1000).requests) == list(workload.requests)


def test_a_view_is_a_sequence():
    view = first(generate("tot", 1, requests=10), 4).requests
    assert view[-1] == view[3] == view[1:][2]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            view[outside]


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_no_speed_is_refused(rate):
    with pytest.raises(WorkloadError, match="the rate factor should be more than 0"):
        faster(generate("poisson", requests=1), rate)


def test_a_limit_below_one_is_refused():
    with pytest.raises(WorkloadError, match="at least 1, not 0"):
        first(generate("poisson", requests=1), 0)


def test_a_composition_has_the_requests_of_one_and_the_skew_of_the_other():
    prefixes = generate("poisson", 1, requests=6000, prefixes=1, prefix_tokens=16)
    crowd = clients_of({"big": 70, "small": 20, "tiny": 10}, {"tiny": 3.0})
    workload = composed(prefixes, crowd, seed=4)
    assert workload.name == "composed(poisson dealt to the clients of crowd)"
    assert workload.weights == crowd.weights
    counts = Counter(request.client for request in workload.requests)
    assert counts["big"] / 6000 == pytest.approx(0.7, abs=0.03)
    assert counts["tiny"] / 6000 == pytest.approx(0.1, abs=0.03)
    for one, other in zip(prefixes.requests, workload.requests, strict=True):
        assert (one.at, one.key, one.output_tokens) == (other.at, other.key, other.output_tokens)
        assert other.weight == (3.0 if other.client == "tiny" else 1.0)


def test_a_conversation_stays_with_its_client_by_its_session_or_by_its_prefix():
    chats = generate("chat", 1, requests=2000)
    crowd = clients_of(dict.fromkeys("abcd", 10))
    bare = Workload("bare", 16, [_without_session(row) for row in chats.requests], chats.weights)
    for prefixes in (chats, bare):
        owner = {}
        for chat, dealt in zip(chats.requests, composed(prefixes, crowd).requests, strict=True):
            if len(chat.key) > 8 or prefixes is chats:  # a prompt of one block is not recognised again
                assert owner.setdefault(chat.session, dealt.client) == dealt.client
        assert set(owner.values()) == set("abcd")


def test_a_composition_is_the_same_for_the_same_seed():
    chats, crowd = generate("chat", 1, requests=300), clients_of(dict.fromkeys("abcd", 10))
    deals = [[row.client for row in composed(chats, crowd, seed).requests] for seed in (1, 1, 2)]
    assert deals[0] == deals[1] != deals[2]


def _without_session(row):
    return Request(row.at, row.client, row.key, row.input_tokens, row.output_tokens, row.reply_key)
