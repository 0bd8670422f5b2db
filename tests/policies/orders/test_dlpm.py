"""DLPM: its theorem over random workloads, its order against the printed algorithm, its accounts case by case."""

import math
import random
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, at_level, head_starts, largest, unfairness, view
from views import full, worker

from policies.events import Left, Output, Placed, Queued
from policies.knowledge import Knowledge
from policies.model import AttemptFailure, Outcome, Placement, Reason, Usage, WorkerFacts
from policies.orders.dlpm import Dlpm, Settings
from policies.orders.kit import accounts, fair_queue
from policies.protocol import PlacementPolicy

QUANTUM = 100
LORA = (("served_name", "lora"),)
CLIENTS = ["anna", "ben", "cora"]
ORDERS = ["least_served", "lpm", "svf", "fcfs"]
WORKLOADS = st.lists(
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


def making(**fields):
    return lambda knowledge: Dlpm(Settings(**{"quantum": QUANTUM, "order": "lpm", **fields}), knowledge)


def bound(wishes, slots, overdraft=0):
    """The theorem's, for weights of 1."""
    return 2 * (largest(wishes, slots=slots) + QUANTUM + overdraft)


def worst(samples):
    return max(unfairness(samples).values(), default=0.0)


def two_kinds(number=30):
    """One client reads much and says little, the other the reverse: to charge only input favours the second."""
    reads = [Wish("reads", 0, 60, 1, topic=topic) for topic in range(number)]
    writes = [Wish("writes", 0, 1, 30, topic=topic) for topic in range(3 * number)]
    return reads + writes


# -- the theorems


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=15, deadline=None)
@given(wishes=WORKLOADS, patience_s=st.sampled_from([0.0, 10.0]), forget_idle=st.booleans())
def test_on_one_worker_clients_that_wait_are_served_alike(order, wishes, patience_s, forget_idle):
    make = making(order=order, patience_s=patience_s, forget_idle=forget_idle)
    played = SteppedFleet("dlpm", slots=2, make=make).play(wishes)
    assert worst(played.measured.samples) <= bound(wishes, 2)


@settings(max_examples=15, deadline=None)
@given(
    wishes=WORKLOADS,
    workers=st.integers(2, 3),
    placement=st.sampled_from(["fairlead", "cache_aware", "round_robin"]),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 4.0]) for name in CLIENTS}),
)
def test_over_a_fleet_clients_that_wait_are_served_by_their_weights(wishes, workers, placement, weights):
    wishes = [Wish(w.client, w.at, w.tokens, w.output, w.topic, weights[w.client]) for w in wishes]
    played = SteppedFleet("dlpm", workers=workers, slots=2, placement=placement, make=making()).play(wishes)
    most = largest(wishes, slots=2 * workers)
    for (f, g), difference in unfairness(played.measured.samples, weights).items():
        assert difference <= most / weights[f] + most / weights[g] + 2 * QUANTUM


@settings(max_examples=15, deadline=None)
@given(wishes=WORKLOADS, workers=st.integers(1, 2))
def test_no_client_gets_much_more_than_one_that_waits(wishes, workers):
    played = SteppedFleet("dlpm", workers=workers, slots=2, make=making()).play(wishes)
    assert max(head_starts(played.measured.samples).values(), default=0.0) <= bound(wishes, 2 * workers)


@settings(max_examples=15, deadline=None)
@given(wishes=WORKLOADS, quantum=st.sampled_from([7, 100, 1000]), forget_idle=st.booleans())
def test_a_deficit_stays_between_the_largest_charge_and_a_quantum(wishes, quantum, forget_idle):
    made = SteppedFleet("dlpm", slots=2, make=making(quantum=quantum, forget_idle=forget_idle))
    least = -largest(wishes, slots=2)

    def check(fleet):
        assert all(least < (fleet.queue.deficit(name) or 0.0) <= quantum for name in CLIENTS)

    made.checks.append(check)
    made.play(wishes)


def test_the_bound_is_the_paper_s_and_tells_fair_from_unfair():
    """The mutation: output is not charged. The listener that measures the service knows better."""
    wishes = two_kinds()
    fair = SteppedFleet("dlpm", slots=2, make=making()).play(wishes)
    assert worst(fair.measured.samples) <= bound(wishes, 2)
    unfair = SteppedFleet("dlpm", slots=2, make=making(output_weight=0.0)).play(wishes)
    assert worst(unfair.measured.samples) > 2 * bound(wishes, 2)


