"""DLPM: its bounds over random workloads, its order against the printed algorithm, its accounts case by case."""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, head_starts, largest, unfairness, view

from policies.events import Left, Output, Placed, Queued
from policies.fleet.worker import Worker
from policies.knowledge import Knowledge
from policies.model import AttemptFailure, Outcome, Placement, Usage, WorkerFacts
from policies.orders import dlpm as module
from policies.orders.dlpm import Dlpm, Settings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

QUANTUM = 100
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
    bound = 2 * (largest(wishes, slots=2) + QUANTUM)
    assert max(unfairness(played.measured.samples).values(), default=0.0) <= bound


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
def test_nobody_gets_much_more_than_one_who_waits(wishes, workers):
    played = SteppedFleet("dlpm", workers=workers, slots=2, make=making()).play(wishes)
    bound = 2 * (largest(wishes, slots=2 * workers) + QUANTUM)
    assert max(head_starts(played.measured.samples).values(), default=0.0) <= bound


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
    bound = 2 * (largest(wishes, slots=2) + QUANTUM)
    fair = SteppedFleet("dlpm", slots=2, make=making()).play(wishes)
    assert unfairness(fair.measured.samples)["reads", "writes"] <= bound
    unfair = SteppedFleet("dlpm", slots=2, make=making(output_weight=0.0)).play(wishes)
    assert unfairness(unfair.measured.samples)["reads", "writes"] > 2 * bound


def test_order_of_arrival_is_not_fair_by_this_measure():
    flood = [Wish("flood", 0, 60, 20) for _ in range(60)]
    wishes = [*flood, *(Wish("modest", 1, 60, 20, topic=1) for _ in range(20))]
    bound = 2 * (largest(wishes, slots=2) + QUANTUM)
    assert unfairness(SteppedFleet("fcfs").play(wishes).measured.samples)["flood", "modest"] > bound
    played = SteppedFleet("dlpm", make=making()).play(wishes)
    assert unfairness(played.measured.samples)["flood", "modest"] <= bound


@settings(max_examples=15, deadline=None)
@given(wishes=WORKLOADS)
def test_under_early_binding_each_line_is_fair_to_those_who_wait_in_it(wishes):
    """Accounts are per line, so the bound is per worker and for those who wait at that worker; no more is true."""
    wishes = [*wishes, *wishes]
    made = SteppedFleet("dlpm", workers=2, slots=2, placement="round_robin", binding="early", make=Listening)
    made.play(wishes)
    bound = 2 * (largest(wishes, slots=2) + QUANTUM)
    for line in made.queue._lines.values():
        assert max(unfairness(line.queue.samples).values(), default=0.0) <= bound


class Listening(Dlpm):
    """One line's order, that measures as `stepped_fleet.Measured` does, for its own requests."""

    def __init__(self, knowledge):
        super().__init__(Settings(quantum=QUANTUM, order="lpm"), knowledge)
        self.served, self.samples = {}, []

    def on(self, event):
        super().on(event)
        client = event.request.client
        self.served.setdefault(client, 0.0)
        if isinstance(event, Placed):
            self.served[client] += event.extend_tokens
        elif isinstance(event, Output):
            self.served[client] += 2 * event.tokens
        self.samples.append((dict(self.served), {one.client for one in self.waiting()}))


@pytest.mark.parametrize("order", ORDERS)
def test_nobody_starves_behind_a_flood(order):
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
def test_no_slot_is_empty_while_somebody_waits(wishes, order, workers):
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
    """Clients with credit, or many requests at the head, that only a full worker can serve hide nobody else."""
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
        """Who is admitted next, if it fits; refills happen only when it does."""
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
    made = Dlpm(Settings(quantum=quantum, order="lpm", depth=10**6, window=10**6, patience_s=1e9), knowledge)
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
            offered = [offer.request for offer in made.candidates(workers, 1e3)]
            chosen, eligible = printed.first(match)
            assert offered[0] is chosen
            assert {one.client for one in offered} == {o.client for o in printed.waiting if o.client in eligible}
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


def test_who_has_waited_long_comes_before_longer_matches_but_not_before_its_turn():
    knowledge = Knowledge()
    made = Dlpm(Settings(quantum=QUANTUM, order="lpm", patience_s=10.0), knowledge)
    hit, cold = request("hit", arrived=1.0, topic=1), request("cold", arrived=0.0)
    knowledge.prefixes.insert("a", hit, 0.0)
    debtor = request("debtor", "ben", arrived=0.0)
    start(made, request("before", "ben"), extend=500)
    for one in (hit, cold, debtor):
        made.push(one)
    start(made, request("credit"), extend=0)
    assert offered(made, 9.0) == ["hit", "cold"]
    assert offered(made, 10.5) == ["cold"]


def test_of_one_client_only_a_few_are_compared_and_of_all_a_window():
    made = queue(depth=2, window=5)
    for client in ("a", "b", "c"):
        for number in range(4):
            made.push(request(f"{client}{number}", client, arrived=float(number)))
    assert sorted(offered(made)) == ["a0", "a1", "b0", "b1", "c0"]


def test_smallest_volume_first_counts_what_is_cached_as_nothing():
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
def test_whoever_was_served_least_of_late_comes_first(past, weights):
    """Service fades with time, whatever the unit in which the accounts keep it."""
    made, now, given = queue(order="least_served", quantum=10**6), 0.0, []
    for number, (client, gap, extend) in enumerate(past):
        now += gap
        start(made, request(str(number), client, weight=weights[client]), extend=extend, now=now)
        given.append((client, now, extend))
    for client in CLIENTS:
        made.push(request(client, client, weight=weights[client], arrived=now))
    late = dict.fromkeys(CLIENTS, 0.0)
    for client, at, extend in given:
        late[client] += extend * math.exp((at - now) / module._LATE_S) / weights[client]
    shown = [late[name] for name in offered(made, now) if name in late]
    assert all(one <= other * (1 + 1e-9) + 1e-12 for one, other in pairwise(shown))


