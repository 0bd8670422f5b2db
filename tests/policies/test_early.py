"""Early binding: a queue like any other outside; inside, a line per worker, and nobody is lost between them."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view

from policies import catalog
from policies.events import Bound, FirstToken, Left, Output, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.worker import Worker
from policies.knowledge import Knowledge
from policies.model import (
    AttemptFailure,
    Dispatch,
    Outcome,
    Place,
    Placement,
    Reason,
    RejectReason,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.placements.round_robin import RoundRobin
from policies.placements.round_robin import Settings as RoundRobinSettings
from policies.scheduler.early import EarlyLines
from policies.scheduler.event_dispatch import Audience
from policies.scheduler.matching import Faults
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

QUEUES = sorted(catalog.queue_policies())
PLACEMENTS = sorted(catalog.placement_policies())
SERVED = frozenset({"base", "lora"})


def facts(name, **fields):
    return WorkerFacts(name, **{"served_names": SERVED, "slots": 1, **fields})


def request(name, *, client="anna", topic=0, tokens=40, now=0.0, **fields):
    return view(name, Wish(client, 0, tokens, 5, topic, more=tuple(fields.items())), now)


class Line(Fcfs):
    """First come, first served, and a memory of what was heard."""

    def __init__(self):
        super().__init__(FcfsSettings(patience_s=1e9))
        self.heard = []

    def on(self, event):
        self.heard.append(event)


class Picky:
    """Places a topic's requests where it is told; raises for the topic that it is told to raise for."""

    def __init__(self, **where):
        self.where = where
        self.heard = []

    def choose(self, request, matches, workers, now):
        worker = self.where[request.client]
        if isinstance(worker, Exception):
            raise worker
        if not any(view.id == worker for view in workers):
            worker = workers[0].id
        return Place(Placement(worker), Reason.TURN, matches.get(worker, 0))

    def on(self, event):
        self.heard.append(event)


class Fleet:
    """A scheduler with early binding, and its lines."""

    def __init__(self, *workers, placement=None, make_queue=Line, **fields):
        knowledge = Knowledge()
        if placement is None or isinstance(placement, str):
            placement = catalog.placement_policies()[placement or "round_robin"].build(knowledge=knowledge)
        self.placement = placement
        self.made = []

        def make():
            self.made.append(make_queue())
            return self.made[-1]

        self.lines = EarlyLines(make, placement, knowledge.prefixes)
        self.scheduler = Scheduler(self.lines, placement, SchedulerSettings(**fields), knowledge)
        self.lines.choose_among(self.scheduler.able)
        for worker in workers:
            self.scheduler.worker_joined(worker, 0.0)

    def submit(self, name, now=0.0, **fields):
        return self.scheduler.submit(request(name, now=now, **fields), now)

    def started(self, now=0.0):
        decisions = self.scheduler.decisions(now)
        return {d.request.id: d.place.placement.decode for d in decisions if isinstance(d, Dispatch)}

    def waiting(self):
        """Who waits where."""
        rows = self.lines._lines.items()
        return {worker: [one.id for one in line.queue.waiting()] for worker, line in rows if len(line.queue)}


# -- a queue like any other


def worker(name):
    return Worker(facts(name, slots=4), window_s=0.2, window_tokens=None).view()


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=15, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 90)), min_size=1, max_size=15),
    placement=st.sampled_from(PLACEMENTS),
    step=st.sampled_from([0.0, 0.3, 60.0]),
)
def test_it_keeps_the_contract_of_a_queue(name, wanted, placement, step):
    """As in the catalog's tests: offers who waits, asking changes nothing, in the end everybody is offered."""
    knowledge, workers, now = Knowledge(), [worker("w0"), worker("w1")], 0.0
    chosen = catalog.placement_policies()[placement].build(knowledge=knowledge)
    made = EarlyLines(
        lambda: catalog.queue_policies()[name].build(knowledge=knowledge), chosen, knowledge.prefixes
    )
    made.choose_among(lambda _: workers)
    asked = {}
    for number, (client, tokens) in enumerate(wanted):
        one = asked[f"r{number}"] = request(f"r{number}", client=client, tokens=tokens)
        made.push(one)
        made.on(Queued(one, now))
    while asked:
        assert len(made) == len(asked)
        assert {one.id for one in made.waiting()} == asked.keys()
        offers = list(made.candidates(workers, now))
        assert list(made.candidates(workers, now)) == offers
        assert len({offer.request.id for offer in offers}) == len(offers)
        first = offers[0]
        made.remove(asked.pop(first.request.id))
        made.on(Placed(first.request, first.bound.placement, 0, first.request.input_tokens, now))
        made.on(Left(first.request, first.bound.placement, Outcome.COMPLETED, Usage(9, 9), now))
        now += step
    assert list(made.candidates(workers, now)) == []
    assert all(line.sequences == 0 for line in made._lines.values())
    assert not made._owed
    assert (made._seats, made._member, made._unbound) == ({}, {}, {})