# -- the theorem with several workers: requests that wait by choice, workers that others use


@settings(max_examples=20, deadline=None)
@given(
    wishes=WORKLOADS,
    workers=st.integers(2, 3),
    placement=st.sampled_from(["session_affinity", "cache_aware", "fairlead", "consistent_hash"]),
    overdraft=st.sampled_from([0, 50, 400]),
    order=st.sampled_from(ORDERS),
    window_tokens=st.sampled_from([10**9, 30]),
)
def test_passing_those_that_wait_by_choice_costs_fairness_the_overdraft(window_tokens, wishes, **fields):
    wishes, overdraft, workers = [*wishes, *wishes], fields["overdraft"], fields["workers"]
    fleet = {
        "workers": workers,
        "placement": fields["placement"],
        "hold_s": 1000.0,
        "window_tokens": window_tokens,
    }
    make = making(overdraft=overdraft, order=fields["order"])
    played = SteppedFleet("dlpm", make=make, **fleet).play(wishes)
    assert worst(played.measured.samples) <= bound(wishes, 2 * workers, overdraft)


@pytest.mark.parametrize("workers", [1, 3])
def test_prompts_that_wait_for_the_prefill_window_are_not_passed_by_those_whose_turn_is_later(workers):
    """One client reads long prompts, another short ones that fit into what the window leaves."""
    long = [Wish("long", 0, 120, 2, topic=n) for n in range(60)]
    short = [Wish("short", 0, 10, 2, topic=60 + n % 60) for n in range(900)]
    fleet = {"workers": workers, "slots": 8, "window_tokens": 60}
    played = SteppedFleet("dlpm", make=making(patience_s=1e9), **fleet).play([*long, *short])
    assert worst(played.measured.samples) <= bound([*long, *short], 8 * workers)


class _Home(PlacementPolicy):
    """Each client has one worker that it would rather wait for."""

    def rank(self, question):
        home = {"patient": "w0", "eager": "w1"}[question.request.client]
        ranked = [(worker, float(worker.id != home), Reason.HIT) for worker in question.workers]
        return sorted(ranked, key=itemgetter(1))