# -- the accounts


def worker(name, **fields):
    return Worker(WorkerFacts(name, frozenset({"base"}), **fields), window_s=0.2, window_tokens=None).view()


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


def test_who_cancels_has_paid():
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
    assert made._accounts["anna"].running == 1


def test_a_client_that_comes_back_still_owes_what_it_owed():
    made, one = running(extend=1000)
    leave(made, one, Outcome.COMPLETED, Usage(1000, 0))
    assert made.deficit("anna") == QUANTUM - 1000
    made.push(request("two"))
    made.push(request("three", "ben", arrived=5.0))
    assert offered(made) == ["three"]


def test_where_idle_clients_leave_debt_and_credit_go_with_them():
    for extend in (10, 1000):
        made, one = running(extend=extend, forget_idle=True)
        leave(made, one, Outcome.COMPLETED, Usage(extend, 0))
        made.push(request("two"))
        assert made.deficit("anna") == 0.0


def test_who_still_runs_or_comes_back_after_a_failure_is_not_idle():
    made, one = running(extend=1000, forget_idle=True)
    made.push(request("two"))
    assert made.deficit("anna") == QUANTUM - 1000
    made.remove(request("two"))
    leave(made, one, None)
    made._accounts["anna"].deficit = -70.0
    made.push(one, again=True)
    assert made.deficit("anna") == -70.0


def test_a_turn_that_was_waited_for_is_not_lost_when_the_queue_empties():
    """Where idle clients leave, the last request of a client is not idleness: nobody is refilled for nothing."""
    made = queue(forget_idle=True)
    start(made, request("debt", "ben"), extend=350)
    start(made, request("anna's"), extend=10)
    made.push(request("last", "ben"))
    start(made, request("last", "ben"), extend=0)
    assert made.deficit("ben") == QUANTUM - 350 + 3 * QUANTUM
    assert made.deficit("anna") == QUANTUM - 10


def test_only_the_idle_that_owe_nothing_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CLIENTS", 20)
    made = queue()
    start(made, request("runs", "runs"), extend=5)
    debt = request("debt", "owes")
    start(made, debt, extend=10**6)
    leave(made, debt, Outcome.COMPLETED, Usage(10**6, 0))
    made.push(request("waits", "waits"))
    for number in range(200):
        one = request(f"r{number}", f"passer-by {number}")
        start(made, one, extend=1)
        leave(made, one, Outcome.COMPLETED, Usage(1, 0))
    assert len(made._accounts) <= 22
    assert all(made.deficit(name) is not None for name in ("runs", "owes", "waits"))
    assert made.deficit("passer-by 0") is None


def test_debtors_cannot_crowd_the_table_where_idle_clients_leave(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CLIENTS", 20)
    made = queue(forget_idle=True)
    for number in range(200):
        one = request(f"r{number}", f"passer-by {number}")
        start(made, one, extend=5000)
        leave(made, one, Outcome.COMPLETED, Usage(5000, 0))
    assert len(made._accounts) <= 22


def test_a_full_worker_keeps_its_clients_credit_and_lets_others_pass():
    made = queue()
    made.push(request("pinned", "anna", pinned="a"))
    start(made, request("credit", "anna"), extend=0)
    start(made, request("debt", "ben"), extend=900)
    made.push(request("anywhere", "ben", arrived=1.0))
    a, b = worker("a"), worker("b")
    full = Worker(WorkerFacts("a", frozenset({"base"}), slots=0), window_s=0.2, window_tokens=None)
    full.requests = 1
    assert [o.request.id for o in made.candidates([a, b], 0.0)] == ["pinned"]
    assert [o.request.id for o in made.candidates([full.view(), b], 0.0)] == ["anywhere"]
    assert made.deficit("anna") == QUANTUM


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), binding=st.sampled_from(["late", "early"]), forget_idle=st.booleans())
def test_when_everybody_has_left_nothing_is_open(seed, binding, forget_idle):
    """Failures, cancellations and refusals in any order: no charge is left open, no account says it runs."""
    chance = random.Random(seed)
    lines = []

    def make(knowledge):
        lines.append(making(forget_idle=forget_idle)(knowledge))
        return lines[-1]

    fleet = SteppedFleet("dlpm", workers=2, binding=binding, make=make)
    made, live = fleet.scheduler, {}
    assert isinstance(made, Scheduler)
    assert isinstance(made.settings, SchedulerSettings)
    for number in range(60):
        one = request(f"r{number}", chance.choice(CLIENTS), topic=chance.randrange(3), arrived=float(number))
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
    assert len(fleet.queue) == 0
    for line in lines:
        assert len(line._charges) == 0
        assert all(account.running == 0 for account in line._accounts.values())


def end(made, chance, live, name, now):
    what = chance.choice(["settle", "settle", "refuse", "cancel", "fail", "output"])
    if what == "output":
        made.output(live[name], 3, now)
    elif what == "fail":
        again = made.leg_failed(live[name], chance.choice(["w0", "w1"]), AttemptFailure.LOST, 0, now)
        live[name] = again or live[name]
    elif what == "cancel":
        made.cancel(live.pop(name), now)
    else:
        outcome = Outcome.REFUSED if what == "refuse" else Outcome.COMPLETED
        made.settled(live.pop(name), Usage(40, 6, 8), now, outcome)
