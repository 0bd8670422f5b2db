"""One contract for every placement of the catalog: it ranks each worker once, by numbers, and changes nothing."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import OPEN, full, ranking

from policies import catalog
from policies.events import EVENTS, Bound, FirstToken, Left, Output, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.speed import Profile
from policies.fleet.worker import Attempt, Worker
from policies.model import Outcome, Placement, PrefixKey, Reason, RequestView, Usage, WorkerFacts
from policies.protocol import PlacementPolicy

PLACEMENTS = catalog.placement_policies()
SERVED = frozenset({"base"})


def request(number, *, tokens=100, client="anna", sequences=1, arrived=0.0, **fields):
    return RequestView(
        id=f"r{number}",
        client=client,
        served_name="base",
        key=PrefixKey(b"x" * tokens, 1, 1.0),
        input_tokens=tokens,
        expected_output_tokens=40,
        arrived=arrived,
        sequences=sequences,
        **fields,
    )


def worker(name, *, prompts=(), slots=None, kv_tokens=None, speed=1.0):
    """A worker with prompts of these lengths in flight."""
    facts = WorkerFacts(name, SERVED, slots=slots, kv_tokens=kv_tokens)
    ledger = Worker(facts, window_s=0.2, window_tokens=300)
    ledger.profile = Profile(step_base_s=0.01 * speed)
    for number, tokens in enumerate(prompts):
        one = request(number, tokens=tokens)
        attempt = Attempt(one, Placement(name), tokens, 0.0, prefiller=ledger, decoder=ledger, matches={})
        ledger.start_prefill(attempt, 0.0)
        ledger.start_sequences(attempt)
    return ledger.view()


WORKERS = st.fixed_dictionaries(
    {
        "prompts": st.lists(st.integers(1, 200), max_size=4),
        "slots": st.sampled_from([None, 1, 4]),
        "kv_tokens": st.sampled_from([None, 100, 5000]),
        "speed": st.sampled_from([0.5, 1.0, 8.0]),
    }
)
FLEETS = st.lists(WORKERS, min_size=1, max_size=6)


def fleet(described):
    return [worker(f"w{number}", **fields) for number, fields in enumerate(described)]


def memory(policy):
    """All that a policy remembers, as text."""

    def text(value):
        if isinstance(value, random.Random):
            return repr(value.getstate())
        if hasattr(value, "__dict__") and not isinstance(value, type):
            return {name: text(inner) for name, inner in vars(value).items()}
        if isinstance(value, dict):
            return {repr(key): text(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [text(inner) for inner in value]
        return repr(value) if not callable(value) else ""

    return repr(text(policy))


def lives(workers, chance, count=12):
    """Events as a scheduler publishes them, for requests in any stage."""
    now = 0.0
    for view in workers:
        yield WorkerArrived(view.facts, now)
    for number in range(count):
        now += chance.random()
        one = request(number, client=chance.choice(["anna", "ben"]), tokens=chance.randint(1, 200), arrived=now)
        yield Queued(one, now)
        if chance.random() < 0.2:
            yield Left(one, None, Outcome.CANCELLED, None, now)
            continue
        placement = Placement(chance.choice(workers).id)
        yield Bound(one, placement, now)
        yield Placed(one, placement, 0, one.input_tokens, now)
        if chance.random() < 0.7:
            yield FirstToken(one, placement, now)
            yield Output(one, placement, 30, now)
            yield Left(one, placement, Outcome.COMPLETED, Usage(one.input_tokens, 30), now)
    if len(workers) > 1 and chance.random() < 0.5:
        yield WorkerGone(workers[0].id, now)


def experienced(name, workers, seed):
    policy = PLACEMENTS[name].build()
    for event in lives(workers, random.Random(seed)):
        if type(event) in policy.hears:
            policy.on(event)
    return policy


ASKED = st.builds(request, st.just("asked"), tokens=st.integers(1, 400), sequences=st.sampled_from([1, 1, 3]))
MATCHED = st.lists(st.integers(0, 99), max_size=6)
SEEDS = st.integers(0, 2**32)


def matches_of(matched, workers, asked):
    most = asked.input_tokens - 1
    held = {view.id: min(tokens, most) for view, tokens in zip(workers, matched, strict=False)}
    return {name: tokens for name, tokens in held.items() if tokens}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_placement_says_what_it_hears(name):
    policy = PLACEMENTS[name].build()
    assert isinstance(policy, PlacementPolicy)
    assert policy.hears <= EVENTS


@pytest.mark.parametrize("name", PLACEMENTS)
@settings(max_examples=30, deadline=None)
@given(described=FLEETS, matched=MATCHED, asked=ASKED, seed=SEEDS)
def test_a_placement_ranks_each_worker_once_by_numbers_and_changes_nothing(name, described, matched, asked, seed):
    workers = fleet(described)
    policies = [experienced(name, workers, seed) for _ in range(2)]
    matches = matches_of(matched, workers, asked)
    before = memory(policies[0])
    order = ranking(policies[0], workers, matches, asked, 20.0)
    assert sorted(id(entry.worker) for entry in order) == sorted(id(view) for view in workers)
    assert all(entry.cost == entry.cost for entry in order), "a cost is not a number"
    assert all(isinstance(entry.reason, Reason) for entry in order)
    assert ranking(policies[0], workers, matches, asked, 20.0) == order, "asked twice, answered differently"
    assert ranking(policies[1], workers, matches, asked, 20.0) == order, "two of a kind disagree"
    assert memory(policies[0]) == before, "a question has changed something"


@pytest.mark.parametrize("name", PLACEMENTS)
@settings(max_examples=20, deadline=None)
@given(
    described=st.lists(st.tuples(WORKERS, st.booleans()), min_size=1, max_size=6),
    matched=MATCHED,
    asked=ASKED,
    seed=SEEDS,
)
def test_room_does_not_change_a_ranking(name, described, matched, asked, seed):
    workers = fleet(fields for fields, _ in described)
    rooms = [OPEN if is_open else full() for _, is_open in described]
    others = [replace(view, room=room) for view, room in zip(workers, rooms, strict=True)]
    policy, matches = experienced(name, workers, seed), matches_of(matched, workers, asked)
    with_room, with_other = (ranking(policy, views, matches, asked, 20.0) for views in (workers, others))
    assert [(entry.worker.id, *entry[1:]) for entry in with_other] == [
        (entry.worker.id, *entry[1:]) for entry in with_room
    ]


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_fleet_of_any_size_is_ranked_by_a_new_policy(name, size):
    workers = [worker(f"w{number}") for number in range(size)]
    assert len(ranking(PLACEMENTS[name].build(), workers, {}, request("asked"))) == size


@pytest.mark.parametrize("name", [name for name, entry in PLACEMENTS.items() if entry.build().costs_are_seconds])
def test_costs_in_seconds_grow_with_the_prefill_that_is_missing(name):
    """The matcher compares them with time."""
    view = worker("a")
    least, most = (
        ranking(PLACEMENTS[name].build(), [view], {"a": matched}, request("asked", tokens=4000))[0].cost
        for matched in (3999, 0)
    )
    prefill_s = view.profile.prefill_s(4000) - view.profile.prefill_s(1, 3999)
    assert most - least == pytest.approx(prefill_s, rel=0.1)