def waiting_by_choice(**fields):
    """One client waits for the one worker it wants, however long that takes; another uses what that leaves."""
    wishes = [Wish("patient", 0, 1, 30) for _ in range(60)]
    wishes += [Wish("eager", n // 150, 120, 6, topic=n % 150) for n in range(450)]
    fleet = SteppedFleet("dlpm", workers=2, placement=_Home(), hold_s=1000.0, make=making(**fields)).play(wishes)
    return fleet.measured, wishes


@pytest.mark.parametrize("overdraft", [0, 300, 1000])
def test_room_beside_which_an_earlier_request_waits_is_used_within_the_overdraft(overdraft):
    measured, wishes = waiting_by_choice(overdraft=overdraft)
    assert overdraft / 2 <= worst(measured.samples) <= bound(wishes, 4, overdraft)
    assert measured.borrowed


def test_without_a_limit_on_what_is_borrowed_the_bound_breaks():
    """The mutation: what is not due may always pass."""
    measured, wishes = waiting_by_choice(overdraft=10**9)
    assert worst(measured.samples) > 2 * bound(wishes, 4, 1000)


def two_names():
    """Two clients share one worker, a third has another one to itself and uses up rounds by the dozen."""
    hits = [Wish("hits", 0, 40, 3, topic=1, more=(("served_name", "lora"),)) for _ in range(200)]
    cold = [Wish("cold", 0, 40, 3, topic=n % 9 + 2, more=(("served_name", "lora"),)) for n in range(200)]
    other = [Wish("other", 0, 40, 1) for _ in range(900)]
    lines = [frozenset({"lora"}), frozenset({"base"})]
    return [*hits, *cold, *other], lines


def test_rounds_that_are_used_up_elsewhere_do_not_break_the_bound():
    wishes, lines = two_names()
    played = SteppedFleet("dlpm", served_names=lines, make=making(patience_s=1e9, arrears=10**9)).play(wishes)
    assert unfairness(played.measured.samples)["cold", "hits"] <= bound(wishes, 2)


def test_that_bound_breaks_if_a_claim_lapses_when_others_start_elsewhere(monkeypatch):
    """The mutation: rounds refill all that wait, due or not, wherever the request that starts them runs."""

    def start(self, account, until):
        original(self, account, until)
        for other in self.accounts:
            if other.parent is account.parent:
                other.counter = self._rounds.lifted(other.counter, account.parent.clock)

    original = Dlpm.start
    monkeypatch.setattr(Dlpm, "start", start)
    wishes, lines = two_names()
    played = SteppedFleet("dlpm", served_names=lines, make=making(patience_s=1e9, arrears=10**9)).play(wishes)
    assert unfairness(played.measured.samples)["cold", "hits"] > bound(wishes, 2)


def test_a_claim_is_cut_to_what_the_setting_allows():
    """A client that could not start for long does not hold up the others for as long."""
    made = queue(arrears=2 * QUANTUM)
    made.push(request("waits", "anna"))
    made.push(request("waits as well", "anna"))
    for number in range(50):
        start(made, request(f"r{number}", "ben"), extend=QUANTUM)
    assert made.deficit("anna") == 3 * QUANTUM
    start(made, request("waits", "anna"), extend=0)
    assert made.deficit("anna") == 3 * QUANTUM


def test_a_borrowed_start_is_charged_and_starts_no_later_round():
    made = queue()
    start(made, request("before", "ben"), extend=150)
    for client in ("anna", "ben"):
        made.push(request(client, client))
    assert (made.deficit("anna"), made.deficit("ben")) == (0, -50)
    one = request("ben", "ben")
    made.remove(one)
    made.on(Placed(one, Placement("a"), 0, 200, 0.0, borrowed=True))
    made.push(request("newcomer", "cora"))
    assert (made.deficit("anna"), made.deficit("cora")) == (100, 0)
    assert made.deficit("ben") == -150
    assert offered(made) == ["anna", "newcomer"]


# -- the theorem at both levels of a tree


PARTIES = ["acme/ann", "acme/ben", "acme/cleo", "bolt/dan", "bolt/eve"]
TREES = st.lists(
    st.builds(
        Wish,
        client=st.sampled_from(PARTIES),
        at=st.sampled_from([0, 0, 0, 1, 5, 20]),
        tokens=st.sampled_from([1, 10, 40, 120]),
        output=st.sampled_from([1, 3, 15, 30]),
        topic=st.integers(0, 3),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(
    wishes=TREES,
    workers=st.integers(1, 2),
    placement=st.sampled_from(["least_loaded", "session_affinity"]),
    overdraft=st.sampled_from([0, 200]),
    order=st.sampled_from(ORDERS),
)
def test_siblings_are_served_alike_at_each_level(wishes, workers, placement, overdraft, order):
    make = making(overdraft=overdraft, order=order)
    fleet = SteppedFleet("dlpm", workers=workers, placement=placement, hold_s=1000.0, make=make).play(wishes)
    most = bound(wishes, 2 * workers, overdraft)
    for depth in (1, 2):
        for (one, other), difference in unfairness(at_level(fleet.measured.samples, depth)).items():
            if one.rpartition("/")[0] == other.rpartition("/")[0]:
                assert difference <= most, (depth, one, other)


@settings(max_examples=15, deadline=None)
@given(wishes=TREES, weights=st.tuples(*[st.sampled_from([0.5, 1.0, 4.0])] * 3))
def test_each_level_has_weights_of_its_own(wishes, weights):
    acme, ann, eve = weights
    of = {"acme": acme, "bolt": 1.0, "acme/ann": ann, "bolt/eve": eve}
    wishes = [
        Wish(w.client, w.at, w.tokens, w.output, w.topic, more=(("weights", levels(w.client, of)),))
        for w in wishes
    ]
    fleet = SteppedFleet("dlpm", make=making()).play(wishes)
    most = largest(wishes, slots=2)
    for depth in (1, 2):
        for (f, g), difference in unfairness(at_level(fleet.measured.samples, depth), of).items():
            if f.rpartition("/")[0] == g.rpartition("/")[0]:
                assert difference <= most / of.get(f, 1.0) + most / of.get(g, 1.0) + 2 * QUANTUM


def levels(client, of):
    return of.get(client.partition("/")[0], 1.0), of.get(client, 1.0)


def sybil(names, levels=1):
    """One key asks for three times what another does, under a number of user names."""
    mallory = [Wish(f"mallory/{n % names}", n // 3, 60, 8, topic=2) for n in range(900)]
    anna = [Wish("anna/0", n, 60, 8, topic=1) for n in range(300)]
    make = making(order="least_served")
    fleet = SteppedFleet("dlpm", slots=4, make=make)
    if not levels:
        flat = fleet.submit
        fleet.submit = lambda wish: flat(replace(wish, client=wish.client.replace("/", ":")))
    outputs, due = {}, sorted([*mallory, *anna], key=lambda wish: wish.at)
    while fleet.now < 300:
        while due and due[0].at <= fleet.now:
            wish = due.pop(0)
            outputs[f"r{len(outputs):04}"] = wish.output
            fleet.submit(wish)
        fleet.step(outputs)
    of_anna = sum(service for name, service in fleet.measured.served.items() if name.startswith("anna"))
    return of_anna / sum(fleet.measured.served.values())


@pytest.mark.parametrize("names", [1, 30, 64])
def test_a_key_gains_nothing_by_the_number_of_its_users(names):
    assert sybil(names) == pytest.approx(0.5, abs=0.03)


def test_where_users_stand_beside_keys_the_one_with_many_takes_most():
    """The mutation: one level."""
    assert sybil(30, levels=0) < 0.2


def test_output_charged_to_users_alone_breaks_the_bound_between_keys(monkeypatch):
    """The mutation: a charge stops at the lowest level."""

    def add(account, service, recent, now):
        account.counter += service / account.weight

    wishes = [Wish(f"{w.client}/{n % 3}", w.at, w.tokens, w.output, w.topic) for n, w in enumerate(two_kinds(40))]
    fair = SteppedFleet("dlpm", make=making()).play(wishes).measured.samples
    assert worst(at_level(fair, 1)) <= bound(wishes, 2)
    monkeypatch.setattr(accounts, "_add", add)
    unfair = SteppedFleet("dlpm", make=making()).play(wishes).measured.samples
    assert worst(at_level(unfair, 1)) > bound(wishes, 2)


# -- what does not fit, and what is passed over


def test_a_request_that_fits_nowhere_does_not_stop_the_refills():
    """Nine sequences on workers with eight slots: the client keeps its credit, and the fleet stays full."""
    flood = [Wish(f"c{n % 4}", n // 2, 20, 30, topic=n % 3) for n in range(600)]
    large = Wish("large", 50, 20, 1, more=(("sequences", 9),))
    busy = []

    def check(fleet):
        if 60 <= fleet.now <= 200:
            busy.append(sum(row.sequences for row in fleet.scheduler.snapshot().workers))

    fleet = SteppedFleet("dlpm", workers=6, slots=8, make=making(patience_s=1e9))
    fleet.checks.append(check)
    fleet.play([*flood, large])
    assert min(busy) == 48


@pytest.mark.parametrize("order", ORDERS)
def test_a_large_request_holds_one_worker_of_a_fleet_and_no_more(order):
    flood = [Wish(f"c{n % 4}", n // 2, 20, 30, topic=n % 3) for n in range(600)]
    large = Wish("large", 50, 20, 1, more=(("sequences", 9),))
    busy = []

    def check(fleet):
        if 50 <= fleet.now <= 200:
            busy.append(sum(row.sequences for row in fleet.scheduler.snapshot().workers))

    fleet = SteppedFleet("dlpm", workers=6, slots=8, make=making(order=order, patience_s=10.0))
    fleet.checks.append(check)
    fleet.play([*flood, large])
    assert min(busy) >= 40
    (started,) = [fleet.started[name] for name, one in fleet.views.items() if one.client == "large"]
    assert started <= 50 + 10 + 40


def test_order_of_arrival_is_not_fair_by_this_measure():
    flood = [Wish("flood", 0, 60, 20) for _ in range(60)]
    wishes = [*flood, *(Wish("modest", 1, 60, 20, topic=1) for _ in range(20))]
    assert worst(SteppedFleet("fcfs").play(wishes).measured.samples) > bound(wishes, 2)
    assert worst(SteppedFleet("dlpm", make=making()).play(wishes).measured.samples) <= bound(wishes, 2)


@pytest.mark.parametrize("order", ORDERS)
def test_no_request_starves_behind_a_flood(order):
    """A large cold request of a modest client, while another floods with short ones that are all hits."""
    flood = [Wish("flood", at, 8, 4, topic=1) for at in range(100) for _ in range(3)]
    large = Wish("modest", 20, 120, 30, topic=2)
    cold = Wish("flood", 20, 120, 30, topic=3)
    played = SteppedFleet("dlpm", slots=2, make=making(order=order, patience_s=30.0)).play([*flood, large, cold])
    started = {(v.client, v.input_tokens): played.started[name] for name, v in played.views.items()}
    # Both gain a quantum at a time, and the flood uses up two at 4.5 a second before it is the others' turn.
    assert started["modest", 120] <= 20 + 2 * QUANTUM / 4.5 + 4
    assert started["flood", 120] <= played.now - 35  # not at the end, although everything else is a hit


@settings(max_examples=20, deadline=None)
@given(wishes=WORKLOADS, order=st.sampled_from(ORDERS), workers=st.integers(1, 3))
def test_no_slot_is_empty_while_a_request_waits(wishes, order, workers):
    def check(fleet):
        free = [row.id for row in fleet.scheduler.snapshot().workers if row.room.slots_free > 0]
        assert not (len(fleet.queue) and free)

    made = SteppedFleet("dlpm", workers=workers, make=making(order=order))
    made.checks.append(check)
    made.play(wishes)


@pytest.mark.parametrize("queue", ["dlpm", "lpm", "priority", "fcfs"])
@settings(max_examples=15, deadline=None)
@given(
    wishes=WORKLOADS,
    mores=st.lists(
        st.sampled_from(
            [(), (("served_name", "lora"),), (("pinned", "w0"),), (("pinned", "w1"), ("priority", 5))]
        ),
        min_size=1,
        max_size=7,
    ),
)
def test_a_full_worker_does_not_keep_others_idle(queue, wishes, mores):
    """Clients with credit, or many requests at the head, that only a full worker can serve hide no others."""
    wishes = [
        Wish(w.client, w.at, w.tokens, w.output, w.topic, more=mores[i % len(mores)]) for i, w in enumerate(wishes)
    ]

    def check(fleet):
        for row in fleet.scheduler.snapshot().workers:
            if row.room.slots_free > 0:
                assert not any(row.facts.serves(one) for one in fleet.queue.waiting())

    lines = [frozenset({"base", "lora"}), frozenset({"base"})]
    made = SteppedFleet(queue, served_names=lines, slots=1)
    made.checks.append(check)
    made.play(wishes)


# -- the order, against the algorithm as printed


@dataclass
class Printed:
    """Algorithm 1 with lists and loops: deficits, the client list, refills one by one, a sort of everything."""

    quantum: float
    deficits: dict = field(default_factory=dict)
    waiting: list = field(default_factory=list)

    def push(self, request):
        self.deficits.setdefault(request.client, 0.0)
        self.waiting.append(request)

    def refill(self):
        while not any(self.deficits[one.client] > 0 for one in self.waiting):
            for client, deficit in self.deficits.items():
                if deficit <= 0:
                    self.deficits[client] += self.quantum

    def first(self, match):
        """The request that is admitted next, if it fits; refills happen only when it does."""
        before = dict(self.deficits)
        self.refill()
        order = sorted(self.waiting, key=lambda one: (-match(one), one.arrived, one.id))
        chosen = next(one for one in order if self.deficits[one.client] > 0)
        eligible = {client for client, deficit in self.deficits.items() if deficit > 0}
        self.deficits = before
        return chosen, eligible

    def admit(self, request, extend):
        self.refill()
        self.waiting.remove(request)
        self.deficits[request.client] -= extend


CACHED = [b"", b"A" * 20 + b"b" * 3, b"B" * 60]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "place", "place", "output"]),
        st.sampled_from(CLIENTS),
        st.sampled_from([1, 8, 40, 120]),
        st.integers(0, 3),
        st.sampled_from([1, 50, 5000]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, quantum=st.sampled_from([3, 100, 1024]))
def test_it_chooses_as_the_printed_algorithm(steps, quantum):
    knowledge = Knowledge()
    unbounded = {"depth": 10**6, "window": 10**6, "patience_s": 1e9}
    made = Dlpm(Settings(quantum=quantum, order="lpm", overdraft=0, **unbounded), knowledge)
    printed, running, workers = Printed(quantum), [], [worker("a"), worker("b")]

    def match(request):
        return max(knowledge.prefixes.match(request).values(), default=0)

    for number, (what, client, tokens, topic, output) in enumerate(steps):
        if what == "push":
            one = view(f"r{number:03}", Wish(client, number, tokens, 5, topic), float(number))
            made.push(one)
            made.on(Queued(one, float(number)))
            printed.push(one)
        elif what == "output" and running:
            one = running[number % len(running)]
            made.on(Output(one, Placement("a"), output, 0.0))
            printed.deficits[one.client] -= 2 * output
        elif what == "place" and len(made):
            offers = list(made.candidates(workers, 1e3))
            chosen, eligible = printed.first(match)
            assert offers[0].request is chosen
            due = {offer.request.client for offer in offers if offer.may_pass}
            assert due == {one.client for one in printed.waiting if one.client in eligible}
            assert {offer.request.id for offer in offers} == {one.id for one in printed.waiting}
            extend = max(1, chosen.input_tokens - match(chosen))
            made.remove(chosen)
            made.on(Placed(chosen, Placement("a"), match(chosen), extend, 0.0))
            printed.admit(chosen, extend)
            knowledge.prefixes.insert("ab"[number % 2], chosen, float(number))
            running.append(chosen)
        assert {client: made.deficit(client) for client in printed.deficits} == printed.deficits


@settings(max_examples=60)
@given(
    debts=st.dictionaries(st.sampled_from(CLIENTS), st.integers(0, 20_000), min_size=2),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.25, 1.0, 2.0]) for name in CLIENTS}),
)
def test_refills_at_once_are_refills_one_by_one(debts, weights):
    made = queue(quantum=64)
    for client, debt in debts.items():
        start(made, request(f"{client} before", client, weight=weights[client]), extend=debt)
    literal = {client: made.deficit(client) for client in debts}
    asked = [request(client, client, weight=weights[client]) for client in debts]
    for one in asked:
        made.push(one)
    chosen = next(made.candidates([worker("a")], 0.0)).request
    while not any(deficit > 0 for deficit in literal.values()):
        for client, deficit in literal.items():
            literal[client] = deficit + 64 * weights[client] if deficit <= 0 else deficit
    assert literal[chosen.client] > 0
    start(made, chosen, extend=0)
    assert {client: made.deficit(client) for client in debts} == literal


def test_a_debt_of_any_size_is_refilled_in_no_time():
    made = queue(quantum=1)
    start(made, request("before"), extend=10**12)
    made.push(request("after"))
    assert [offer.request.id for offer in made.candidates([worker("a")], 0.0)] == ["after"]


def test_what_has_waited_long_comes_before_longer_matches_but_not_before_its_turn():
    knowledge = Knowledge()
    made = Dlpm(Settings(quantum=QUANTUM, order="lpm", patience_s=10.0), knowledge)
    hit, cold = request("hit", arrived=1.0, topic=1), request("cold", arrived=0.0)
    knowledge.prefixes.insert("a", hit, 0.0)
    debtor = request("debtor", "ben", arrived=0.0)
    start(made, request("before", "ben"), extend=500)
    for one in (hit, cold, debtor):
        made.push(one)
    start(made, request("credit"), extend=0)
    assert offered(made, 9.0) == ["hit", "cold", "debtor"]
    assert offered(made, 10.5) == ["cold", "hit", "debtor"]
    assert [offer.overdue for offer in made.candidates([worker("a")], 10.5)] == [True, False, False]


def test_of_one_client_only_a_few_are_offered_and_of_all_as_many_as_one_step_may_look_at(monkeypatch):
    made = queue(depth=2, window=3)
    for client in ("a", "b", "c"):
        for number in range(4):
            made.push(request(f"{client}{number}", client, arrived=float(number)))
    assert sorted(offered(made)) == ["a0", "a1", "b0", "b1", "c0", "c1"]
    monkeypatch.setattr(fair_queue, "_MOST", 5)
    assert len(offered(made)) == 5


def test_what_is_cached_counts_as_nothing_for_the_smallest_volume():
    knowledge = Knowledge()
    made = Dlpm(Settings(order="svf"), knowledge)
    long, short = request("long", tokens=120, topic=1), request("short", tokens=60, topic=2)
    for one in (long, short):
        made.push(one)
    assert offered(made) == ["short", "long"]
    knowledge.prefixes.insert("a", long, 0.0)
    assert offered(made) == ["long", "short"]


@settings(max_examples=60)
@given(
    past=st.lists(
        st.tuples(st.sampled_from(CLIENTS), st.sampled_from([0.0, 1.0, 30.0, 700.0, 3000.0]), st.integers(1, 900)),
        min_size=2,
        max_size=12,
    ),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 2.0]) for name in CLIENTS}),
)
def test_the_client_with_the_least_recent_service_comes_first(past, weights):
    """Service fades with time, whatever form the accounts keep it in."""
    made, now, given = queue(order="least_served", quantum=10**6, overdraft=0), 0.0, []
    for number, (client, gap, extend) in enumerate(past):
        now += gap
        start(made, request(str(number), client, weight=weights[client]), extend=extend, now=now)
        given.append((client, now, extend))
    for client in CLIENTS:
        made.push(request(client, client, weight=weights[client], arrived=now))
    late = dict.fromkeys(CLIENTS, 0.0)
    for client, at, extend in given:
        late[client] += extend * math.exp((at - now) / accounts.RECENT_S) / weights[client]
    offers = made.candidates([worker("a")], now)
    shown = [late[offer.request.client] for offer in offers if offer.may_pass]
    assert all(one <= other * (1 + 1e-9) + 1e-12 for one, other in pairwise(shown))


