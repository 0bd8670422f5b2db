"""VTC: its bound over random workloads, its order against the printed algorithm, its accounts case by case."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import WE, WQ, SteppedFleet, Wish, at_level, largest, unfairness, view
from views import full, worker

from policies.events import Left, Output, Placed, Queued
from policies.knowledge import Knowledge
from policies.model import AttemptFailure, Outcome, Placement, Usage
from policies.orders.vtc import Settings, Vtc
from policies.scheduler.scheduler import Scheduler

CLIENTS = ["anna", "ben", "cora"]
WEIGHTS = st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 4.0]) for name in CLIENTS})
BACKLOGS = st.lists(
    st.builds(
        Wish,
        client=st.sampled_from(CLIENTS),
        at=st.sampled_from([0, 0, 0, 1, 5, 20]),
        tokens=st.sampled_from([1, 10, 40, 120]),
        output=st.sampled_from([1, 3, 15, 30]),
        topic=st.integers(0, 3),
    ),
    min_size=10,
    max_size=45,
)


def request(name, client="anna", tokens=40, *, topic=0, arrived=0.0, weight=1.0, **fields):
    wish = Wish(client, 0, tokens, 5, topic, weight=weight, more=tuple(fields.items()))
    return view(name, wish, float(arrived))


def queue(*requests, **fields):
    made = Vtc(Settings(**fields), Knowledge())
    ask(made, *requests)
    return made


def ask(made, *requests, again=False):
    for one in requests:
        made.push(one, again=again)
        made.on(Queued(one, one.arrived, again=again))


def place(made, one, matched=0):
    made.remove(one)
    made.on(Placed(one, Placement("a"), matched, max(1, one.input_tokens - matched), 0.0))


def serve(made, one, **fields):
    ask(made, one)
    place(made, one, **fields)


def leave(made, one, outcome, usage=None, *, ran=True):
    made.on(Left(one, Placement("a") if ran else None, outcome, usage, 0.0))


def offered(made, now=0.0, workers=None):
    return [c.request.id for c in made.candidates(workers or [worker("a")], now)]


class Measuring(Vtc):
    """Notes after every event what each client has been served as the paper measures it: whole prompts count."""

    def __init__(self, **fields):
        super().__init__(Settings(**fields), Knowledge())
        self.served, self.samples = {}, []

    def on(self, event):
        super().on(event)
        if not isinstance(event, Queued | Placed | Output | Left):
            return
        client = event.request.client
        self.served.setdefault(client, 0.0)
        if isinstance(event, Placed):
            self.served[client] += event.request.input_tokens
        elif isinstance(event, Output):
            self.served[client] += 2 * event.tokens
        self.samples.append((dict(self.served), {one.client for one in self.waiting()}))


def played(wishes, *, workers=1, slots=2, placement="least_loaded", hold_s=0.0, **fields):
    fleet = {"workers": workers, "slots": slots, "placement": placement, "hold_s": hold_s}
    made = SteppedFleet("vtc", make=lambda _: Measuring(**fields), **fleet)
    made.play(wishes)
    return made.queue


def paper_s_bound(wishes, slots):
    """2 U, U = max(w_p L, w_q M): M tokens of KV cache are what the slots can fill at most."""
    longest = max(wish.tokens for wish in wishes)
    memory = slots * (longest + max(wish.output for wish in wishes))
    return 2 * max(WE * longest, WQ * memory)


# -- the theorem


@settings(max_examples=30, deadline=None)
@given(wishes=BACKLOGS)
def test_on_one_worker_clients_that_wait_are_served_alike(wishes):
    made = played(wishes)
    worst = max(unfairness(made.samples).values(), default=0.0)
    assert worst <= 2 * largest(wishes, slots=2) <= paper_s_bound(wishes, slots=2)


@settings(max_examples=20, deadline=None)
@given(wishes=BACKLOGS, workers=st.integers(1, 3), weights=WEIGHTS)
def test_over_a_fleet_clients_that_wait_are_served_by_their_weights(wishes, workers, weights):
    wishes = [Wish(w.client, w.at, w.tokens, w.output, w.topic, weights[w.client]) for w in wishes]
    made = played(wishes, workers=workers)
    most = largest(wishes, slots=2 * workers)
    for (f, g), difference in unfairness(made.samples, weights).items():
        assert difference <= 2 * most / min(weights[f], weights[g])


@settings(max_examples=20, deadline=None)
@given(wishes=BACKLOGS, weights=WEIGHTS)
def test_counters_of_those_who_wait_stay_close(wishes, weights):
    wishes = [Wish(w.client, w.at, w.tokens, w.output, w.topic, weights[w.client]) for w in wishes]
    most = largest(wishes, slots=2) / min(weights.values())

    def check(fleet):
        waiting = [fleet.queue.counter(name) for name in {one.client for one in fleet.queue.waiting()}]
        assert not waiting or max(waiting) - min(waiting) <= most

    fleet = SteppedFleet("vtc", slots=2)
    fleet.checks.append(check)
    fleet.play(wishes)


@settings(max_examples=20, deadline=None)
@given(
    wishes=BACKLOGS,
    workers=st.integers(2, 3),
    placement=st.sampled_from(["session_affinity", "cache_aware", "fairlead"]),
    overdraft=st.sampled_from([0, 50, 400]),
)
def test_passing_those_that_wait_by_choice_costs_fairness_the_overdraft(wishes, workers, placement, overdraft):
    wishes = [*wishes, *wishes]
    made = played(wishes, workers=workers, placement=placement, hold_s=1000.0, overdraft=overdraft)
    worst = max(unfairness(made.samples).values(), default=0.0)
    assert worst <= 2 * (largest(wishes, slots=2 * workers) + overdraft)


@settings(max_examples=20, deadline=None)
@given(wishes=BACKLOGS, users=st.integers(1, 4))
def test_siblings_are_served_alike_at_each_level(wishes, users):
    wishes = [Wish(f"{w.client}/{n % users}", w.at, w.tokens, w.output, w.topic) for n, w in enumerate(wishes)]
    made = played(wishes)
    for depth in (1, 2):
        for (one, other), difference in unfairness(at_level(made.samples, depth)).items():
            if one.rpartition("/")[0] == other.rpartition("/")[0]:
                assert difference <= 2 * largest(wishes, slots=2), (depth, one, other)


def two_kinds(number=40):
    """One client reads much and says little, the other the reverse: to charge only input favours the second."""
    reads = [Wish("reads", 0, 60, 1, topic=1) for _ in range(number)]
    writes = [Wish("writes", 0, 1, 30, topic=2) for _ in range(3 * number)]
    return reads + writes


def test_the_bound_tells_fair_from_unfair():
    """The mutation: output is not charged. The listener that measures the service knows better."""
    wishes = two_kinds()
    bound = paper_s_bound(wishes, slots=2)
    assert unfairness(played(wishes).samples)["reads", "writes"] <= bound
    assert unfairness(played(wishes, output_weight=0.0).samples)["reads", "writes"] > 2 * bound


def test_order_of_arrival_is_not_fair_by_this_measure():
    flood = [Wish("flood", 0, 60, 20) for _ in range(60)]
    wishes = [*flood, *(Wish("modest", 1, 60, 20, topic=1) for _ in range(30))]
    fleet = SteppedFleet("fcfs", slots=2).play(wishes)
    assert unfairness(fleet.measured.samples)["flood", "modest"] > paper_s_bound(wishes, slots=2)
    assert unfairness(played(wishes).samples)["flood", "modest"] <= paper_s_bound(wishes, slots=2)


def test_a_client_of_four_times_the_weight_is_served_four_times_as_much():
    light = [Wish("light", 0, 20, 10, topic=1) for _ in range(100)]
    heavy = [Wish("heavy", 0, 20, 10, topic=2, weight=4.0) for _ in range(200)]
    made = played(light + heavy)
    served, _ = next(s for s in reversed(made.samples) if {"light", "heavy"} <= s[1])
    assert served["heavy"] / served["light"] == pytest.approx(4.0, rel=0.05)


def test_no_request_starves_behind_a_flood_or_behind_newcomers():
    flood = [Wish("flood", at, 8, 4, topic=1) for at in range(120) for _ in range(2)]
    newcomers = [Wish(f"new {at}", at, 8, 4, topic=2) for at in range(0, 120, 2)]
    large = [Wish("modest", 20, 200, 30, topic=3), Wish("flood", 20, 200, 30, topic=4)]
    fleet = SteppedFleet("vtc", slots=2).play([*flood, *newcomers, *large])
    started = {(v.client, v.input_tokens): fleet.started[name] for name, v in fleet.views.items()}
    assert started["modest", 200] <= 40
    assert started["flood", 200] < fleet.now - 40


# -- the order, against the algorithm as printed


@dataclass
class Printed:
    """Algorithm 2 with lists and loops."""

    weights: dict
    counters: dict = field(default_factory=dict)
    waiting: list = field(default_factory=list)
    last: str | None = None

    def push(self, one):
        client, asking = one.client, {other.client for other in self.waiting}
        self.counters.setdefault(client, 0.0)
        if client not in asking:
            if asking:
                level = min(self.counters[name] for name in asking)
            else:
                level = 0.0 if self.last is None else self.counters[self.last]
            self.counters[client] = max(self.counters[client], level)
        self.waiting.append(one)

    def first(self):
        return min(self.waiting, key=lambda one: (self.counters[one.client], one.arrived, one.id))

    def admit(self, one):
        self.waiting.remove(one)
        if one.client not in {other.client for other in self.waiting}:
            self.last = one.client
        self.charge(one, one.input_tokens)

    def charge(self, one, service):
        self.counters[one.client] += service / self.weights[one.client]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "place", "place", "output"]),
        st.sampled_from(CLIENTS),
        st.sampled_from([1, 8, 40, 120]),
        st.sampled_from([1, 50, 5000]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, weights=WEIGHTS)
def test_it_chooses_as_the_printed_algorithm(steps, weights):
    made, printed, running = queue(), Printed(weights), []
    for number, (what, client, tokens, output) in enumerate(steps):
        if what == "push":
            one = request(f"r{number:03}", client, tokens, arrived=number, weight=weights[client])
            ask(made, one)
            printed.push(one)
        elif what == "output" and running:
            one = running[number % len(running)]
            made.on(Output(one, Placement("a"), output, 0.0))
            printed.charge(one, 2 * output)
        elif what == "place" and len(made):
            assert offered(made, now=number)[0] == printed.first().id
            one = printed.first()
            place(made, one)
            printed.admit(one)
            running.append(one)
        assert {name: made.counter(name) for name in printed.counters} == printed.counters


# -- case by case


def test_a_client_that_comes_back_is_lifted_to_the_least_of_those_that_wait():
    served = [request("a", "anna", tokens=10), request("b", "ben", tokens=900), request("c", "cora", tokens=500)]
    made = queue(*served, request("ben waits", "ben"), request("cora waits", "cora"))
    for one in served:
        place(made, one)
    assert made.counter("anna") == 10.0
    ask(made, request("anna returns", "anna"))
    assert made.counter("anna") == made.counter("cora") == 500.0


def test_where_none_waits_a_client_is_lifted_to_the_one_that_waited_last():
    made = queue()
    first, last = request("first", "anna", tokens=900), request("last", "ben", tokens=50)
    ask(made, first, last)
    place(made, first)
    place(made, last)
    made.on(Output(last, Placement("a"), 10, 0.0))
    ask(made, request("newcomer", "cora"))
    assert made.counter("cora") == made.counter("ben") == 70.0


def test_no_client_is_lowered_or_lifted_while_waiting():
    made = queue(request("one", "anna"))
    serve(made, request("served", "ben", tokens=300))
    ask(made, request("ben waits", "ben"), request("two", "anna"))
    assert (made.counter("anna"), made.counter("ben")) == (0.0, 300.0)


def test_one_that_fits_nowhere_reserves_a_worker_and_the_others_go_on():
    made = queue(request("large", "anna"), request("behind it", "anna"), request("small", "ben", arrived=1.0))
    serve(made, request("before", "ben", tokens=500))
    offers = list(made.candidates([worker("a")], 1.0))
    assert [(offer.request.id, offer.overdue) for offer in offers] == [("large", True), ("small", False)]


def test_with_patience_a_worker_is_reserved_after_so_long():
    made = queue(request("large", "anna"), request("small", "ben", arrived=1.0), patience_s=5.0)
    assert [offer.overdue for offer in made.candidates([worker("a")], 4.0)] == [False, False]
    assert [offer.overdue for offer in made.candidates([worker("a")], 5.0)] == [True, False]


def test_on_one_worker_nothing_else_gets_the_room_that_the_first_waits_for():
    """As printed: the client with the least counter asks for three sequences, and two slots are there."""
    small = [Wish("small", 0, 20, 10, topic=1) for _ in range(20)]
    large = Wish("large", 5, 20, 10, topic=2, more=(("sequences", 2),))
    fleet = SteppedFleet("vtc", slots=2, make=lambda _: queue()).play([*small, large])
    started = {one.client: fleet.started[name] for name, one in fleet.views.items() if one.client == "large"}
    assert started["large"] <= 20


def test_a_full_worker_s_clients_do_not_hide_the_others():
    made = queue(request("pinned", "anna", pinned="a"))
    serve(made, request("before", "ben", tokens=500))
    ask(made, request("anywhere", "ben", arrived=1.0))
    assert offered(made, now=2.0, workers=[worker("a", room=full()), worker("b")]) == ["anywhere"]


def test_charging_what_had_to_be_computed_leaves_hits_free():
    for charge, service in (("input", 40.0), ("extend", 10.0)):
        made = queue(charge=charge)
        serve(made, request("hit"), matched=30)
        assert made.counter("anna") == service


@pytest.mark.parametrize("charge", ["input", "extend"])
@pytest.mark.parametrize(
    ("outcome", "usage", "expected"),
    [
        (Outcome.COMPLETED, Usage(44, 3, 24), {"input": 50.0, "extend": 26.0}),
        (Outcome.COMPLETED, Usage(44, 3), {"input": 50.0, "extend": 20.0}),
        (Outcome.COMPLETED, None, {"input": 46.0, "extend": 16.0}),
        (Outcome.CANCELLED, None, {"input": 46.0, "extend": 16.0}),
        (Outcome.FAILED, None, {"input": 46.0, "extend": 16.0}),
        (Outcome.REFUSED, None, {"input": 0.0, "extend": 0.0}),
        (None, None, {"input": 0.0, "extend": 0.0}),
    ],
)
def test_what_was_charged_becomes_what_was_done(charge, outcome, usage, expected):
    made, one = queue(charge=charge), request("one")
    serve(made, one, matched=30)
    made.on(Output(one, Placement("a"), 3, 0.0))
    leave(made, one, outcome, usage)
    assert made.counter("anna") == expected[charge]
    leave(made, one, outcome, usage)
    assert made.counter("anna") == expected[charge], "settled twice"


def test_a_request_that_never_ran_costs_nothing():
    made, one = queue(), request("one")
    ask(made, one)
    made.remove(one)
    leave(made, one, Outcome.CANCELLED, ran=False)
    assert made.counter("anna") == 0.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), binding=st.sampled_from(["late", "early"]))
def test_when_all_requests_have_left_nothing_is_open(seed, binding):
    """Failures, cancellations and refusals in any order: no charge is left open, no account says it runs."""
    chance = random.Random(seed)
    fleet = SteppedFleet("vtc", workers=2, binding=binding, make=lambda _: queue())
    made, live = fleet.scheduler, {}
    for number in range(60):
        one = request(f"r{number}", chance.choice(CLIENTS), topic=chance.randrange(3), arrived=number)
        live[one.id] = made.submit(one, float(number))
        for decision in made.decisions(float(number)):
            if decision.request.id in live:
                live[decision.request.id] = decision.ticket
        end(made, chance, live, chance.choice(sorted(live)), float(number))
    for name in sorted(live):
        made.cancel(live[name], 99.0)
    made.decisions(100.0)
    assert made.faults.count == 0, made.faults.last
    assert len(fleet.queue) == 0
    assert (fleet.queue.accounts.charges, fleet.queue._lanes) == ({}, {})
    assert all((account.open, account.branches) == (0, {}) for account in fleet.queue.accounts)


def end(made: Scheduler, chance, live, name, now):
    what = chance.choice(["settle", "settle", "refuse", "cancel", "fail", "output"])
    if what == "output":
        made.output(live[name], 3, now)
    elif what == "fail":
        again = made.attempt_failed(live[name], chance.choice(["w0", "w1"]), AttemptFailure.LOST, 0, now)
        live[name] = again or live[name]
    elif what == "cancel":
        made.cancel(live.pop(name), now)
    else:
        outcome = Outcome.REFUSED if what == "refuse" else Outcome.COMPLETED
        made.settled(live.pop(name), Usage(40, 6, 8), now, outcome)
