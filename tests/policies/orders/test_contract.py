"""One contract for every order of the catalog: it offers what waits, asking changes nothing, nothing is lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import full, request, worker

from policies import catalog
from policies.events import EVENTS, Left, Output, Placed, Queued
from policies.model import Outcome, Placement, Usage
from policies.protocol import OrderPolicy

ORDERS = catalog.queue_policies()
PARTIES = [(), ("acme", "ann"), ("acme", "ben"), ("bolt", "lab", "cleo")]
PUSHED = st.lists(
    st.tuples(
        st.sampled_from(PARTIES),
        st.integers(1, 300),
        st.sampled_from([-1, 0, 5]),
        st.sampled_from([None, None, "a", "b"]),
    ),
    min_size=1,
    max_size=25,
)
A_AND_B = [worker("a"), worker("b")]


def pushed(order, wanted, *, now=0.0):
    asked = []
    for number, (party, tokens, priority, pinned) in enumerate(wanted):
        fields = {"party": party, "priority": priority, "pinned": pinned}
        one = request(f"r{number:02}", tokens=tokens, output=1 + tokens // 3, arrived=now, **fields)
        order.push(one)
        order.on(Queued(one, now))
        asked.append(one)
    return asked


def memory(value, seen=None):
    """All that an order remembers, as nested lists; objects that were seen before by their number."""
    seen = {} if seen is None else seen
    if isinstance(value, str | int | float | bytes | frozenset | type(None) | type):
        return repr(value)
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return [(memory(key, seen), memory(inner, seen)) for key, inner in value.items()]
    if isinstance(value, list | tuple | set):
        return [memory(inner, seen) for inner in value]
    names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())} - {"_memo"}
    fields = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(
        value, "__dict__", {}
    )
    return [(name, memory(inner, seen)) for name, inner in sorted(fields.items()) if not callable(inner)]


def test_what_is_compared_as_memory_shows_a_change_deep_inside():
    order = ORDERS["dlpm"].build()
    pushed(order, [(("acme", "ann"), 10, 0, None)])
    before = memory(order)
    assert memory(order) == before
    next(iter(order.accounts)).counter += 1
    assert memory(order) != before


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_says_what_it_hears(name):
    order = ORDERS[name].build()
    assert isinstance(order, OrderPolicy)
    assert order.hears <= EVENTS


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=25, deadline=None)
@given(wanted=PUSHED, free=st.sampled_from(["", "a", "b", "ab"]), now=st.sampled_from([0.0, 0.5, 5.0, 1000.0]))
def test_an_order_offers_what_waits_and_changes_nothing(name, wanted, free, now):
    workers = [worker(one) if one in free else worker(one, room=full()) for one in "ab"]
    orders = [ORDERS[name].build() for _ in range(2)]
    for order in orders:
        asked = pushed(order, wanted)
    before = memory(orders[0])
    offers = list(orders[0].candidates(workers, now))
    able = {one.id for one in asked if any(w.room.open and w.facts.serves(one) for w in workers)}
    assert offers or not able, "a request waits that a worker with room serves, and none is offered"
    assert len({offer.request.id for offer in offers}) == len(offers)
    assert all(any(offer.request is one for one in orders[0].waiting()) for offer in offers)
    assert list(orders[0].candidates(workers, now)) == offers
    assert [(o.request.id, *o[1:]) for o in orders[1].candidates(workers, now)] == [
        (o.request.id, *o[1:]) for o in offers
    ]
    assert memory(orders[0]) == before
    assert len(orders[0]) == len(asked)
    assert {one.id for one in orders[0].waiting()} == {one.id for one in asked}


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=20, deadline=None)
@given(wanted=PUSHED, step=st.sampled_from([0.0, 0.3, 60.0]))
def test_an_order_served_from_its_head_offers_everything_in_the_end(name, wanted, step):
    order, now = ORDERS[name].build(), 0.0
    waiting = {one.id for one in pushed(order, wanted)}
    while waiting:
        assert len(order) == len(waiting)
        first = next(iter(order.candidates(A_AND_B, now))).request
        order.remove(first)
        order.on(Placed(first, Placement("a"), 0, first.input_tokens, now))
        order.on(Output(first, Placement("a"), 9, now))
        order.on(Left(first, Placement("a"), Outcome.COMPLETED, Usage(first.input_tokens, 9), now))
        waiting.remove(first.id)
        now += step
    assert list(order.candidates(A_AND_B, now)) == []


@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=20, deadline=None)
@given(wanted=PUSHED, chance=st.randoms(use_true_random=False))
def test_what_does_not_fit_hides_no_other(name, wanted, chance):
    """The matcher passes over what has no room: whatever starts, the rest is offered in the end."""
    order, now = ORDERS[name].build(), 0.0
    waiting = {one.id: one for one in pushed(order, wanted)}
    while waiting:
        offers = [offer.request for offer in order.candidates(A_AND_B, now)]
        started = chance.choice(offers)
        order.remove(started)
        order.on(Placed(started, Placement("b"), 0, started.input_tokens, now, borrowed=chance.random() < 0.3))
        del waiting[started.id]
        now += 1.0
    assert len(order) == 0


@pytest.mark.parametrize("name", ORDERS)
def test_what_has_waited_for_an_hour_is_offered_before_newcomers(name):
    order = ORDERS[name].build()
    old = request("old", "ben", tokens=5000, priority=9)
    order.push(old)
    order.on(Queued(old, 0.0))
    for number in range(40):
        young = request(f"r{number}", tokens=1, arrived=3600.0)
        order.push(young)
        order.on(Queued(young, 3600.0))
    assert next(iter(order.candidates([worker("a")], 3600.0))).request is old


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_takes_a_request_back(name):
    order, one = ORDERS[name].build(), request("one")
    for again in (False, True):
        order.push(one, again=again)
        order.on(Queued(one, 0.0, again=again))
        assert [offer.request for offer in order.candidates([worker("a")], 0.0)] == [one]
        order.remove(one)
        order.on(Placed(one, Placement("a"), 0, 10, 0.0))
        order.on(Left(one, Placement("a"), None, None, 0.0))
    assert len(order) == 0


@pytest.mark.parametrize("name", ORDERS)
def test_only_the_removal_of_what_does_not_wait_raises_and_it_changes_nothing(name):
    order, one, other = ORDERS[name].build(), request("one"), request("other", priority=7)
    order.push(one)
    before = memory(order)
    with pytest.raises(KeyError):
        order.remove(other)
    assert memory(order) == before
    for stranger in (Output(other, Placement("a"), 5, 0.0), Left(other, Placement("a"), None, None, 0.0)):
        order.on(stranger)
    assert memory(order) == before


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_never_offers_more_than_a_few_hundred(name):
    order = ORDERS[name].build()
    for number in range(3000):
        order.push(request(f"r{number}", f"client {number}", output=1 + number % 50, priority=number % 40))
    assert 0 < len(list(order.candidates(A_AND_B, 0.0))) <= 256
