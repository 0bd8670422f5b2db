"""Early binding: a request is named a worker on arrival and waits for it, and what waits counts for later ones."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view

from policies import catalog
from policies.events import EVENTS, Bound, FirstToken, Left, Output, Placed, Queued
from policies.knowledge import Knowledge
from policies.model import (
    AttemptFailure,
    Dispatch,
    Placement,
    Reason,
    RejectReason,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.protocol import PlacementPolicy
from policies.scheduler.event_dispatch import EventDispatch
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

QUEUES = sorted(catalog.queue_policies())
PLACEMENTS = sorted(catalog.placement_policies())
SERVED = frozenset({"base", "lora"})


def facts(name, **fields):
    return WorkerFacts(name, **{"served_names": SERVED, "slots": 1, **fields})


def request(name, *, client="anna", topic=0, tokens=40, now=0.0, **fields):
    return view(name, Wish(client, 0, tokens, 5, topic, more=tuple(fields.items())), now)


class Favourites(PlacementPolicy):
    """Ranks the worker first that it is told for a client; raises what it is told to raise."""

    def __init__(self, **where):
        self.where = where
        self.heard = []
        self.shown = {}

    def rank(self, question):
        favourite = self.where.get(question.request.client)
        if isinstance(favourite, Exception):
            raise favourite
        self.shown = {worker.id: worker for worker in question.workers}
        return [
            (worker, float(worker.id != favourite), Reason.TURN)
            for worker in sorted(question.workers, key=lambda worker: worker.id != favourite)
        ]

    def on(self, event):
        self.heard.append(event)


class Fleet:
    """A scheduler with early binding."""

    def __init__(self, *workers, placement=None, queue=None, **fields):
        knowledge = Knowledge()
        if isinstance(placement, str):
            placement = catalog.placement_policies()[placement].build(knowledge=knowledge)
        self.placement = placement or catalog.placement_policies()["round_robin"].build(knowledge=knowledge)
        if queue is None:
            order = Fcfs(FcfsSettings(patience_s=1e9))
        else:
            order = catalog.queue_policies()[queue].build(knowledge=knowledge)
        settings = SchedulerSettings(binding="early", **fields)
        self.scheduler = Scheduler(order, self.placement, settings, knowledge)
        for worker in workers:
            self.scheduler.worker_joined(worker, 0.0)

    def submit(self, name, now=0.0, **fields):
        return self.scheduler.submit(request(name, now=now, **fields), now)

    def started(self, now=0.0):
        decisions = self.scheduler.decisions(now)
        return {d.request.id: d.place.placement.decode for d in decisions if isinstance(d, Dispatch)}

    def waiting(self):
        """Which requests wait for which worker."""
        found = {}
        for one in self.scheduler.waiting():
            found.setdefault(one.bound.decode, []).append(one.id)
        return found

    def counts(self):
        """What is named to each worker: requests, sequences, prompt tokens."""
        workers = self.scheduler._fleet.workers()
        return {w.facts.id: (w.named_requests, w.named_sequences, w.named_prefill_tokens) for w in workers}

    def expected(self, **fields):
        """Tokens of such a prompt that each worker holds or will hold."""
        return self.scheduler._named.matches(request("alike", **fields))

    def is_clear(self):
        """Nothing is named, and no prompt is expected anywhere."""
        named = self.scheduler._named
        assert len(named) == 0
        assert set(self.counts().values()) <= {(0, 0, 0)}
        assert not any(stats.nodes for stats in named._coming.stats().values())


def heard_of(fleet, name):
    return [event for event in fleet.placement.heard if hasattr(event, "request") and event.request.id == name]


# -- naming on arrival


def test_a_burst_is_spread_evenly_at_once():
    fleet = Fleet(*(facts(name) for name in "abcd"))
    for number in range(40):
        fleet.submit(f"r{number}")
    assert {worker: len(names) for worker, names in fleet.waiting().items()} == dict.fromkeys("abcd", 10)


@pytest.mark.parametrize("placement", ["least_loaded", "lmetric", "kv_cost", "power_of_two", "fairlead"])
def test_what_waits_counts_as_load(placement):
    fleet = Fleet(*(facts(name) for name in "abcd"), placement=placement)
    for number in range(40):
        fleet.submit(f"r{number:02}", topic=number, tokens=400)
    assert len(fleet.waiting()) == 4
    assert min(len(names) for names in fleet.waiting().values()) >= 5


def test_the_first_ranking_is_kept_although_another_worker_is_idle():
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    for name in ("first", "second"):
        fleet.submit(name)
    assert fleet.started() == {"first": "a"}
    fleet.placement.where = {"anna": "b"}
    assert fleet.started(4.0) == {}
    assert fleet.waiting() == {"a": ["second"]}


def test_a_dispatch_says_that_the_worker_was_named():
    fleet = Fleet(facts("a"))
    fleet.submit("one")
    (decision,) = fleet.scheduler.decisions(0.0)
    assert decision.place.reason is Reason.NAMED


def test_policies_hear_that_a_request_waits_before_where_and_each_once():
    fleet = Fleet(facts("a"), placement=Favourites(anna="a"))
    tickets = [fleet.submit(name) for name in ("first", "second")]
    for _ in range(3):
        fleet.started()
    fleet.scheduler.settled(tickets[0], Usage(40, 5), 1.0)
    fleet.started(1.0)
    assert [type(event) for event in heard_of(fleet, "second")] == [Queued, Bound, Placed]


def test_a_named_worker_counts_what_is_named_until_it_starts():
    fleet = Fleet(facts("a", slots=3), placement=Favourites(anna="a"))
    fleet.submit("one", sequences=2)
    fleet.submit("two", topic=1, tokens=30)
    assert fleet.counts() == {"a": (2, 3, 70)}
    fleet.submit("looks", topic=2)
    seen = fleet.placement.shown["a"]
    assert (seen.requests, seen.sequences, seen.prefill_owed) == (2, 3, 70)
    assert seen.room.open, "to a ranking on arrival every worker has room"
    fleet.started()
    assert fleet.counts()["a"][0] == fleet.scheduler.snapshot().queued


# -- caches that are expected


def test_a_prompt_that_waits_is_not_taken_to_be_cached_when_it_starts():
    fleet = Fleet(facts("a"), placement=Favourites(anna="a"))
    fleet.submit("only", tokens=40)
    fleet.started()
    (placed,) = [event for event in fleet.placement.heard if isinstance(event, Placed)]
    assert (placed.matched_tokens, placed.extend_tokens) == (0, 40)


def test_what_waits_counts_as_cached_for_requests_that_are_named_a_worker_later():
    fleet = Fleet(facts("a"), facts("b"), facts("c"), placement="cache_aware")
    fleet.submit("first", topic=1, tokens=200)
    fleet.submit("other", topic=2, tokens=200)
    fleet.submit("alike", topic=1, tokens=200)
    bound = {one.id: one.bound for one in fleet.scheduler.waiting()}
    assert bound["alike"] == bound["first"] != bound["other"]
    assert fleet.counts()[bound["first"].decode] == (2, 2, 201)


def test_a_prompt_that_no_longer_waits_is_no_longer_expected():
    fleet = Fleet(facts("a"), facts("b"), placement="cache_aware")
    other, gone = fleet.submit("other", topic=2), fleet.submit("gone", topic=1)
    assert fleet.expected(topic=1) != {}
    fleet.scheduler.cancel(gone, 0.0)
    assert fleet.expected(topic=1) == {}
    fleet.scheduler.cancel(other, 0.0)
    fleet.is_clear()


def test_a_prompt_beyond_every_worker_is_heard_of_where_it_starts():
    """An engine refuses it; the ranking may have changed since it was named one."""
    fleet = Fleet(facts("a", kv_tokens=1000), facts("b", kv_tokens=1000), placement=Favourites(anna="a"))
    for name in "ab":
        fleet.submit(f"runs on {name}", pinned=name)
    assert len(fleet.started()) == 2
    fleet.scheduler.worker_changed(facts("a", kv_tokens=1000, slots=2), 0.0)
    fleet.scheduler.worker_changed(facts("b", kv_tokens=1000, slots=2), 0.0)
    fleet.scheduler.first_token(fleet.scheduler._entries["runs on a"].ticket, 0.0)
    fleet.submit("huge", tokens=2000)
    fleet.placement.where = {"anna": "b"}
    assert fleet.started() == {"huge": "b"}
    heard = [(type(event), event.placement.decode) for event in heard_of(fleet, "huge")[1:]]
    assert heard == [(Bound, "a"), (Bound, "b"), (Placed, "b")]


# -- workers come and go


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.worker_left("a", 1.0),
        lambda s: s.worker_changed(facts("a", usable=False), 1.0),
        lambda s: s.worker_changed(facts("a", suspect=True), 1.0),
        lambda s: s.worker_changed(facts("a", served_names=frozenset({"lora"})), 1.0),
    ],
    ids=["leaves", "drains", "is suspect", "stops serving the model"],
)
def test_requests_are_named_another_worker_when_theirs(change):
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    tickets = [fleet.submit(f"r{number}") for number in range(4)]
    assert fleet.started() == {"r0": "a"}
    change(fleet.scheduler)
    assert fleet.started(1.0) == {"r1": "b"}
    assert fleet.waiting() == {"b": ["r2", "r3"]}
    assert {name: counts[0] for name, counts in fleet.counts().items()} == {"a": 0, "b": 2}
    assert [type(event) for event in heard_of(fleet, "r3")] == [Queued, Bound, Bound], (
        "it waits as before, for another worker"
    )
    for ticket in tickets:
        fleet.scheduler.cancel(ticket, 2.0)
    fleet.is_clear()


def test_being_named_another_worker_is_no_reason_to_wait_longer():
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"), max_wait_s=10.0)
    fleet.submit("runs on a", pinned="a")
    fleet.submit("runs on b", pinned="b")
    fleet.submit("waits")
    assert len(fleet.started()) == 2
    for number in range(500):
        name = "ab"[number % 2]
        fleet.scheduler.worker_changed(facts(name, suspect=True), 5.0)
        fleet.scheduler.decisions(5.0)
        fleet.scheduler.worker_changed(facts(name), 5.0)
        fleet.scheduler.decisions(5.0)
    assert len(fleet.scheduler._waits) < 100
    assert fleet.scheduler.decisions(9.9) == []
    (reject,) = fleet.scheduler.decisions(10.0)
    assert (reject.request.id, reject.reason) == ("waits", RejectReason.WAITED_TOO_LONG)


def test_a_suspect_worker_keeps_requests_that_no_other_serves():
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    first = fleet.submit("first", pinned="a")
    fleet.submit("pinned", pinned="a")
    fleet.submit("free")
    fleet.started()
    fleet.scheduler.worker_changed(facts("a", suspect=True), 1.0)
    fleet.started(1.0)
    heard = len(fleet.placement.heard)
    for _ in range(5):
        assert fleet.started(2.0) == {}
    assert len(fleet.placement.heard) == heard, "to ask for decisions has named a worker again"
    assert fleet.waiting() == {"a": ["pinned"]}
    fleet.scheduler.settled(first, Usage(40, 5), 3.0)
    assert fleet.started(3.0) == {"pinned": "a"}


def test_a_request_that_no_other_worker_serves_is_rejected_when_its_worker_leaves():
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    fleet.submit("runs", pinned="a")
    fleet.submit("waits", pinned="a")
    fleet.started()
    fleet.scheduler.worker_left("a", 1.0)
    (reject,) = fleet.scheduler.decisions(1.0)
    assert (reject.request.id, reject.reason) == ("waits", RejectReason.NO_WORKER)
    fleet.is_clear()


def test_requests_are_named_another_worker_when_theirs_stalls():
    """No event says so: the deadline does. What the worker already has stays there."""
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    for number in range(3):
        fleet.submit(f"r{number}")
    assert fleet.started() == {"r0": "a"}
    at = fleet.scheduler.next_deadline()
    while at < 5.0:
        assert fleet.started(at) == {}
        at = fleet.scheduler.next_deadline()
    assert at == 5.0
    assert fleet.started(5.0) == {"r1": "b"}
    assert fleet.waiting() == {"b": ["r2"]}


def test_what_waits_for_a_worker_that_left_and_came_back_is_named_anew():
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a"))
    running = fleet.submit("runs")
    fleet.submit("waits", topic=1)
    fleet.started()
    fleet.scheduler.worker_left("a", 1.0)
    fleet.scheduler.worker_joined(facts("a", slots=2), 1.0)
    assert fleet.counts()["a"] == (0, 0, 0)
    assert fleet.started(2.0) == {}, "its prompt is still computed"
    assert fleet.counts()["a"] == (1, 1, 40)
    fleet.scheduler.settled(running, Usage(40, 5), 3.0)
    assert fleet.started(3.0) == {"waits": "a"}
    fleet.is_clear()


# -- faults


def test_where_the_placement_raises_the_least_loaded_worker_is_named():
    fault = KeyError("no such worker")
    fleet = Fleet(facts("a"), facts("b"), placement=Favourites(anna="a", ben=fault))
    fleet.submit("anna's")
    fleet.submit("anna's second")
    ticket = fleet.submit("ben's", client="ben")
    assert (fleet.scheduler.faults.count, fleet.scheduler.faults.last) == (1, fault)
    assert fleet.started() == {"anna's": "a", "ben's": "b"}
    fleet.scheduler.settled(ticket, Usage(40, 5), 1.0)
    assert [type(event) for event in heard_of(fleet, "ben's")] == [
        Queued,
        Bound,
        Placed,
        FirstToken,
        Output,
        Left,
    ]


# -- pairs


def paired(**fields):
    decode = facts("d", stages=frozenset([Stage.DECODE]), **fields)
    prefill = facts("p", stages=frozenset([Stage.PREFILL]))
    return Fleet(decode, prefill, facts("other"), placement=Favourites(), disaggregate="always")


def test_of_a_named_pair_the_prefill_worker_counts_the_prompt_and_both_are_expected_to_hold_it():
    fleet = paired()
    for number in range(3):
        fleet.submit(f"r{number}", topic=number)
    assert {one.bound for one in fleet.scheduler.waiting()} == {Placement("d", "p")}
    assert fleet.counts() == {"d": (0, 0, 0), "p": (3, 3, 120), "other": (0, 0, 0)}
    assert fleet.expected(topic=1).keys() == {"d", "p"}
    assert fleet.started() == {"r0": "d"}


def test_a_named_pair_starts_when_both_of_its_workers_have_room():
    fleet = paired(slots=2)
    fleet.scheduler.worker_changed(facts("p", stages=frozenset([Stage.PREFILL]), kv_tokens=50), 0.0)
    first = fleet.submit("first", topic=1)
    second = fleet.submit("second", topic=2)
    fleet.submit("third", topic=3)
    assert fleet.started() == {"first": "d"}
    assert fleet.started(0.1) == {}, "no KV for its prompt"
    fleet.scheduler.prefill_done(first, 0.2)
    assert fleet.started(0.2) == {"second": "d"}
    fleet.scheduler.prefill_done(second, 0.3)
    assert fleet.started(0.3) == {}, "no slot for its answer"
    fleet.scheduler.settled(first, Usage(40, 5), 0.4)
    assert fleet.started(0.4) == {"third": "d"}


@pytest.mark.parametrize("lost", ["d", "p"])
@pytest.mark.parametrize("how", ["leaves", "drains", "changes"])
def test_a_pair_is_named_anew_when_either_of_its_workers_is_lost(lost, how):
    fleet = paired()
    tickets = [fleet.submit(f"r{number}", topic=number) for number in range(2)]
    if how == "leaves":
        fleet.scheduler.worker_left(lost, 1.0)
    else:
        there = frozenset([Stage.PREFILL if lost == "d" else Stage.DECODE])
        change = {"usable": False} if how == "drains" else {"stages": there}
        fleet.scheduler.worker_changed(facts(lost, **change), 1.0)
    fleet.started(1.0)
    assert all(one.bound.prefill is None for one in fleet.scheduler.waiting())
    for ticket in tickets:
        fleet.scheduler.cancel(ticket, 2.0)
    fleet.is_clear()


# -- anything in any order


class Anything:
    """Random events; which requests live and which have ended is known from what a listener hears."""

    names = ("a", "b", "c")
    hears = EVENTS

    def __init__(self, chance, fleet):
        self.chance, self.fleet, self.scheduler = chance, fleet, fleet.scheduler
        self.now, self.live, self.running, self.ended = 0.0, {}, {}, Counter()
        self.grammar = {}
        made = self.scheduler
        made._events = EventDispatch((made._order, self, made._disaggregation), made.faults)
        for name in self.names:
            made.worker_joined(facts(name), 0.0)

    def on(self, event):
        self.check(event)
        self.fleet.placement.on(event)

    def check(self, event):
        if not isinstance(event, Queued | Bound | Placed | Left):
            return
        name = event.request.id
        before = self.grammar.get(name)
        after = {Queued: (None, Left), Bound: (Queued, Bound), Placed: (Bound,), Left: (None, Bound, Placed, Left)}
        assert before in after[type(event)], (before, event)
        self.grammar[name] = type(event)
        if isinstance(event, Left):
            self.running.pop(name, None)
            if event.outcome is not None:
                self.ended[name] += 1
                self.live.pop(name, None)

    def happen(self, number):
        self.now += self.chance.choice([0.0, 0.5, 20.0])
        what = self.chance.choice([self.submit] * 3 + [self.worker] * 2 + [self.settle, self.cancel, self.fail])
        what(f"r{number}")
        if self.chance.random() < 0.8:
            self.decide()

    def decide(self):
        self.running |= self.fleet.started(self.now)
        check_named(self.fleet, self.live.keys() - self.running.keys())

    def submit(self, name):
        more = self.chance.choice([{}, {}, {"pinned": self.chance.choice(self.names)}, {"served_name": "lora"}])
        ticket = self.fleet.submit(name, self.now, topic=self.chance.randrange(3), **more)
        if name not in self.ended:
            self.live[name] = ticket

    def worker(self, _):
        name, draw = self.chance.choice(self.names), self.chance.random
        served = self.chance.choice([SERVED, SERVED, frozenset({"base"})])
        if draw() < 0.3:
            self.scheduler.worker_left(name, self.now)
        else:
            known = facts(name, served_names=served, usable=draw() < 0.8, suspect=draw() < 0.3)
            self.scheduler.worker_changed(known, self.now)

    def cancel(self, _):
        if self.live:
            self.scheduler.cancel(self.live[self.chance.choice(sorted(self.live))], self.now)

    def settle(self, _):
        if self.running:
            name = self.chance.choice(sorted(self.running))
            self.scheduler.settled(self.live[name], Usage(40, 5), self.now)

    def fail(self, _):
        if self.running:
            name = self.chance.choice(sorted(self.running))
            worker, ticket = self.running[name], self.live[name]
            again = self.scheduler.attempt_failed(ticket, worker, AttemptFailure.CONNECT, 0, self.now)
            if name in self.live:
                self.live[name] = again


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), queue=st.sampled_from(QUEUES), placement=st.sampled_from(PLACEMENTS))
def test_whatever_happens_each_request_waits_for_one_worker_and_none_is_lost(seed, queue, placement):
    fleet = Fleet(placement=placement, queue=queue, attempts=3)
    world = Anything(random.Random(seed), fleet)
    for number in range(60):
        world.happen(number)
    world.decide()
    for ticket in list(world.live.values()):
        fleet.scheduler.cancel(ticket, world.now)
    if fleet.scheduler.faults.last is not None:
        raise fleet.scheduler.faults.last
    assert set(world.ended.values()) == {1}
    assert not world.live
    fleet.is_clear()


def check_named(fleet, waiting):
    scheduler = fleet.scheduler
    assert {one.id for one in scheduler.waiting()} == waiting
    assert len(scheduler._named) == len(waiting) == scheduler.snapshot().queued
    counts = Counter()
    for one in scheduler.waiting():
        counts[one.bound.ranked] += 1
        able = {row.id: row for row in scheduler.able(one)}
        assert one.bound.decode in able, "it waits for a worker that it will not be given"
        assert not able[one.bound.decode].room.idle, "it waits for an idle worker"
    assert counts == {name: named[0] for name, named in fleet.counts().items() if named[0]}


@settings(max_examples=10, deadline=None)
@given(
    wishes=st.lists(
        st.builds(Wish, st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 60), st.integers(1, 9)),
        min_size=1,
        max_size=30,
    ),
    queue=st.sampled_from(QUEUES),
)
def test_every_request_is_answered_in_the_end(wishes, queue):
    played = SteppedFleet(queue, workers=3, binding="early", placement="round_robin").play(wishes)
    assert len(played.started) == len(wishes)