# -- the accounts


def request(name, client="anna", *, arrived=0.0, tokens=40, topic=0, **fields):
    weight = fields.pop("weight", 1.0)
    return view(name, Wish(client, 0, tokens, 5, topic, weight, tuple(fields.items())), arrived)


def queue(**fields):
    return Dlpm(Settings(**{"quantum": QUANTUM, "order": "lpm", **fields}), Knowledge())


def offered(made, now=0.0):
    return [offer.request.id for offer in made.candidates([worker("a")], now)]


def start(made, one, *, extend, matched=0, now=0.0):
    if all(other is not one for other in made.waiting()):
        made.push(one)
    made.remove(one)
    made.on(Placed(one, Placement("a"), matched, extend, now))


def leave(made, one, outcome, usage=None):
    made.on(Left(one, Placement("a"), outcome, usage, 1.0))


def running(extend=40, matched=0, output=0, **fields):
    """A queue with one request that runs, and has been refilled once."""
    made, one = queue(**fields), request("one")
    start(made, one, extend=extend, matched=matched)
    if output:
        made.on(Output(one, Placement("a"), output, 0.5))
    assert made.deficit("anna") == QUANTUM - extend - 2 * output
    return made, one


def test_what_is_computed_is_charged_at_once_and_output_as_it_comes():
    running(extend=30, output=7)