# -- choosing on arrival


def test_a_burst_is_spread_evenly_at_once():
    fleet = Fleet(*(facts(name) for name in "abcd"))
    for number in range(40):
        fleet.submit(f"r{number}")
    assert {worker: len(names) for worker, names in fleet.waiting().items()} == dict.fromkeys("abcd", 10)


@pytest.mark.parametrize("placement", ["least_loaded", "lmetric", "kv_cost", "power_of_two", "fairlead"])
def test_a_line_counts_as_load(placement):
    fleet = Fleet(*(facts(name) for name in "abcd"), placement=placement)
    for number in range(40):
        fleet.submit(f"r{number:02}", topic=number, tokens=400)
    assert min(len(names) for names in fleet.waiting().values()) >= 5
    assert len(fleet.waiting()) == 4


def test_the_choice_holds_although_another_worker_is_idle():
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a"))
    for name in ("first", "second"):
        fleet.submit(name)
    assert fleet.started() == {"first": "a"}
    assert fleet.started(4.0) == {}
    assert fleet.waiting() == {"a": ["second"]}


def test_placement_hears_once_that_a_request_is_bound():
    fleet = Fleet(facts("a"), placement=Picky(anna="a"))
    tickets = [fleet.submit(name) for name in ("first", "second")]
    for _ in range(3):
        fleet.started()
    fleet.scheduler.settled(tickets[0], Usage(40, 5), 1.0)
    fleet.started(1.0)
    bound = [event.request.id for event in fleet.placement.heard if isinstance(event, Bound)]
    assert bound == ["first", "second"]


# -- what is charged


def test_a_prompt_that_waits_is_not_taken_to_be_cached():
    fleet = Fleet(facts("a"), placement=Picky(anna="a"))
    fleet.submit("only", tokens=40)
    fleet.started()
    (placed,) = [event for event in fleet.made[0].heard if isinstance(event, Placed)]
    assert (placed.matched_tokens, placed.extend_tokens) == (0, 40)


def test_what_waits_counts_as_cached_for_those_who_choose_later():
    fleet = Fleet(facts("a"), facts("b"), facts("c"), placement="cache_aware")
    fleet.submit("first", topic=1, tokens=200)
    fleet.submit("other", topic=2, tokens=200)
    fleet.submit("alike", topic=1, tokens=200)
    seats = fleet.lines._seats
    assert seats["alike"].place.placement == seats["first"].place.placement
    assert seats["alike"].place.placement != seats["other"].place.placement
    assert (seats["first"].tokens, seats["alike"].tokens) == (200, 1)


def test_who_no_longer_waits_is_no_longer_expected():
    fleet = Fleet(facts("a"), facts("b"), placement="cache_aware")
    running, gone = fleet.submit("running", topic=2), fleet.submit("gone", topic=1)
    fleet.scheduler.cancel(gone, 0.0)
    assert fleet.lines._matches(request("alike", topic=1)) == {}
    fleet.scheduler.cancel(running, 0.0)
    assert not any(stats.nodes for stats in fleet.lines._coming.stats().values())


