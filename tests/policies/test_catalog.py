"""One contract for every policy of the catalog: a choice changes nothing, fits, and is the same each time."""

import dataclasses
import inspect
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import catalog
from policies.events import FirstToken, Left, Output, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.speed import Profile
from policies.fleet.worker import Attempt, Worker
from policies.model import Hold, Outcome, Place, Placement, PrefixKey, RequestView, Usage, WorkerFacts

PLACEMENTS = catalog.placement_policies()
QUEUES = catalog.queue_policies()
LINES = frozenset({"base"})
ENTRIES = [*PLACEMENTS.values(), *QUEUES.values()]


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
    facts = WorkerFacts(name, LINES, slots=slots, kv_tokens=kv_tokens)
    load = Worker(facts, window_s=0.2, window_tokens=300)
    load.profile = Profile(step_base_s=0.01 * speed)
    for number, tokens in enumerate(prompts):
        asked = request(number, tokens=tokens)
        attempt = Attempt(asked, Placement(name), tokens, 0.0, prefiller=load, decoder=load, matches={})
        load.start_prefill(attempt, 0.0)
        load.start_sequences(attempt)
    return load.view()


WORKERS = st.builds(
    lambda prompts, slots, kv, speed: {"prompts": prompts, "slots": slots, "kv_tokens": kv, "speed": speed},
    st.lists(st.integers(1, 200), max_size=4),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([None, 100, 5000]),
    st.sampled_from([0.5, 1.0, 8.0]),
)
FLEETS = st.lists(WORKERS, max_size=6)


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
    """Events as a scheduler would tell them, for requests in any stage."""
    now = 0.0
    for view in workers:
        yield WorkerArrived(view.facts, now)
    for number in range(count):
        now += chance.random()
        asked = request(number, client=chance.choice(["anna", "ben"]), tokens=chance.randint(1, 200), arrived=now)
        yield Queued(asked, now)
        if not workers or chance.random() < 0.2:
            yield Left(asked, None, Outcome.CANCELLED, None, now)
            continue
        placement = Placement(chance.choice(workers).id)
        yield Placed(asked, placement, 0, asked.input_tokens, now)
        if chance.random() < 0.7:
            yield FirstToken(asked, placement, now)
            yield Output(asked, placement, 30, now)
            yield Left(asked, placement, Outcome.COMPLETED, Usage(asked.input_tokens, 30), now)
    if len(workers) > 1 and chance.random() < 0.5:
        yield WorkerGone(workers[0].id, now)


def test_the_defaults_are_in_the_catalog():
    assert catalog.DEFAULT_PLACEMENT in PLACEMENTS
    assert catalog.DEFAULT_QUEUE in QUEUES


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_policy_opens_with_the_question_it_answers(entry):
    first_line = inspect.getdoc(inspect.getmodule(entry.settings)).splitlines()[0]
    assert "?" in first_line
    assert entry.question.endswith("?")
    assert len(entry.question) > 5
    assert entry.question in " ".join(inspect.getdoc(inspect.getmodule(entry.settings)).split())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_settings_are_a_frozen_dataclass_with_defaults(entry):
    made = entry.settings()
    entry.build(made)
    assert dataclasses.is_dataclass(made)
    assert entry.settings.__dataclass_params__.frozen
    assert made == entry.settings()
    for field in dataclasses.fields(made):
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@pytest.mark.parametrize("entries", [PLACEMENTS, QUEUES], ids=["placements", "queues"])
def test_every_policy_is_listed_under_its_own_name(entries):
    assert [entry.name for entry in entries.values()] == list(entries)