def test_a_failed_attempt_is_given_back_whole_with_its_predicted_output():
    made, one = running(extend=40, output=25)
    leave(made, one, None)
    assert made.deficit("anna") == QUANTUM


def test_what_a_worker_refused_cost_nothing():
    made, one = running(extend=40)
    leave(made, one, Outcome.REFUSED, Usage(0, 0))
    assert made.deficit("anna") == QUANTUM


def test_what_is_cancelled_stays_charged():
    made, one = running(extend=40, output=5)
    leave(made, one, Outcome.CANCELLED)
    assert made.deficit("anna") == QUANTUM - 50


def test_an_answer_that_broke_off_stays_charged():
    made, one = running(extend=40, output=5)
    leave(made, one, Outcome.FAILED)
    assert made.deficit("anna") == QUANTUM - 50


@pytest.mark.parametrize(
    ("usage", "computed"),
    [
        (Usage(40, 5, 16), 24),
        (Usage(40, 5, 0), 40),
        (Usage(40, 5), 30),  # the worker does not say what was cached: what was expected
        (Usage(90, 5), 80),  # but it says how long the prompt really was
        (Usage(0, 5), 30),
        (Usage(5, 5, 16), 0),
    ],
)
def test_the_end_corrects_the_charge_to_what_was_computed(usage, computed):
    made, one = running(extend=30, matched=10, output=5)
    leave(made, one, Outcome.COMPLETED, usage)
    assert made.deficit("anna") == QUANTUM - computed - 10