# -- workers come and go


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.worker_left("a", 1.0),
        lambda s: s.worker_changed(facts("a", usable=False), 1.0),
        lambda s: s.worker_changed(facts("a", suspect=True), 1.0),
        lambda s: s.worker_changed(facts("a", served_names=frozenset({"lora"})), 1.0),
    ],
    ids=["leaves", "drains", "is suspect", "stops serving the line"],
)
def test_a_line_is_placed_anew_when_its_worker(change):
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a"))
    for number in range(4):
        fleet.submit(f"r{number}")
    assert fleet.started() == {"r0": "a"}
    change(fleet.scheduler)
    assert fleet.started(1.0) == {"r1": "b"}
    assert fleet.waiting() == {"b": ["r2", "r3"]}


def test_a_suspect_worker_keeps_those_whom_nobody_else_can_serve():
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a"))
    first = fleet.submit("first", pinned="a")
    fleet.submit("pinned", pinned="a")
    fleet.submit("free")
    fleet.started()
    fleet.scheduler.worker_changed(facts("a", suspect=True), 1.0)
    fleet.started(1.0)
    heard = len(fleet.placement.heard)
    for _ in range(5):
        assert fleet.started(2.0) == {}
    assert len(fleet.placement.heard) == heard, "asking has bound somebody again"
    assert fleet.waiting() == {"a": ["pinned"]}
    fleet.scheduler.settled(first, Usage(40, 5), 3.0)
    assert fleet.started(3.0) == {"pinned": "a"}


def test_who_can_go_nowhere_else_is_turned_away_when_its_worker_leaves():
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a"))
    fleet.submit("runs", pinned="a")
    fleet.submit("waits", pinned="a")
    fleet.started()
    fleet.scheduler.worker_left("a", 1.0)
    (reject,) = fleet.scheduler.decisions(1.0)
    assert (reject.request.id, reject.reason) == ("waits", RejectReason.NO_WORKER)


def test_a_line_hears_of_its_own_requests_only_from_beginning_to_end():
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a", ben="b"))
    anna, ben = fleet.submit("anna's"), fleet.submit("ben's", client="ben")
    fleet.started()
    fleet.scheduler.output(anna, 3, 1.0)
    fleet.scheduler.cancel(ben, 1.0)
    fleet.scheduler.settled(anna, Usage(40, 5), 2.0)
    heard = [[(type(e).__name__, e.request.id) for e in line.heard] for line in fleet.made]
    names = ["Queued", "Placed", "FirstToken", "Output", "Output", "Left"]
    assert heard == [
        [(name, "anna's") for name in names],
        [("Queued", "ben's"), ("Placed", "ben's"), ("Left", "ben's")],
    ]


def test_a_worker_that_comes_back_does_not_hear_of_those_it_was_given_before():
    fleet = Fleet(facts("a"), placement=Picky(anna="a"))
    old = fleet.submit("old")
    fleet.started()
    fleet.scheduler.worker_left("a", 1.0)
    fleet.scheduler.worker_joined(facts("a", slots=2), 1.0)
    fleet.submit("new", now=2.0)
    fleet.started(2.0)
    fleet.scheduler.settled(old, Usage(40, 5), 3.0)
    assert {event.request.id for event in fleet.made[1].heard} == {"new"}
    assert isinstance(fleet.made[0].heard[-1], Left)


# -- faults


def test_a_placement_that_raises_leaves_its_request_to_whoever_has_room():
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a", ben=KeyError("nobody")))
    faults = Faults()
    fleet.lines.choose_among(fleet.scheduler.able, faults)
    fleet.submit("anna's")
    fleet.submit("anna's second")
    ticket = fleet.submit("ben's", client="ben")
    assert faults.count == 1
    assert isinstance(faults.last, KeyError)
    assert fleet.started() == {"ben's": "a"}
    assert fleet.scheduler.faults.count == 1
    fleet.scheduler.settled(ticket, Usage(40, 5), 1.0)
    assert fleet.started(1.0) == {"anna's": "a"}
    assert [type(e) for e in fleet.made[0].heard if e.request.id == "ben's"] == [Placed, FirstToken, Output, Left]


# -- anything in any order


