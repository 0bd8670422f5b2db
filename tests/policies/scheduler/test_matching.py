"""The matcher: who starts, who waits by choice, what candidates leave to each other, and policies with faults."""

from dataclasses import replace
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view
from views import OPEN, full, request, worker

from policies.fleet.fleet import Fleet
from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import (
    Candidate,
    Dispatch,
    Question,
    Reason,
    RejectReason,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.placements.fairlead import Fairlead
from policies.placements.fairlead import Settings as FairleadSettings
from policies.placements.kit.ranking import by_cost
from policies.prefixes.index import Prefixes
from policies.protocol import OrderPolicy, PlacementPolicy
from policies.scheduler.disaggregation import Disaggregation
from policies.scheduler.matching import BadOrderError, BadRankingError, Matcher
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

SPEED = Profile(base_s=0.0, per_token_s=0.001, per_pair_s=0.0, step_base_s=0.01, per_sequence_s=0.0)
"""A second per thousand tokens."""


class Listed(OrderPolicy):
    """Offers the candidates that it is given, in that order."""

    def __init__(self, candidates):
        self.offers = candidates

    def __len__(self):
        return len(self.offers)

    def push(self, request, *, again=False):
        raise NotImplementedError

    def remove(self, request):
        raise NotImplementedError

    def waiting(self):
        return (candidate.request for candidate in self.offers)

    def candidates(self, workers, now):
        return iter(self.offers)


class InSeconds(PlacementPolicy):
    """The least prefill in seconds."""

    costs_are_seconds = True

    def rank(self, question):
        tokens = question.request.input_tokens
        return by_cost(question, lambda view, matched: (view.profile.prefill_s(tokens - matched),))


class ByMatch(PlacementPolicy):
    """The longest match, in tokens."""

    def rank(self, question):
        return by_cost(question, lambda view, matched: (-matched,))


class Table:
    """A matcher of hand-made workers, with what they hold of every prompt, and the candidates of an order."""

    def __init__(self, workers, held=None, placement=None, **fields):
        self.workers = {one.id: one for one in workers}
        self.held = held or {}
        fleet, prefixes = Fleet(0.2, None), Prefixes()
        for one in workers:
            fleet.update_facts(one.facts)
            fleet[one.id].view = lambda name=one.id: self.workers[name]
        fleet.open_views = lambda: [view for view in self.workers.values() if view.room.open]
        fleet.eligible = lambda one: [v for v in self.workers.values() if one.pinned in (None, v.id)]
        prefixes.match = lambda _: self.held
        self.order = Listed([])
        kinds = Disaggregation(Knowledge().heatmap, 0)
        placement = InSeconds() if placement is None else placement
        self.matcher = Matcher(self.order, placement, fleet, prefixes, kinds, settings=SchedulerSettings(**fields))

    def offer(self, *candidates):
        self.order.offers.extend(candidates)
        return self

    def room(self, name, room):
        self.workers[name] = replace(self.workers[name], room=room)

    def next(self, now=0.0):
        waiting = {candidate.request.id: candidate.request for candidate in self.order.offers}
        match = self.matcher.next(waiting, now)
        if self.matcher.faults.last is not None:
            raise self.matcher.faults.last
        return match

    def start(self, now=0.0):
        """Who starts where, one after the other; rooms stay as they are."""
        started = {}
        while (match := self.next(now)) is not None:
            started[match.request.id] = match.place.placement.decode
            self.matcher.forget(match.request)
            self.order.offers = [c for c in self.order.offers if c.request.id != match.request.id]
        return started


def busy(name, room, **fields):
    return worker(name, room=room, profile=SPEED, **fields)


def holder_and_free(until, held=900, **fields):
    """A holder of the prompt that has room at `until`, and an idle worker that holds nothing."""
    return Table([busy("holder", full(until)), busy("free", OPEN)], {"holder": held}, **fields)


def asks(name="r", **fields):
    return Candidate(request(name, tokens=1000), **fields)


# -- waiting by choice, where costs are seconds


def test_the_best_ranked_worker_takes_the_request_if_it_has_room():
    table = Table([busy("holder", OPEN), busy("free", OPEN)], {"holder": 900}).offer(asks())
    match = table.next()
    assert (match.place.placement.decode, match.place.matched_tokens, match.borrowed) == ("holder", 900, False)


@settings(max_examples=100, deadline=None)
@given(
    until=st.integers(1, 400),
    held=st.integers(1, 99),
    gain=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    ahead=st.integers(0, 3),
)
def test_a_request_waits_if_the_prefill_it_saves_outweighs_the_wait_and_earlier_prefills(until, held, gain, ahead):
    """Each of those ahead waits for the same worker, and has as much prefill there."""
    table = holder_and_free(until / 100 + 0.001, held * 10, hold_gain=gain, hold_s=1e9)
    started = []
    for number in range(ahead + 1):
        table.offer(asks(f"r{number}"))
        started.append(table.next() is not None)
        if started[-1]:
            break
    saved_s, own_s = held / 100, 1.0 - held / 100
    for number, starts in enumerate(started):
        assert starts == (saved_s <= gain * (until / 100 + 0.001 + number * own_s)), number


def test_a_request_that_saves_nothing_does_not_wait():
    table = Table([busy("a", full(0.01)), busy("b", OPEN)]).offer(asks())
    assert table.start() == {"r": "b"}


def test_no_request_waits_for_longer_than_its_budget_in_all():
    table = holder_and_free(0.3, hold_s=1.0).offer(asks())
    now, decided = 0.0, []
    while (match := table.next(now)) is None:
        decided.append(now)
        now = table.matcher.wake_at
        table.room("holder", full(now + 0.3))  # it is always a moment away
    assert match.place.placement.decode == "free"
    assert decided == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert now == pytest.approx(1.0)


def test_a_hold_is_decided_anew_when_it_ends():
    table = holder_and_free(0.5).offer(asks())
    assert table.start() == {}
    assert table.matcher.wake_at == 0.5
    assert table.start(0.4) == {}
    table.held = {"holder": 900, "free": 899}
    assert table.start(0.49) == {}, "until then it stands"
    assert table.start(0.5) == {"r": "free"}


def test_what_is_overdue_is_taken_to_last_as_long_again():
    table = holder_and_free(1.0, hold_gain=0.5).offer(asks())
    assert table.start(0.0) == {}
    assert table.start(1.4) == {}
    assert table.matcher.wake_at == pytest.approx(1.8)
    assert table.start(3.0) == {"r": "free"}


def test_a_hold_ends_when_its_worker_has_room():
    table = holder_and_free(1.0).offer(asks())
    assert table.start() == {}
    table.room("holder", OPEN)
    assert table.start(0.2) == {"r": "holder"}
    assert table.matcher._holds == {}


def test_room_at_a_worker_that_holds_as_much_ends_the_wait():
    table = Table([busy("one", full(1.0)), busy("two", full(1.1)), busy("free", OPEN)], {"one": 900, "two": 900})
    table.offer(asks())
    assert table.start() == {}
    table.room("two", OPEN)
    assert table.start(0.2) == {"r": "two"}


def test_a_hold_ends_when_its_worker_may_serve_the_request_no_longer():
    table = holder_and_free(1.0).offer(asks())
    assert table.start() == {}
    del table.workers["holder"]
    assert table.start(0.1) == {"r": "free"}


@pytest.mark.parametrize("hold_s", [0.0, 5.0])
def test_without_a_budget_no_request_waits(hold_s):
    assert holder_and_free(0.5, hold_s=hold_s).offer(asks()).start() == ({"r": "free"} if hold_s == 0.0 else {})


# -- waiting by choice, where costs have another unit


def test_other_units_keep_their_first_choice_while_its_room_is_expected_within_the_budget():
    """However little the worker holds, and although the room is late again and again."""
    table = holder_and_free(1.5, 1, placement=ByMatch(), hold_s=2.0).offer(asks())
    assert table.start() == {}
    assert table.start(1.4) == {}
    assert table.matcher.wake_at == pytest.approx(1.5)
    table.room("holder", full(1.9))
    assert table.start(1.5) == {}
    assert table.start(1.9) == {}
    assert table.start(2.0) == {"r": "free"}


def test_other_units_do_not_wait_for_room_beyond_the_budget():
    assert holder_and_free(2.1, 900, placement=ByMatch(), hold_s=2.0).offer(asks()).start() == {"r": "free"}


def test_a_home_does_not_fill_without_limit():
    """Its room and the prefills that wait for it have to fit into the budget."""
    table = holder_and_free(0.4, 500, placement=ByMatch(), hold_s=2.0)
    table.offer(*(asks(f"r{number}") for number in range(9)))
    assert len(table.start()) == 5, "four wait: 0.4 s, and 0.5 s for each of three ahead"


# -- room that stands by


def test_a_request_that_may_not_pass_leaves_the_room_that_stands_by_for_a_hold():
    table = holder_and_free(0.5).offer(asks("holds"), Candidate(request("small", tokens=10), may_pass=False))
    table.held = {"holder": 900}
    assert table.start() == {}


def test_one_that_may_pass_uses_it_and_has_borrowed_it():
    table = holder_and_free(0.5).offer(asks("holds"), Candidate(request("small", tokens=10, prompt=None)))
    table.matcher._prefixes.match = lambda one: {"holder": 900} if one.id == "holds" else {}
    match = table.next()
    assert (match.request.id, match.place.placement.decode, match.borrowed) == ("small", "free", True)


def test_room_that_the_holding_request_could_not_use_is_not_borrowed():
    narrow = replace(OPEN, prefill_idle=False, prefill_free=100)
    table = Table([busy("holder", full(0.5)), busy("wide", OPEN), busy("narrow", narrow)])
    table.matcher._prefixes.match = lambda one: {"holder": 900} if one.id == "holds" else {}
    table.offer(asks("holds"), Candidate(request("small", tokens=10, pinned="narrow"), may_pass=False))
    match = table.next()
    assert (match.place.placement.decode, match.borrowed) == ("narrow", False)


# -- what candidates without room leave to each other


TIGHT = replace(OPEN, prefill_idle=False, prefill_free=100, slots_free=8)
"""The prefill window has room for 100 tokens, and there are slots."""


def slots(name, room, number=8):
    view = busy(name, room)
    return replace(view, facts=replace(view.facts, slots=number))


def small(name="small", **fields):
    return Candidate(request(name, tokens=50), **fields)


@pytest.mark.parametrize(("in_turn", "starts"), [(True, {"small": "a"}), (False, {})])
def test_a_request_that_waits_claims_the_workers_from_those_whose_turn_comes_later(in_turn, starts):
    assert Table([slots("a", TIGHT)]).offer(asks("first"), small(in_turn=in_turn)).start() == starts


def test_once_it_is_overdue_it_claims_them_from_all():
    assert Table([slots("a", TIGHT)]).offer(asks("first", overdue=True), small()).start() == {}


def test_it_claims_every_worker_that_serves_it_and_no_other():
    table = Table([slots("a", TIGHT), slots("b", TIGHT)])
    table.offer(Candidate(request("first", tokens=1000, pinned="a")), small(in_turn=False))
    assert table.start() == {"small": "b"}


def test_a_large_request_claims_workers_only_where_the_prefill_window_keeps_it_waiting():
    large = Candidate(request("large", tokens=1000, sequences=4))
    without_slots = replace(TIGHT, slots_free=2)
    assert Table([slots("a", TIGHT)]).offer(large, small(in_turn=False)).start() == {}
    assert Table([slots("a", without_slots)]).offer(large, small(in_turn=False)).start() == {"small": "a"}


def test_an_overdue_large_request_reserves_one_worker_and_leaves_the_others():
    large = Candidate(request("large", tokens=1000, sequences=4), overdue=True)
    rooms = replace(OPEN, slots_free=2, prefill_free=10**6)
    table = Table([slots("a", rooms), slots("b", rooms)]).offer(large, small("one"), small("two"))
    assert set(table.start().values()) == {"b"}
    assert table.matcher.reservations.of(large.request) == "a"
    table.room("a", replace(OPEN, slots_free=8))
    assert table.start(1.0) == {"large": "a"}
    assert len(table.matcher.reservations) == 0


def test_a_large_request_that_once_waited_by_choice_reserves_a_worker_like_any_other():
    large = Candidate(request("large", tokens=1000, sequences=4), overdue=True)
    table = Table([slots("holder", full(0.5)), slots("free", replace(OPEN, slots_free=8))], {"holder": 900})
    table.offer(large)
    assert table.start() == {}
    assert len(table.matcher.reservations) == 0, "it waits by choice"
    table.room("free", replace(OPEN, slots_free=2))
    assert table.start(0.6) == {}
    assert len(table.matcher.reservations) == 1


def test_a_reservation_goes_before_the_claims_of_others():
    """Otherwise the two wait for each other for ever."""
    table = Table([slots("a", full(0.5))])
    older, reserves = request("older", tokens=1000, sequences=4), request("reserves", tokens=1000, sequences=8)
    table.matcher.reservations.reserve(reserves, list(table.workers.values()), 1)
    table.room("a", OPEN)
    table.offer(Candidate(older), Candidate(reserves, overdue=True, in_turn=False))
    assert table.next().request is reserves


# -- policies with faults


def facts(name, **fields):
    return WorkerFacts(name, frozenset({"base"}), **fields)


def asked(name, now=0.0, **fields):
    return view(name, Wish("anna", 0, 20, 5, more=tuple(fields.items())), now)


def scheduler(placement, *workers, queue=None, **fields):
    made_with = SchedulerSettings(**{"prefill_window_tokens": 10_000, **fields})
    made = Scheduler(Fcfs(FcfsSettings()) if queue is None else queue, placement, made_with)
    for one in workers:
        made.worker_joined(one, 0.0)
    return made


def started(made, now=0.0):
    return {d.request.id: d.place.placement.decode for d in made.decisions(now) if isinstance(d, Dispatch)}


class Says(PlacementPolicy):
    """Ranks by a function of the question, which may raise."""

    def __init__(self, answer):
        self.answer = answer

    def rank(self, question):
        return self.answer(question)


def ranked(workers, cost=1.0):
    return [(one, cost, Reason.LOAD) for one in workers]


def raises(fault):
    def answer(_):
        raise fault

    return answer


BAD = {
    "raises": raises(ZeroDivisionError()),
    "ranks an unknown worker": lambda q: [*ranked(q.workers[1:]), (worker("unknown"), 0.0, Reason.LOAD)],
    "ranks a worker of another moment": lambda q: [*ranked(q.workers[1:]), *ranked([replace(q.workers[0])])],
    "ranks a worker twice": lambda q: ranked([*q.workers[1:], q.workers[1]]),
    "leaves a worker out": lambda q: ranked(q.workers[1:]),
    "ranks none": lambda q: [],
    "returns NaN": lambda q: ranked(q.workers, float("nan")),
    "returns nothing": lambda q: None,
    "returns names": lambda q: [one.id for one in q.workers],
}


@pytest.mark.parametrize("binding", ["late", "early"])
@pytest.mark.parametrize("what", BAD)
def test_a_placement_that(what, binding):
    """... gives way to the least loaded worker, and is counted."""
    made = scheduler(Says(BAD[what]), facts("busy"), facts("free"), binding=binding)
    made.submit(asked("pinned", pinned="busy"), 0.0)
    assert started(made) == {"pinned": "busy"}
    before = made.faults.count
    ticket = made.submit(asked("one"), 0.0)
    assert started(made) == {"one": "free"}
    assert made.faults.count == before + 1
    assert isinstance(made.faults.last, (BadRankingError, ZeroDivisionError, TypeError, ValueError))
    made.settled(ticket, Usage(20, 5), 1.0)
    assert made.snapshot().in_flight == 1


def test_a_placement_that_recovers_is_asked_again():
    placement = Says(raises(ValueError()))
    made = scheduler(placement, facts("a"), facts("b"))
    made.submit(asked("one"), 0.0)
    assert started(made) == {"one": "a"}
    placement.answer = lambda question: ranked(question.workers)
    made.submit(asked("two"), 0.0)
    assert started(made) == {"two": "a"}
    assert made.faults.count == 1


def test_where_the_placement_has_a_fault_the_least_loaded_worker_may_be_a_pair():
    sides = {name: facts(name, stages=frozenset([stage])) for name, stage in zip("pd", Stage, strict=True)}
    made = scheduler(Says(raises(KeyError())), *sides.values())
    made.submit(asked("one"), 0.0)
    (decision,) = made.decisions(0.0)
    assert (decision.place.placement.prefill, decision.place.placement.decode) == ("p", "d")


def test_a_fault_without_room_leaves_the_request_waiting():
    made = scheduler(Says(raises(ZeroDivisionError())), facts("a", slots=1), prefill_window_tokens=20)
    ticket = made.submit(asked("one"), 0.0)
    assert started(made) == {"one": "a"}
    made.submit(asked("two"), 0.0)
    assert started(made) == {}
    made.settled(ticket, Usage(20, 5), 1.0)
    assert started(made, 1.0) == {"two": "a"}


class Broken(Fcfs):
    """First come, first served, but for one method."""

    def __init__(self, method, answer):
        super().__init__(FcfsSettings())
        setattr(self, method, answer)

    hears = PlacementPolicy.hears


def broken(method):
    def fails(*_, **__):
        raise RuntimeError(method)

    return Broken(method, fails)


@pytest.mark.parametrize("binding", ["late", "early"])
@pytest.mark.parametrize("method", ["push", "remove", "candidates", "waiting", "estimate", "on"])
def test_requests_go_on_by_arrival_where_an_order_raises_in(method, binding):
    made = scheduler(ByMatch(), facts("a", slots=1), queue=broken(method), binding=binding)
    tickets = {name: made.submit(asked(name, now), now) for now, name in enumerate(["one", "two", "three"])}
    for now, name in enumerate(tickets, 3):
        assert started(made, float(now)) == {name: "a"}
        made.settled(tickets[name], Usage(20, 5), float(now))
    assert (made.faults.count > 0) == (method != "waiting"), "the scheduler keeps its own list of what waits"
    made.cancel(made.submit(asked("four", 9.0), 9.0), 9.0)
    assert made.snapshot().queued == made.snapshot().in_flight == 0
    assert list(made.waiting()) == []


@pytest.mark.parametrize("tokens", [None, -1, float("nan"), "many"])
def test_an_estimate_that_is_no_number_of_tokens_is_a_fault(tokens):
    made = scheduler(ByMatch(), facts("a"), queue=Broken("estimate", lambda _: tokens))
    made.submit(asked("one"), 0.0)
    assert started(made) == {"one": "a"}
    assert made.faults.count == 1
    (row,) = made.snapshot().workers
    assert row.kv_reserved == 20 + 5


def test_an_order_that_forgets_a_request_is_counted_and_the_request_starts():
    order = Fcfs(FcfsSettings())
    made = scheduler(ByMatch(), facts("a"), queue=order)
    one = asked("one")
    made.submit(one, 0.0)
    order._lanes.remove(one)
    assert started(made) == {"one": "a"}
    assert made.faults.count >= 1


def test_an_order_that_invents_a_request_is_counted_and_the_others_start():
    order = Fcfs(FcfsSettings())
    made = scheduler(ByMatch(), facts("a"), queue=order)
    order.push(asked("invented"))
    made.submit(asked("one", 1.0), 1.0)
    assert started(made, 1.0) == {"one": "a"}
    assert isinstance(made.faults.last, BadOrderError)


def test_candidates_that_never_end_are_a_fault_and_do_not_stop_the_loop():
    """What is ranked is bounded anyway; this one fits nowhere, so it is never ranked."""
    table, wide = Table([slots("a", replace(OPEN, slots_free=1))]), request("wide", sequences=4)
    table.order.candidates = lambda *_: repeat(Candidate(wide))
    assert table.matcher.next({"wide": wide}, 0.0) is None
    assert isinstance(table.matcher.faults.last, BadOrderError)


@pytest.mark.parametrize("method", ["deficit", "sizes"])
def test_an_order_that_raises_when_it_is_asked_for_figures_is_counted(method):
    made = scheduler(ByMatch(), facts("a"), queue=broken(method))
    assert made.deficit("anna") is None
    assert made.sizes()["answers"] == 0
    assert (made.faults.count, str(made.faults.last)) == (1, method)


@pytest.mark.parametrize(("slots_free", "starts"), [(0, None), (1, "a")])
def test_a_prompt_that_an_engine_will_refuse_needs_a_slot_but_no_other_room(slots_free, starts):
    """Otherwise it would wait inside the engine if its estimate is wrong."""
    table = Table([busy("a", replace(full(), slots_free=slots_free), kv_tokens=500), busy("b", OPEN)])
    beyond = request("beyond", tokens=1000, pinned="a")
    match = table.matcher.next({"beyond": beyond}, 0.0) if table.offer(Candidate(beyond)) else None
    assert (match and match.place.placement.decode) == starts


def test_a_placement_that_raises_when_it_is_asked_for_its_size_is_counted():
    placement = ByMatch()
    placement.sizes = lambda: 1 // 0
    made = scheduler(placement, facts("a"))
    assert made.sizes()["answers"] == 0
    assert made.faults.count == 1


def test_a_placement_that_raises_as_it_hears_something_is_counted():
    placement = ByMatch()
    placement.on = raises(KeyError("event"))
    made = scheduler(placement, facts("a"))
    ticket = made.submit(asked("one"), 0.0)
    assert started(made) == {"one": "a"}
    made.settled(ticket, Usage(20, 5), 1.0)
    assert made.faults.count >= 4
    assert made.snapshot().in_flight == 0


def test_what_stops_the_program_is_not_swallowed():
    made = scheduler(Says(raises(KeyboardInterrupt())), facts("a"))
    made.submit(asked("one"), 0.0)
    with pytest.raises(KeyboardInterrupt):
        made.decisions(0.0)


# -- through the whole scheduler


def test_a_request_is_not_held_for_a_worker_whose_kv_is_not_free_for_long():
    """The holder's prefill is done in a moment; what is missing there is memory, for a long time."""
    knowledge = Knowledge()
    made = Scheduler(
        Fcfs(FcfsSettings()),
        Fairlead(FairleadSettings(warm_up=0.0), knowledge),
        SchedulerSettings(kv_margin=0.0),
        knowledge,
    )
    made.worker_joined(facts("holder", kv_tokens=2000), 0.0)
    prompt = bytes(range(100)) * 9
    long = request("long", prompt=prompt, output=1000, streams=True)
    ticket = made.submit(long, 0.0)
    assert started(made) == {"long": "holder"}
    made.first_token(ticket, 0.1)
    made.worker_joined(facts("free", kv_tokens=2000), 0.1)
    made.submit(request("alike", prompt=prompt + b"and more", output=1000, streams=True, arrived=0.2), 0.2)
    assert started(made, 0.2) == {"alike": "free"}


@settings(max_examples=15, deadline=None)
@given(
    wishes=st.lists(
        st.builds(
            Wish,
            st.sampled_from("ab"),
            st.integers(0, 30),
            st.integers(1, 60),
            st.integers(1, 9),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=40,
    ),
    queue=st.sampled_from(["fcfs", "dlpm", "lpm", "priority"]),
    placement=st.sampled_from(["cache_aware", "session_affinity", "fairlead"]),
    hold_s=st.sampled_from([0.0, 2.0, 5.0]),
)
def test_no_request_waits_beside_room_for_longer_than_the_budget(wishes, queue, placement, hold_s):
    beside = {}

    def check(fleet):
        """All slots are alike, so what waits could start wherever one is free."""
        free = any(row.room.slots_free for row in fleet.scheduler.snapshot().workers)
        waiting = {one.id for one in fleet.scheduler.waiting()} if free else set()
        for name in beside.keys() - waiting:
            del beside[name]
        for name in waiting:
            since = beside.setdefault(name, fleet.now)
            assert hold_s > 0.0, "room beside a request that waits"
            assert fleet.now - since < hold_s
            assert fleet.now < fleet.scheduler.next_deadline() <= fleet.now + hold_s

    made = SteppedFleet(queue, workers=3, placement=placement, hold_s=hold_s)
    made.checks.append(check)
    made.play(wishes)


def test_a_full_queue_lets_in_a_client_that_was_never_served_and_rejects_the_newest_of_the_flood():
    made = scheduler(ByMatch(), facts("a", slots=1), max_queued=20)
    for number in range(21):
        made.submit(view(f"f{number}", Wish("flood", 0, 20, 5), float(number)), float(number))
        made.decisions(float(number))
    made.submit(view("first", Wish("anna", 0, 20, 5), 30.0), 30.0)
    (reject,) = made.decisions(30.0)
    assert (reject.request.id, reject.reason) == ("f20", RejectReason.QUEUE_FULL)
    assert "first" in {one.id for one in made.waiting()}


def test_a_question_names_all_workers_that_could_serve_the_request_with_room_or_without():
    questions = []

    def answer(question: Question):
        questions.append(question)
        return ranked(question.workers)

    made = scheduler(
        Says(answer), facts("full", slots=1), facts("free"), facts("suspect", suspect=True), hold_s=0.0
    )
    for name in ("one", "two"):
        made.submit(asked(name), 0.0)
    assert started(made) == {"one": "full", "two": "free"}
    assert {tuple(view.id for view in question.workers) for question in questions} == {("full", "free")}