def test_events_of_attempts_that_were_never_placed_here_move_nothing():
    made, _ = running(extend=40)
    stranger = request("stranger")
    made.on(Output(stranger, Placement("a"), 100, 0.0))
    leave(made, stranger, Outcome.COMPLETED, Usage(5, 5, 0))
    assert made.deficit("anna") == QUANTUM - 40
    assert made.accounts.find("anna").open == 1


def test_a_client_that_comes_back_still_owes_what_it_owed():
    made, one = running(extend=1000)
    leave(made, one, Outcome.COMPLETED, Usage(1000, 0))
    assert made.deficit("anna") == QUANTUM - 1000
    made.push(request("two"))
    made.push(request("three", "ben", arrived=5.0))
    assert offered(made) == ["three", "two"]


def test_where_idle_clients_leave_debt_and_credit_go_with_them():
    for extend in (10, 1000):
        made, one = running(extend=extend, forget_idle=True)
        leave(made, one, Outcome.COMPLETED, Usage(extend, 0))
        made.push(request("two"))
        assert made.deficit("anna") == 0.0


def test_a_client_with_running_or_failed_requests_is_not_idle():
    made, one = running(extend=1000, forget_idle=True)
    made.push(request("two"))
    assert made.deficit("anna") == QUANTUM - 1000
    leave(made, one, None)
    assert made.deficit("anna") == QUANTUM
    made.remove(request("two"))