class Anything:
    """Random events; what lives and what has ended is known from what a listener hears."""

    names = ("a", "b", "c")

    def __init__(self, chance, fleet):
        self.chance, self.fleet, self.scheduler = chance, fleet, fleet.scheduler
        self.now, self.live, self.running, self.ended = 0.0, {}, {}, Counter()
        listener = SimpleNamespace(on=self.hear)
        self.scheduler._tell = Audience((fleet.lines, fleet.placement, listener), self.scheduler.faults).tell
        for name in self.names:
            self.scheduler.worker_joined(facts(name), 0.0)

    def hear(self, event):
        if isinstance(event, Left):
            self.running.pop(event.request.id, None)
            if event.outcome is not None:
                self.ended[event.request.id] += 1
                self.live.pop(event.request.id, None)

    def happen(self, number):
        self.now += self.chance.choice([0.0, 0.5, 20.0])
        what = self.chance.choice([self.submit] * 3 + [self.worker] * 2 + [self.settle, self.cancel, self.fail])
        what(f"r{number}")
        if self.chance.random() < 0.8:
            self.decide()

    def decide(self):
        self.running |= self.fleet.started(self.now)
        check_settled(self.fleet, self.live.keys() - self.running.keys())

    def submit(self, name):
        more = self.chance.choice([{}, {}, {"pinned": self.chance.choice(self.names)}, {"served_name": "lora"}])
        ticket = self.fleet.submit(name, self.now, topic=self.chance.randrange(3), **more)
        if name not in self.ended:
            self.live[name] = ticket

    def worker(self, _):
        name, draw = self.chance.choice(self.names), self.chance.random
        lines = self.chance.choice([SERVED, SERVED, frozenset({"base"})])
        if draw() < 0.3:
            self.scheduler.worker_left(name, self.now)
        else:
            known = facts(name, served_names=lines, usable=draw() < 0.8, suspect=draw() < 0.3)
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
            again = self.scheduler.leg_failed(ticket, worker, AttemptFailure.CONNECT, 0, self.now)
            if name in self.live:
                self.live[name] = again


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), queue=st.sampled_from(QUEUES), placement=st.sampled_from(PLACEMENTS))
def test_whatever_happens_everybody_is_in_one_line_and_nobody_is_lost(seed, queue, placement):
    fleet = Fleet(placement=placement, make_queue=catalog.queue_policies()[queue].build, attempts=3)
    world = Anything(random.Random(seed), fleet)
    for number in range(60):
        world.happen(number)
    world.decide()
    for ticket in list(world.live.values()):
        fleet.scheduler.cancel(ticket, world.now)
    assert set(world.ended.values()) == {1}
    assert not world.live
    assert (fleet.lines._seats, fleet.lines._member, fleet.lines._unbound) == ({}, {}, {})
    assert all(stats.nodes == 0 for stats in fleet.lines._coming.stats().values())


def check_settled(fleet, waiting):
    lines = fleet.lines
    assert sorted(one.id for one in lines.waiting()) == sorted(waiting)
    owed = Counter()
    for seat in lines._seats.values():
        owed[seat.computes] += seat.tokens
    assert lines._owed == owed
    assert lines._seats.keys() | lines._unbound.keys() == waiting
    assert len(lines) == len(waiting) == fleet.scheduler.snapshot().queued
    for worker, line in lines._lines.items():
        there = {one.id: one for one in line.queue.waiting()}
        seats = [seat for name, seat in lines._seats.items() if name in there]
        assert line.sequences == sum(one.sequences for one in there.values())
        assert {seat.place.placement.decode for seat in seats} <= {worker}
        if any(row.room.open for row in fleet.scheduler._fleet.views()):
            for one in there.values():
                able = fleet.scheduler.able(one)
                assert worker in {row.id for row in able}, "it waits for a worker that it will not be given"
                (row,) = (row for row in able if row.id == worker)
                assert not row.room.idle, "an idle worker has a line"


@settings(max_examples=10, deadline=None)
@given(
    wishes=st.lists(
        st.builds(Wish, st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 60), st.integers(1, 9)),
        min_size=1,
        max_size=30,
    ),
    queue=st.sampled_from(QUEUES),
)
def test_everybody_is_answered_in_the_end(wishes, queue):
    played = SteppedFleet(queue, workers=3, binding="early", placement="round_robin").play(wishes)
    assert len(played.started) == len(wishes)


