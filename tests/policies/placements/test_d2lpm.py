"""D²LPM: its choice against the printed algorithm, its bound over random workloads, its accounts case by case."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import Measured, SteppedFleet, Wish, largest, unfairness
from views import chosen, named, ranking, request, worker

from policies.events import Bound, Left, Output, Placed, Queued, WorkerGone
from policies.knowledge import Knowledge
from policies.model import Outcome, Placement, Reason, Usage
from policies.orders.dlpm import Dlpm
from policies.orders.dlpm import Settings as DlpmSettings
from policies.placements.d2lpm import D2lpm, Settings

QUANTUM = 100
CLIENTS = ["anna", "ben", "cora"]
PRINTED = {"charge": "input", "inside": "least", "only_under_backlog": False}


def policy(knowledge=None, **fields):
    return D2lpm(Settings(**{"quantum": QUANTUM, "only_under_backlog": False, **fields}), knowledge or Knowledge())


def place(made, one, name, extend=None, matched=0):
    """As the scheduler tells it under late binding."""
    made.on(Queued(one, 0.0))
    made.on(Bound(one, Placement(name), 0.0))
    made.on(Placed(one, Placement(name), matched, one.input_tokens if extend is None else extend, 0.0))


# -- the choice, against the algorithm as printed


@dataclass
class Algorithm2:
    """select, dispatch and finish with dictionaries and loops."""

    workers: list
    quantum: float
    q: dict = field(default_factory=dict)
    s: dict = field(default_factory=dict)

    def select(self, longest, client):
        """All workers that the printed argmin may return."""
        q = {w: self.q.setdefault((client, w), 0.0) for w in self.workers}
        while not (eligible := [w for w in self.workers if q[w] > 0]):
            for w in self.workers:
                q[w] = self.q[client, w] = q[w] + self.quantum
        among = [w for w in eligible if w in longest] or eligible
        least = min(self.s.get(w, 0) for w in among)
        return [w for w in among if self.s.get(w, 0) == least]

    def dispatch(self, client, w, input_tokens):
        self.q[client, w] -= input_tokens
        self.s[w] = self.s.get(w, 0) + 1

    def finish(self, client, w, output_tokens):
        self.q[client, w] -= 2 * output_tokens
        self.s[w] -= 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["dispatch", "dispatch", "finish"]),
        st.sampled_from(CLIENTS),
        st.sampled_from([1, 30, 90, 1000]),
        st.lists(st.sampled_from([0, 0, 5, 80]), min_size=3, max_size=3),
        st.sampled_from([1, 40, 3000]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, quantum=st.sampled_from([3, 100, 4096]))
def test_it_chooses_and_charges_as_the_printed_algorithm(steps, quantum):
    names = ["a", "b", "c"]
    printed, made, running = Algorithm2(names, quantum), policy(quantum=quantum, **PRINTED), []
    for number, (what, client, tokens, matched, output) in enumerate(steps):
        if what == "dispatch":
            one = request(f"r{number}", client, tokens=tokens)
            matches = {name: tokens for name, tokens in zip(names, matched, strict=True) if tokens}
            views = [worker(name, requests=printed.s.get(name, 0)) for name in names]
            name = named(made, views, matches, one)
            holders = [name for name in names if matches.get(name, 0) == max(matched)]
            assert name in printed.select(holders, client)
            place(made, one, name, extend=max(1, tokens - matches.get(name, 0)))
            printed.dispatch(client, name, tokens)
            running.append((one, name))
        elif running:
            one, name = running.pop(number % len(running))
            made.on(Output(one, Placement(name), output, 0.0))
            made.on(Left(one, Placement(name), Outcome.COMPLETED, Usage(one.input_tokens, output), 0.0))
            printed.finish(one.client, name, output)
        assert {pair: made.deficit(*pair) for pair in printed.q} == printed.q


# -- the theorem


class Everywhere(Measured):
    """A client counts as waiting while it waits at every worker: what the proof of the bound assumes."""

    workers = 0

    def on(self, event):
        before = len(self.samples)
        super().on(event)
        if len(self.samples) > before:
            waiting = {}
            for one in self.queue.waiting():
                waiting.setdefault(one.bound.decode, set()).add(one.client)
            everywhere = set.intersection(*waiting.values()) if len(waiting) == self.workers else set()
            self.samples[-1] = (self.samples[-1][0], everywhere)


def played(wishes, *, workers, kind=Everywhere, order=None, **fields):
    """All wishes through the scheduler: D²LPM names a worker on arrival, DLPM orders what waits there."""
    dlpm = DlpmSettings(**{"quantum": QUANTUM, "order": "lpm", **(order or {})})
    fleet = SteppedFleet(
        "dlpm",
        workers=workers,
        binding="early",
        placement=policy(**fields),
        make=lambda knowledge: Dlpm(dlpm, knowledge),
    )
    fleet.measured.__class__ = kind
    fleet.measured.workers = workers
    return fleet.play(wishes).measured.samples


def bound(wishes, workers):
    return 2 * workers * (largest(wishes, slots=2) + QUANTUM)


def most_served(samples):
    """The most service that was given while two clients counted as waiting."""
    totals = [sum(served.values()) for served, waiting in samples if len(waiting) > 1]
    return max(totals, default=0) - min(totals, default=0)


WISHES = st.lists(
    st.builds(
        Wish,
        client=st.sampled_from(CLIENTS),
        at=st.sampled_from([0, 0, 0, 0, 3, 20]),
        tokens=st.sampled_from([1, 10, 40, 120]),
        output=st.sampled_from([1, 3, 15]),
        topic=st.integers(0, 3),
    ),
    min_size=30,
    max_size=80,
)


@settings(max_examples=15, deadline=None)
@given(
    wishes=WISHES,
    workers=st.integers(2, 3),
    charge=st.sampled_from(["extend", "input"]),
    inside=st.sampled_from(["least", "lmetric", "fairlead"]),
)
def test_clients_that_wait_at_every_worker_are_served_alike(wishes, workers, charge, inside):
    samples = played(wishes, workers=workers, charge=charge, inside=inside)
    assert max(unfairness(samples).values(), default=0.0) <= bound(wishes, workers)


def two_kinds(number=220):
    """One client reads much and says little, the other the reverse: to charge only input favours the second."""
    reads = [Wish("reads", 0, 60, 1, topic=topic % 40) for topic in range(number)]
    writes = [Wish("writes", 0, 1, 30, topic=topic % 40) for topic in range(number)]
    return reads + writes


def test_the_bound_holds_over_many_times_its_own_service_and_breaks_if_output_is_free():
    wishes = two_kinds()
    samples = played(wishes, workers=2)
    assert most_served(samples) > 5 * bound(wishes, 2)
    assert unfairness(samples)["reads", "writes"] <= bound(wishes, 2)
    free = played(wishes, workers=2, order={"output_weight": 0.0}, output_weight=0.0)
    assert unfairness(free)["reads", "writes"] > 2 * bound(wishes, 2)


def test_deficits_spread_a_hot_prefix_over_the_fleet_and_without_them_its_client_is_served_less():
    hot = [Wish("hot", 0, 40, 3) for _ in range(240)]
    wide = [Wish("wide", 0, 40, 3, topic=1 + number % 100) for number in range(240)]
    wishes = [wish for pair in zip(hot, wide, strict=True) for wish in pair]
    assert unfairness(played(wishes, workers=3, kind=Measured))["hot", "wide"] <= bound(wishes, 3)
    local = played(wishes, workers=3, kind=Measured, quantum=10**9)
    assert unfairness(local)["hot", "wide"] > bound(wishes, 3)


# -- eligibility


def test_a_used_up_worker_is_left_although_it_holds_the_prompt():
    made, fleet = policy(), [worker("a"), worker("b", requests=3)]
    assert named(made, fleet, {"a": 900}) == "a"
    place(made, request("before"), "a", extend=QUANTUM - 1)
    assert named(made, fleet, {"a": 900}) == "a"
    place(made, request("more"), "a", extend=1)
    assert chosen(made, fleet, {"a": 900}) == ("b", Reason.SPILL)
    assert named(made, fleet, {"a": 900}, request(client="ben")) == "a"


def test_when_all_are_used_up_all_are_refilled_and_the_holder_has_it_again():
    made, fleet = policy(), [worker("a"), worker("b")]
    for name in ("a", "b"):
        place(made, request(f"on {name}"), name, extend=QUANTUM)
    assert named(made, fleet, {"a": 900}) == "a"
    place(made, request("next"), "a", extend=10)
    assert (made.deficit("anna", "a"), made.deficit("anna", "b")) == (QUANTUM - 10, QUANTUM)


def test_who_owes_less_is_eligible_first():
    made, fleet = policy(), [worker("a"), worker("b")]
    place(made, request("long"), "a", extend=10 * QUANTUM)
    place(made, request("short"), "b", extend=2 * QUANTUM)
    assert named(made, fleet, {"a": 900}) == "b"


def test_the_others_follow_and_the_eligible_come_first():
    made, fleet = policy(), [worker("a"), worker("b", requests=3), worker("c", requests=2)]
    place(made, request("before"), "a", extend=5 * QUANTUM)
    place(made, request("other"), "b", extend=1)
    place(made, request("third"), "c", extend=1)
    assert [entry.worker.id for entry in ranking(made, fleet, {"b": 900})] == ["b", "c", "a"]
    assert [entry.worker.id for entry in ranking(made, fleet)] == ["c", "b", "a"]


@pytest.mark.parametrize(("literally", "name"), [(False, "a"), (True, "b")])
def test_with_one_client_eligibility_acts_only_if_asked_for(literally, name):
    made, fleet = policy(only_under_backlog=not literally), [worker("a"), worker("b")]
    place(made, request("before"), "a", extend=QUANTUM)
    made.on(Queued(request("waits"), 0.0))
    assert named(made, fleet, {"a": 900}) == name


def test_eligibility_acts_while_another_client_waits_and_no_longer():
    made, fleet = policy(only_under_backlog=True), [worker("a"), worker("b")]
    place(made, request("before"), "a", extend=QUANTUM)
    others = request("other", "ben")
    made.on(Queued(others, 0.0))
    assert named(made, fleet, {"a": 900}) == "b"
    made.on(Bound(others, Placement("b"), 0.0))
    assert named(made, fleet, {"a": 900}) == "b", "under early binding it still waits"
    made.on(Placed(others, Placement("b"), 0, 5, 0.0))
    assert named(made, fleet, {"a": 900}) == "a"
    made.on(Queued(request("gone", "cora"), 0.0))
    assert named(made, fleet, {"a": 900}) == "b"
    made.on(Left(request("gone", "cora"), None, Outcome.CANCELLED, None, 0.0))
    assert named(made, fleet, {"a": 900}) == "a"


@pytest.mark.parametrize(
    ("inside", "matches", "name"),
    [
        ("least", {"b": 10}, "b"),
        ("lmetric", {"b": 10}, "c"),
        ("lmetric", {"a": 999}, "c"),
        ("fairlead", {"b": 990}, "b"),
    ],
)
def test_another_rule_may_pick_among_the_eligible(inside, matches, name):
    made = policy(inside=inside)
    place(made, request("before"), "a", extend=QUANTUM)
    place(made, request("elsewhere"), "c", extend=1)
    fleet = [worker("a", requests=1), worker("b", requests=9), worker("c", requests=1)]
    assert named(made, fleet, matches) == name


# -- the accounts


def deficits(made, *pairs):
    return [made.deficit(client, name) for client, name in pairs]


def test_output_is_charged_as_it_streams_and_corrected_at_the_end():
    made, one = policy(), request("one", tokens=50)
    place(made, one, "a")
    made.on(Output(one, Placement("a"), 10, 0.0))
    assert made.deficit("anna", "a") == QUANTUM - 50 - 20
    made.on(Output(one, Placement("a"), -4, 0.0))
    made.on(Left(one, Placement("a"), Outcome.COMPLETED, Usage(70, 6, cached_tokens=40), 0.0))
    assert made.deficit("anna", "a") == QUANTUM - (70 - 40) - 12


def test_input_is_charged_whole_if_asked_for():
    made, one = policy(charge="input"), request("one", tokens=50)
    place(made, one, "a", extend=1, matched=49)
    assert made.deficit("anna", "a") == QUANTUM - 50
    made.on(Left(one, Placement("a"), Outcome.COMPLETED, Usage(60, 0, cached_tokens=49), 0.0))
    assert made.deficit("anna", "a") == QUANTUM - 60


def test_what_waits_in_a_line_is_charged_by_what_the_worker_holds_now():
    knowledge = Knowledge()
    held = request("held", prompt=b"x" * 40)
    knowledge.prefixes.insert("a", held, 0.0)
    made = policy(knowledge)
    made.on(Bound(request("one", prompt=b"x" * 40 + b"y" * 20), Placement("a"), 0.0))
    assert made.deficit("anna", "a") == QUANTUM - 20


@pytest.mark.parametrize("outcome", [None, Outcome.REFUSED])
def test_what_failed_or_was_refused_costs_nothing(outcome):
    made, one = policy(), request("one", tokens=50)
    place(made, one, "a")
    made.on(Output(one, Placement("a"), 10, 0.0))
    made.on(Left(one, Placement("a"), outcome, None, 0.0))
    assert made.deficit("anna", "a") == QUANTUM


def test_who_leaves_a_running_request_has_paid_and_who_leaves_the_line_has_not():
    made, runs, waits = policy(), request("runs", tokens=50), request("waits", "ben", tokens=50)
    place(made, runs, "a")
    made.on(Bound(waits, Placement("a"), 0.0))
    made.on(Queued(waits, 0.0))
    assert deficits(made, ("anna", "a"), ("ben", "a")) == [QUANTUM - 50, QUANTUM - 50]
    made.on(Left(runs, Placement("a"), Outcome.CANCELLED, None, 0.0))
    made.on(Left(waits, None, Outcome.CANCELLED, None, 0.0))
    assert deficits(made, ("anna", "a"), ("ben", "a")) == [QUANTUM - 50, QUANTUM]


def test_who_is_bound_anew_takes_the_charge_along():
    made, one = policy(), request("one", tokens=50)
    made.on(Bound(one, Placement("a"), 0.0))
    made.on(Bound(one, Placement("b"), 0.0))
    made.on(Placed(one, Placement("b"), 0, 50, 0.0))
    assert deficits(made, ("anna", "a"), ("anna", "b")) == [QUANTUM, QUANTUM - 50]


def test_a_worker_that_is_gone_is_forgotten_and_what_ran_there_charges_nobody():
    made, one = policy(), request("one", tokens=50)
    place(made, one, "a")
    made.on(WorkerGone("a", 0.0))
    made.on(Output(one, Placement("a"), 10, 0.0))
    made.on(Left(one, Placement("a"), Outcome.COMPLETED, Usage(50, 10), 0.0))
    assert made.deficit("anna", "a") == QUANTUM
    assert {account.open for account in made._deficits._accounts} == {0}
    assert not made._attempts
    assert not made._waiting