def test_a_turn_that_was_waited_for_is_not_lost_when_the_queue_empties():
    """Where idle clients leave, the last request of a client is not idleness: no account is refilled early."""
    made = queue(forget_idle=True)
    start(made, request("debt", "ben"), extend=350)
    start(made, request("anna's"), extend=10)
    made.push(request("last", "ben"))
    start(made, request("last", "ben"), extend=0)
    assert made.deficit("ben") == QUANTUM - 350 + 3 * QUANTUM
    assert made.deficit("anna") == QUANTUM - 10


def test_a_full_worker_keeps_its_clients_credit_and_lets_others_pass():
    made = queue()
    made.push(request("pinned", "anna", pinned="a"))
    start(made, request("credit", "anna"), extend=0)
    start(made, request("debt", "ben"), extend=900)
    made.push(request("anywhere", "ben", arrived=1.0))
    a, b = worker("a"), worker("b")
    assert [offer.request.id for offer in made.candidates([a, b], 0.0)] == ["pinned", "anywhere"]
    assert [offer.request.id for offer in made.candidates([worker("a", room=full()), b], 0.0)] == ["anywhere"]
    start(made, request("anywhere", "ben"), extend=900)
    assert made.deficit("anna") > 0


def test_a_service_given_back_leaves_no_trace_in_what_was_served_recently():
    """1,000 tokens charged, given back a minute later: the client stands where it stood before."""
    made = queue(order="least_served")
    failed = request("failed", "anna", tokens=1000)
    start(made, failed, extend=1000, now=0.0)
    made.on(Output(failed, Placement("a"), 300, 20.0))
    made.on(Left(failed, Placement("a"), None, None, 60.0))
    assert made.accounts.find("anna").recent == 0.0
    assert made.accounts.find("anna").precedence == -math.inf


