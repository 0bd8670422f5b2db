"""Consistent hashing: equal heads together, minimal movement, and no worker above the bound."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import chosen, named, ranking, request, worker

from policies.model import Reason
from policies.placements.consistent_hash import ConsistentHash, Settings

NAMES = [f"w{number}" for number in range(8)]


def policy(**fields):
    return ConsistentHash(Settings(**fields))


def asked(head):
    return request(prompt=f"{head:04}".encode() * 100)


def homes(names, heads=400):
    fleet = [worker(name) for name in names]
    return {head: named(policy(), fleet, {}, asked(head)) for head in range(heads)}


def test_equal_heads_go_to_one_worker_whatever_follows_and_for_any_client():
    made, fleet = policy(prefix_tokens=8), [worker(name) for name in NAMES]
    for head in (b"a" * 8, b"b" * 8, b"c" * 8):
        asks = [request(f"r{n}", f"c{n}", prompt=head + bytes([n]) * 9, session=f"s{n}") for n in range(20)]
        assert len({named(made, fleet, {}, one) for one in asks}) == 1


def test_heads_are_spread_over_all_workers():
    counts = Counter(homes(NAMES).values())
    assert counts.keys() == set(NAMES)
    assert max(counts.values()) < 2 * min(counts.values())


def test_a_worker_that_leaves_moves_only_what_was_its_own_and_spreads_it():
    before, after = homes(NAMES), homes(NAMES[1:])
    moved = {head for head in before if before[head] != after[head]}
    assert moved == {head for head, name in before.items() if name == NAMES[0]}
    assert {after[head] for head in moved} == set(NAMES[1:])


def test_a_worker_that_arrives_takes_only_what_becomes_its_own():
    before, after = homes(NAMES[1:]), homes(NAMES)
    assert {after[head] for head in before if before[head] != after[head]} == {NAMES[0]}


def test_the_order_of_the_workers_says_nothing():
    assert homes(NAMES) == homes(NAMES[::-1])


@settings(max_examples=40, deadline=None)
@given(
    heads=st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=1, max_size=80),
    size=st.integers(1, 6),
    factor=st.sampled_from([1.0, 1.25, 2.0]),
)
def test_no_worker_gets_more_than_the_bound_however_hot_a_head_is(heads, size, factor):
    made, requests = policy(load_factor=factor), Counter()
    for number, head in enumerate(heads, 1):
        fleet = [worker(name, requests=requests[name]) for name in NAMES[:size]]
        requests[named(made, fleet, {}, asked(head))] += 1
        assert max(requests.values()) <= math.ceil(factor * number / size)


def test_what_passes_on_goes_to_the_next_of_its_own_order():
    fleet = [worker(name) for name in NAMES]
    first = named(policy(), fleet, {}, asked(1))
    second = named(policy(), [one for one in fleet if one.id != first], {}, asked(1))
    busy = [worker(name, requests=9 if name == first else 1) for name in NAMES]
    assert chosen(policy(), busy, {}, asked(1)) == (second, Reason.SPILL)
    assert ranking(policy(), busy, {}, asked(1))[-1].worker.id == first, "the full one comes last"


@pytest.mark.parametrize(
    ("fields", "spread"), [({}, False), ({"session": "s"}, False), ({"client": None, "session": None}, True)]
)
def test_without_a_key_the_session_or_the_client_decides(fields, spread):
    fleet = [worker(name) for name in NAMES]
    asks = [
        request(f"r{n}", f"c{n}" if spread else "anna", session=fields.get("session"), tokens=n + 1)
        for n in range(30)
    ]
    assert (len({named(policy(), fleet, {}, one) for one in asks}) > 1) == spread