@pytest.mark.parametrize("name", PLACEMENTS)
@settings(max_examples=30, deadline=None)
@given(
    described=FLEETS,
    matched=st.lists(st.integers(0, 99), max_size=6),
    asked=st.builds(request, st.just("asked"), tokens=st.integers(1, 400), sequences=st.sampled_from([1, 1, 3])),
    seed=st.integers(0, 2**32),
)
def test_a_placement_chooses_who_admits_and_changes_nothing(name, described, matched, asked, seed):
    workers, most = fleet(described), asked.input_tokens - 1
    policies = [PLACEMENTS[name].build() for _ in range(2)]
    for policy in policies:
        for event in lives(workers, random.Random(seed)):
            policy.on(event)
    matches = {view.id: min(m, most) for view, m in zip(workers, matched, strict=False) if min(m, most)}
    before = memory(policies[0])
    choice = policies[0].choose(asked, matches, workers, 20.0)
    assert policies[0].choose(asked, matches, workers, 20.0) == choice, "asked twice, answered differently"
    assert policies[1].choose(asked, matches, workers, 20.0) == choice, "two of a kind disagree"
    assert memory(policies[0]) == before, "a question has changed something"
    able = {view.id for view in workers if view.admits(asked, matches.get(view.id, 0))}
    if isinstance(choice, Place):
        assert choice.placement.decode in able
        assert choice.matched_tokens == matches.get(choice.placement.decode, 0)
    elif isinstance(choice, Hold):
        assert choice.worker in {view.id for view in workers}
        assert choice.until > 20.0
    else:
        assert not able, "somebody has room, yet nobody was chosen"


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_an_idle_fleet_of_any_size_takes_the_request(name, size):
    workers = [worker(f"w{number}") for number in range(size)]
    choice = PLACEMENTS[name].build().choose(request("asked"), {}, workers, 0.0)
    assert choice.placement.decode in {view.id for view in workers}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_without_workers_nobody_is_chosen(name):
    assert PLACEMENTS[name].build().choose(request("asked"), {}, [], 0.0) is None


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_nobody_is_chosen_when_nobody_has_room(name, size):
    workers = [worker(f"w{number}", prompts=[300], slots=1) for number in range(size)]
    assert not isinstance(PLACEMENTS[name].build().choose(request("asked"), {}, workers, 0.0), Place)


PUSHED = st.lists(
    st.tuples(st.sampled_from(["anna", "ben", "cora"]), st.integers(1, 300), st.sampled_from([-1, 0, 5])),
    min_size=1,
    max_size=25,
)


def pushed(policy, wanted, *, now=0.0):
    asked = []
    for number, (client, tokens, priority) in enumerate(wanted):
        one = request(number, client=client, tokens=tokens, priority=priority, arrived=now)
        policy.push(one)
        policy.on(Queued(one, now))
        asked.append(one)
    return asked


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=20, deadline=None)
@given(wanted=PUSHED, described=FLEETS, now=st.sampled_from([0.0, 0.5, 5.0, 1000.0]))
def test_a_queue_offers_who_waits_and_changes_nothing(name, wanted, described, now):
    workers = fleet(described)
    policies = [QUEUES[name].build() for _ in range(2)]
    for policy in policies:
        asked = pushed(policy, wanted)
    before = memory(policies[0])
    offers = list(policies[0].candidates(workers, now))
    assert offers, "somebody waits, and nobody is offered"
    assert {offer.request.id for offer in offers} <= {one.id for one in asked}
    assert len({offer.request.id for offer in offers}) == len(offers)
    assert list(policies[0].candidates(workers, now)) == offers
    assert list(policies[1].candidates(workers, now)) == offers
    assert memory(policies[0]) == before
    assert len(policies[0]) == len(asked)
    assert {one.id for one in policies[0].waiting()} == {one.id for one in asked}


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=20, deadline=None)
@given(wanted=PUSHED, step=st.sampled_from([0.0, 0.3, 60.0]))
def test_a_queue_served_from_its_head_offers_everybody_in_the_end(name, wanted, step):
    policy, workers, now = QUEUES[name].build(), [worker("a"), worker("b")], 0.0
    waiting = {one.id for one in pushed(policy, wanted)}
    while waiting:
        assert len(policy) == len(waiting)
        first = next(iter(policy.candidates(workers, now))).request
        policy.remove(first)
        policy.on(Placed(first, Placement("a"), 0, first.input_tokens, now))
        policy.on(Left(first, Placement("a"), Outcome.COMPLETED, Usage(first.input_tokens, 9), now))
        waiting.remove(first.id)
        now += step
    assert len(policy) == 0
    assert list(policy.candidates(workers, now)) == []


@pytest.mark.parametrize("name", QUEUES)
def test_whoever_has_waited_for_an_hour_is_offered_before_newcomers(name):
    policy = QUEUES[name].build()
    old = request("old", tokens=5000, client="ben", priority=9)
    policy.push(old)
    policy.on(Queued(old, 0.0))
    for number in range(40):
        young = request(number, tokens=1, arrived=3600.0)
        policy.push(young)
        policy.on(Queued(young, 3600.0))
    assert next(iter(policy.candidates([worker("a")], 3600.0))).request is old


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_takes_a_request_back(name):
    policy = QUEUES[name].build()
    one = request("one")
    for again in (False, True):
        policy.push(one, again=again)
        policy.on(Queued(one, 0.0, again=again))
        assert [offer.request for offer in policy.candidates([worker("a")], 0.0)] == [one]
        policy.remove(one)
        policy.on(Left(one, Placement("a"), None, None, 0.0))
    assert len(policy) == 0