def test_events_of_workers_pass_by_the_lines():
    fleet = Fleet(facts("a"), placement=RoundRobin(RoundRobinSettings()))
    fleet.submit("one")
    fleet.lines.on(WorkerArrived(facts("b"), 0.0))
    fleet.lines.on(WorkerGone("unheard of", 0.0))
    assert [type(event) for event in fleet.made[0].heard] == [Queued]


# -- stalls and pairs


def test_a_line_is_placed_anew_when_its_worker_stalls():
    """No event says so: the deadline does. What the worker already has stays there."""
    fleet = Fleet(facts("a"), facts("b"), placement=Picky(anna="a"))
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


class Couples:
    """Places everybody on one pair, as long as both are there; else on the first worker."""

    def choose(self, request, matches, workers, now):
        names = {view.id: view for view in workers}
        self.seen = names
        if {"d", "p"} <= names.keys():
            return Place(Placement("d", "p"), Reason.TURN, matches.get("p", 0))
        return Place(Placement(workers[0].id), Reason.TURN, matches.get(workers[0].id, 0))

    def on(self, event):
        pass


def couple(**fields):
    decode = facts("d", stages=frozenset([Stage.DECODE]), **fields)
    return Fleet(decode, facts("p", stages=frozenset([Stage.PREFILL])), facts("other"), placement=Couples())


def test_the_line_of_a_pair_is_the_decode_workers_and_its_prompt_the_prefill_workers_load():
    fleet = couple()
    for number in range(3):
        fleet.submit(f"r{number}", topic=number)
    assert fleet.waiting() == {"d": ["r0", "r1", "r2"]}
    fleet.submit("looks", topic=9)
    seen = fleet.placement.seen
    assert {name: (view.requests, view.prefill_owed) for name, view in seen.items()} == {
        "d": (3, 0),
        "p": (0, 120),
        "other": (0, 0),
    }
    assert fleet.lines._matches(request("alike", topic=1)).keys() == {"d", "p"}
    tickets = fleet.started()
    assert tickets == {"r0": "d"}


def test_a_bound_pair_starts_when_both_of_its_workers_have_room():
    fleet = couple(slots=2)
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
def test_a_bound_pair_is_placed_anew_when_either_of_its_workers_is_lost(lost, how):
    fleet = couple()
    tickets = [fleet.submit(f"r{number}", topic=number) for number in range(2)]
    fleet.placement.choose = lambda _, __, workers, now: Place(Placement("other"), Reason.TURN)
    if how == "leaves":
        fleet.scheduler.worker_left(lost, 1.0)
    else:
        there = frozenset([Stage.PREFILL if lost == "d" else Stage.DECODE])
        change = {"usable": False} if how == "drains" else {"stages": there}
        fleet.scheduler.worker_changed(facts(lost, **change), 1.0)
    fleet.started(1.0)
    assert all("p" not in seat.place.placement for seat in fleet.lines._seats.values())
    assert set(fleet.lines._owed) <= {"d", "other"} - {lost}
    for ticket in tickets:
        fleet.scheduler.cancel(ticket, 2.0)
    assert not fleet.lines._owed
    assert all(stats.nodes == 0 for stats in fleet.lines._coming.stats().values())


def test_who_chose_while_a_worker_was_well_for_a_moment_is_placed_anew():
    fleet = Fleet(facts("a", suspect=True), facts("b"), placement=Picky(anna="a"))
    fleet.submit("before")
    assert fleet.started() == {"before": "b"}
    fleet.scheduler.worker_joined(facts("c"), 0.0)
    fleet.scheduler.worker_changed(facts("c", suspect=True), 0.0)
    fleet.submit("looks", client="anna")
    fleet.scheduler.worker_changed(facts("a"), 1.0)
    for name in ("well", "also"):
        fleet.submit(name)
    assert set(fleet.waiting()["a"]) == {"well", "also"}
    fleet.scheduler.worker_changed(facts("a", suspect=True), 1.0)
    fleet.scheduler.worker_left("c", 1.0)
    fleet.started(1.0)
    assert "a" not in fleet.waiting()