@pytest.mark.parametrize("asked", [30.0, 60.0])
def test_a_correction_takes_back_what_is_left_of_the_charge(asked):
    made, one = queue(order="least_served"), request("one", "anna", tokens=1000)
    start(made, one, extend=1000, now=0.0)
    made.on(Left(one, Placement("a"), Outcome.COMPLETED, Usage(700, 0), asked))
    assert made.accounts.find("anna").recent == pytest.approx(700 * math.exp(-asked / accounts.RECENT_S))


def test_output_that_was_predicted_too_high_is_taken_back_at_what_is_left_of_it():
    made, one = queue(order="least_served"), request("one", "anna")
    start(made, one, extend=0, now=0.0)
    made.on(Output(one, Placement("a"), 100, 0.0))
    made.on(Output(one, Placement("a"), 100, 20.0))
    made.on(Output(one, Placement("a"), -50, 40.0))
    left = 200 * (math.exp(-2) + math.exp(-1)) * 3 / 4
    assert made.accounts.find("anna").recent == pytest.approx(left)
    assert made.deficit("anna") == QUANTUM - 300


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), binding=st.sampled_from(["late", "early"]), forget_idle=st.booleans())
def test_when_all_requests_have_left_nothing_is_open(seed, binding, forget_idle):
    """Failures, cancellations and refusals in any order: no charge is left open, no account says it runs."""
    chance = random.Random(seed)
    fleet = SteppedFleet("dlpm", workers=2, binding=binding, make=making(forget_idle=forget_idle))
    made, live = fleet.scheduler, {}
    for number in range(60):
        one = request(
            f"r{number}", chance.choice([*CLIENTS, *PARTIES]), topic=chance.randrange(3), arrived=float(number)
        )
        live[one.id] = made.submit(one, float(number))
        for decision in made.decisions(float(number)):
            if decision.request.id in live:
                live[decision.request.id] = decision.ticket
        if chance.random() < 0.1:
            made.worker_left("w1", float(number))
            made.worker_joined(WorkerFacts("w1", frozenset({"base"}), slots=2), float(number))
        name = chance.choice(sorted(live))
        end(made, chance, live, name, float(number))
    for name in sorted(live):
        made.cancel(live[name], 99.0)
    made.decisions(100.0)
    assert made.faults.count == 0, made.faults.last
    assert len(fleet.queue) == 0
    assert (fleet.queue.accounts.charges, fleet.queue._lanes) == ({}, {})
    assert all((account.open, account.branches) == (0, {}) for account in fleet.queue.accounts)


def end(made, chance, live, name, now):
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
