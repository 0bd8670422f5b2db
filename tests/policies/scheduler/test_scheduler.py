"""The scheduler under any order of events, against a model that is a dictionary; then the cases worth reading."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from policies import catalog
from policies.events import Bound, FirstToken, Left, Output, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.kv_fit import Member, fits
from policies.knowledge import Knowledge
from policies.model import (
    AttemptFailure,
    Dispatch,
    Outcome,
    Placement,
    PrefixKey,
    Question,
    Reading,
    Reject,
    RejectReason,
    RequestView,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.orders.kit.lanes import has_room, lane_of, room_of
from policies.protocol import OrderPolicy, PlacementPolicy
from policies.scheduler import matching
from policies.scheduler.event_dispatch import EventDispatch
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

WORKERS = ["a", "b", "c"]
SERVED = ["base", "lora"]
PROMPTS = [b"", b"s", b"system one", b"system one and more", b"system two", b"x" * 60]
PATIENCE_S = 1.0
PICK = st.floats(0.0, 1.0, exclude_max=True)
THEN = st.sampled_from(["decide", "decide", "go on"])
WISH = st.tuples(
    st.sampled_from([None, None, 0.0, 0.2, 3.0]),
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(PROMPTS),
            "served_name": st.sampled_from(["base", "base", "base", "base", "lora", "unknown"]),
            "pinned": st.sampled_from([None, None, None, None, *WORKERS]),
            "sequences": st.sampled_from([*[1] * 6, 2, 2, 5, 5, 10**9]),
            "streams": st.booleans(),
            "expected_output_tokens": st.sampled_from([0, 1, 40, 100]),
            "client": st.sampled_from(["anna", "anna", "ben"]),
            "exact": st.booleans(),
        }
    ),
)
"""How long the client gives it, and the request."""
STAGES = st.sampled_from([frozenset(Stage)] * 2 + [frozenset([stage]) for stage in Stage])
FACTS = st.fixed_dictionaries(
    {
        "stages": STAGES,
        "served_names": st.sampled_from([frozenset(SERVED), frozenset(SERVED), frozenset(SERVED[:1])]),
        "usable": st.sampled_from([True] * 5 + [False]),
        "suspect": st.sampled_from([False, False, True]),
        "slots": st.sampled_from([None, 1, 2, 6]),
        "kv_tokens": st.sampled_from([None, None, 150, 1000, 50]),
        "max_batched_tokens": st.sampled_from([None, 32]),
        "reading": st.sampled_from([None, (3, 0), (2, 4), (0, 1)]),
    }
)


def build(placement, settings, patience_s=PATIENCE_S, wrap=lambda queue, placement: (queue, placement)):
    """A scheduler of first come, first served, and a placement of the catalog."""
    knowledge = Knowledge()
    chosen = catalog.placement_policies()[placement].build(knowledge=knowledge)
    return Scheduler(*wrap(Fcfs(FcfsSettings(patience_s)), chosen), settings, knowledge)


def request(name, *, now=0.0, prompt=b"hello you", **fields):
    values = {"client": "anna", "served_name": "base", "expected_output_tokens": 40, "streams": True, **fields}
    tokens = max(1, len(prompt))
    return RequestView(id=name, key=PrefixKey(prompt, 1, 1.0), input_tokens=tokens, arrived=now, **values)


def facts(name, **fields):
    return WorkerFacts(id=name, **{"served_names": frozenset(SERVED), **fields})


@dataclass
class Asked:
    """One request, as far as a bystander can tell."""

    request: RequestView
    latest: float
    order: int
    bound: Placement | None = None
    """Where it is to start, as policies have heard."""
    ticket: tuple | None = None
    phase: str = "waiting"
    placement: Placement | None = None
    extend: int = 0
    prefilling: bool = False
    handed: bool = False
    """The prefill worker of a pair has said that it is done."""
    first: bool = False
    output: int = 0
    reserved: int = 0

    @property
    def pair(self):
        return self.placement.prefill is not None

    @property
    def computes(self):
        return self.placement.prefill or self.placement.decode

    @property
    def lane(self):
        return self.request.served_name, self.request.pinned, self.request.excluded


class World:
    """Listens to the events that policies hear, holds them to their grammar, and counts for itself."""

    def __init__(self, settings, scheduler=lambda: None):
        self.settings = settings
        self.scheduler = scheduler
        self.facts = {}
        self.live = {}
        self.ended = {}
        self.placed = []
        self.heard = []
        self.queued = 0

    def hear(self, event):
        self.heard.append(event)
        if isinstance(event, WorkerArrived | WorkerGone):
            return
        name = event.request.id
        asked = self.live.get(name)
        if isinstance(event, Queued):
            self.hear_queued(event, asked)
        elif isinstance(event, Left) and asked is None:
            assert (event.outcome, event.placement) == (Outcome.REJECTED, None)
            self.end(name, event.outcome)
        elif isinstance(event, Bound):
            assert asked.phase == "waiting"
            asked.request, asked.bound = event.request, event.placement
        elif isinstance(event, Left):
            self.hear_left(event, asked)
        elif isinstance(event, Placed):
            self.hear_placed(event, asked)
        elif isinstance(event, FirstToken):
            assert (asked.phase, asked.first) == ("running", False)
            asked.first, asked.prefilling = True, False
        elif isinstance(event, Output):
            assert (asked.phase, asked.first, event.placement) == ("running", True, asked.placement)
            assert event.tokens != 0
            asked.output += event.tokens
            asked.reserved = max(asked.reserved, asked.output)
            if asked.output == asked.reserved:
                asked.reserved = max(asked.output, self.refined(asked))

    def hear_queued(self, event, asked):
        latest = event.now + self.settings.max_wait_s
        if event.request.deadline is not None:
            latest = min(latest, event.request.deadline)
        self.queued += 1
        if event.again:
            assert asked.phase == "between"
            asked.request, asked.latest, asked.order = event.request, latest, self.queued
            asked.phase, asked.bound = "waiting", None
        else:
            assert asked is None
            self.live[event.request.id] = Asked(event.request, latest, self.queued)

    def hear_placed(self, event, asked):
        assert asked.phase == "waiting"
        assert event.placement == asked.bound
        assert event.extend_tokens == max(1, event.request.input_tokens - event.matched_tokens)
        asked.phase, asked.placement, asked.extend = "running", event.placement, event.extend_tokens
        asked.prefilling, asked.handed, asked.first, asked.output = True, False, False, 0
        asked.reserved = event.request.expected_output_tokens * event.request.sequences
        self.placed.append((event.request.id, event.placement))

    def refined(self, asked):
        """What is expected of an answer that has become as long as it was expected to be."""
        one, already = asked.request, asked.output // asked.request.sequences
        lengths = self.scheduler().lengths
        length = lengths.estimate_longer(
            one.client, one.served_name, one.input_tokens, one.max_output_tokens, already
        )
        return length.expected * one.sequences

    def hear_left(self, event, asked):
        assert event.placement == asked.placement
        if event.outcome is None:
            assert asked.phase == "running"
            asked.phase, asked.placement = "between", None
            return
        if event.outcome is Outcome.COMPLETED and asked.phase == "running":
            assert asked.output == event.usage.output_tokens
        self.end(event.request.id, event.outcome)
        del self.live[event.request.id]

    def end(self, name, outcome):
        assert name not in self.ended, "ended twice"
        self.ended[name] = outcome

    def waiting(self):
        return [asked for asked in self.live.values() if asked.phase == "waiting"]

    def running(self, worker=None):
        attempts = [asked for asked in self.live.values() if asked.phase == "running"]
        return [attempt for attempt in attempts if worker is None or attempt.placement.decode == worker]

    def prompts(self, worker):
        """Attempts of pairs whose prompt is computed there."""
        return [
            attempt
            for attempt in self.running()
            if attempt.pair and attempt.prefilling and attempt.placement.prefill == worker
        ]

    def able(self, request):
        """Ids of the workers that may serve the request."""
        serving = [
            worker
            for worker in self.facts.values()
            if worker.usable
            and request.served_name in worker.served_names
            and worker.id not in request.excluded
            and request.pinned in (None, worker.id)
        ]
        stalled = {load.facts.id for load in self.scheduler()._fleet.workers() if load.stalled}
        return {w.id for w in serving if not w.suspect and w.id not in stalled} or {w.id for w in serving}

    def obstacle(self, request):
        """Why no worker will ever run the request, with room or without."""
        suiting = [
            worker
            for worker in self.facts.values()
            if request.served_name in worker.served_names
            and worker.id not in request.excluded
            and request.pinned in (None, worker.id)
        ]
        if not any(worker.usable for worker in suiting):
            return RejectReason.NO_WORKER
        if request.sequences == 10**9:
            return RejectReason.TOO_LARGE
        holding = [one for one in suiting if one.kv_tokens is None or request.input_tokens < one.kv_tokens]
        if not request.exact or any(worker.usable for worker in holding):
            return None
        return RejectReason.NO_WORKER if holding else RejectReason.TOO_LARGE

    def check_start(self, request, placement, matches):
        """What the workers have in flight leaves room for the request, counted here."""
        decode, prefill = placement.decode, placement.prefill
        able = self.able(request)
        assert {decode, prefill} <= able | {None}
        if all((self.facts[name].kv_tokens or math.inf) <= request.input_tokens for name in able):
            return  # no worker can hold it, as far as is known: the engine says so
        for worker in {decode, prefill} - {None}:
            attempts, prompts = self.running(worker), self.prompts(worker)
            if not attempts and not prompts:
                continue
            extend = max(1, request.input_tokens - matches.get(worker, 0))
            if worker == prefill or prefill is None:
                owed = [
                    attempt.extend
                    for attempt in self.running()
                    if attempt.prefilling and attempt.computes == worker
                ]
                window = self.settings.prefill_window_tokens
                assert not owed or window is None or sum(owed) + extend <= window
            slots = self.facts[worker].slots
            if worker == decode and slots is not None:
                assert sum(attempt.request.sequences for attempt in attempts) + request.sequences <= slots
            answers = (request.expected_output_tokens, request.sequences) if worker == decode else (0, 1)
            self.check_kv(worker, request, extend, answers)

    def check_kv(self, worker, request, extend, answers):
        if self.facts[worker].kv_tokens is None:
            return
        capacity = int(self.facts[worker].kv_tokens * (1 - self.settings.kv_margin))
        attempts, prompts = self.running(worker), self.prompts(worker)
        batch = [Member(attempt.request.input_tokens, 0, 0, 0) for attempt in prompts]
        for attempt in attempts:
            remaining = max(0, -(-(attempt.reserved - attempt.output) // attempt.request.sequences))
            batch.append(
                Member(attempt.request.input_tokens, attempt.output, remaining, attempt.request.sequences)
            )
        loose = sum(attempt.request.input_tokens for attempt in attempts + prompts if not attempt.request.key.data)
        pinned = self.scheduler().prefixes.pinned_tokens(worker) + loose
        fresh = max(extend, request.input_tokens - pinned)
        assert fits(batch, Member(request.input_tokens, 0, *answers), capacity, pinned, fresh)


def order(asked):
    return asked.request.arrived, asked.order


class HeardOrder(OrderPolicy):
    """An order with a listener."""

    def __init__(self, order, hear):
        self.order = order
        self.hear = hear

    def __len__(self):
        return len(self.order)

    def push(self, request, *, again=False):
        self.order.push(request, again=again)

    def remove(self, request):
        self.order.remove(request)

    def waiting(self):
        return self.order.waiting()

    def candidates(self, workers, now):
        return self.order.candidates(workers, now)

    def on(self, event):
        self.hear(event)
        self.order.on(event)


class HeardPlacement(PlacementPolicy):
    """A placement with a listener, and a check of what it is asked."""

    def __init__(self, placement, hear, check=lambda question: None):
        self.placement = placement
        self.hear = hear
        self.check = check
        self.costs_are_seconds = placement.costs_are_seconds

    def rank(self, question):
        self.check(question)
        return self.placement.rank(question)

    def on(self, event):
        self.hear(event)
        self.placement.on(event)


class AnyOrder(RuleBasedStateMachine):
    """Events in any order, also late, repeated and stale ones, with any number of decisions in between."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.made = []
        self.tickets = []
        self.handed = set()
        self.pending = []
        self.decided = False

    @initialize(
        placement=st.sampled_from(sorted(catalog.placement_policies())),
        window=st.sampled_from([None, 16, 64]),
        max_queued=st.sampled_from([3, 1000]),
        attempts=st.integers(1, 3),
        max_wait_s=st.sampled_from([5.0, 600.0]),
        roles=st.lists(STAGES, max_size=3)
        | st.permutations([frozenset([stage]) for stage in [*Stage, *Stage]][:3]),
        disaggregate=st.sampled_from(["always", "heatmap"]),
        binding=st.sampled_from(["late", "late", "early"]),
        hold_s=st.sampled_from([0.0, 0.5, 5.0]),
    )
    def start(self, *, placement, window, roles, **fields):
        settings = SchedulerSettings(prefill_window_tokens=window, **fields)
        self.world = World(settings, lambda: self.scheduler)
        self.order_heard = []
        self.scheduler = build(placement, settings, wrap=self.listen)
        fleet, start = self.scheduler._fleet, self.scheduler._fleet.start

        def checked(request, placement, matches, now):
            self.world.check_start(request, placement, matches)
            return start(request, placement, matches, now)

        fleet.start = checked
        for name, stages in zip(WORKERS, roles, strict=False):
            self.worker_joins(facts(name, stages=stages))

    def listen(self, order, placement):
        return HeardOrder(order, self.order_heard.append), HeardPlacement(
            placement, self.world.hear, self.check_question
        )

    def check_question(self, question):
        """A placement is asked about workers that serve the request, and at least about one."""
        names = [view.id for view in question.workers]
        assert names
        assert len(set(names)) == len(names)
        assert set(names) <= self.world.able(question.request)

    # -- requests

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 1.1, 7.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.decided = False

    @rule(wishes=st.lists(WISH, min_size=1, max_size=5), then=THEN)
    def submit(self, wishes, then):
        for patience, wish in wishes:
            deadline = None if patience is None else self.now + patience
            self.submit_one(request(f"r{len(self.made)}", now=self.now, deadline=deadline, **wish))
        self.changed(then)

    def changed(self, then):
        """Something has happened; most drivers ask for decisions then, but none has to."""
        self.decided = False
        if then == "decide":
            self.decide()

    def submit_one(self, one):
        self.made.append(one)
        waiting, heard = self.world.waiting(), len(self.world.heard)
        reason = self.world.obstacle(one)
        ticket = self.scheduler.submit(one, self.now)
        self.tickets.append(ticket)
        if one.id in self.world.live:
            self.world.live[one.id].ticket = ticket
        if reason is not None:
            self.pending.append((ticket, reason))
            assert self.world.ended[one.id] is Outcome.REJECTED
        elif len(waiting) >= self.world.settings.max_queued:
            [left] = [event for event in self.world.heard[heard:] if isinstance(event, Left)]
            self.makes_room(left.request, [*(asked.request for asked in waiting), one])
            tickets = {asked.request.id: asked.ticket for asked in waiting} | {one.id: ticket}
            self.pending.append((tickets[left.request.id], RejectReason.QUEUE_FULL))
        else:
            assert one.id in self.world.live

    def makes_room(self, rejected, waiting):
        """It is the newest of a client with as many requests as any."""
        counts = Counter(one.client for one in waiting)
        assert counts[rejected.client] == max(counts.values())
        assert rejected.arrived == max(one.arrived for one in waiting if one.client == rejected.client)

    def asked(self, ticket):
        """The live request of a current ticket."""
        asked = self.world.live.get(ticket.request)
        return asked if asked is not None and asked.ticket == ticket else None

    def picture(self):
        loads = self.scheduler._fleet.workers()
        return (
            self.scheduler.snapshot(),
            self.scheduler.next_deadline(),
            [(load.profile, load.prefill_due, load.decode_tokens) for load in loads],
            len(self.world.heard),
        )

    def tell(self, pick, then, *, running, act):
        """An event for any ticket ever given; without effect unless it is current (and running, if need be)."""
        if not self.tickets:
            return
        current = [asked.ticket for asked in [*self.world.running(), *self.world.waiting()]]
        superseded = [
            ticket for ticket in self.tickets if ticket.request in self.world.live and not self.asked(ticket)
        ]
        choices = [*current, *current, *superseded, *superseded, *self.tickets[-4:], *self.tickets]
        ticket = choices[int(pick * len(choices))]
        asked = self.asked(ticket)
        if asked is not None and (asked.phase == "running" or not running):
            act(ticket, asked)
            self.changed(then)
            return
        before = self.picture()
        act(ticket, None)
        assert self.picture() == before, "a stale event had an effect"

    @rule(pick=PICK, then=THEN)
    def first_token(self, pick, then):
        def act(ticket, asked):
            self.scheduler.first_token(ticket, self.now)
            assert asked is None or asked.first

        self.tell(pick, then, running=True, act=act)

    @rule(pick=PICK, then=THEN)
    def prefill_done(self, pick, then):
        def act(ticket, asked):
            before = self.picture()
            self.scheduler.prefill_done(ticket, self.now)
            if asked is not None and asked.pair and asked.prefilling:
                asked.prefilling, asked.handed = False, True
            else:
                assert self.picture() == before, "of one worker, or the second time, it says nothing"

        self.tell(pick, then, running=True, act=act)

    @rule(pick=PICK, then=THEN, tokens=st.sampled_from([0, 1, 32, 90]))
    def output(self, pick, then, tokens):
        def act(ticket, asked):
            before = 0 if asked is None else asked.output
            self.scheduler.output(ticket, tokens, self.now)
            assert asked is None or asked.output == before + tokens

        self.tell(pick, then, running=True, act=act)

    @rule(
        pick=PICK,
        then=THEN,
        tokens=st.sampled_from([0, 1, 50]),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.COMPLETED, Outcome.REFUSED, Outcome.FAILED]),
    )
    def settled(self, pick, then, tokens, outcome):
        def act(ticket, asked):
            self.scheduler.settled(ticket, Usage(10, tokens), self.now, outcome)
            assert asked is None or self.world.ended[ticket.request] is outcome

        self.tell(pick, then, running=False, act=act)

    @rule(pick=PICK, then=THEN, usage=st.sampled_from([None, Usage(10, 0), Usage(10, 7)]))
    def cancel(self, pick, then, usage):
        def act(ticket, asked):
            self.scheduler.cancel(ticket, self.now, usage)
            assert asked is None or self.world.ended[ticket.request] is Outcome.CANCELLED

        self.tell(pick, then, running=False, act=act)

    @rule(
        pick=PICK,
        then=THEN,
        reason=st.sampled_from([AttemptFailure.CONNECT, AttemptFailure.LOST]),
        tokens=st.sampled_from([0, 0, 0, 3]),
        prefill=st.booleans(),
    )
    def attempt_failed(self, *, pick, then, reason, tokens, prefill):
        def act(ticket, asked):
            worker = "a" if asked is None else asked.computes if prefill else asked.placement.decode
            again = self.scheduler.attempt_failed(ticket, worker, reason, tokens, self.now)
            if asked is None:
                assert again is None
            elif tokens:
                assert again is None
                assert self.world.ended[ticket.request] is Outcome.FAILED
            else:
                self.failed_before_its_answer(asked, again, worker, reason)

        self.tell(pick, then, running=True, act=act)

    def failed_before_its_answer(self, asked, again, worker, reason):
        before, asked.ticket = asked.ticket, again
        self.tickets.append(again)
        assert again.attempt == before.attempt + 1
        alone = replace(asked.request, excluded=asked.request.excluded | {worker})
        elsewhere, same = (self.world.obstacle(one) is None for one in (alone, asked.request))
        once_more = reason is AttemptFailure.LOST and before.attempt == 1 and same
        if before.attempt >= self.world.settings.attempts or not (elsewhere or once_more):
            self.pending.append((again, RejectReason.ATTEMPTS_FAILED))
            assert self.world.ended[asked.request.id] is Outcome.REJECTED
        else:
            assert asked.phase == "waiting"
            assert (worker in asked.request.excluded) == elsewhere

    # -- workers

    @rule(
        name=st.sampled_from(WORKERS),
        what=st.sampled_from(["joins", "joins", "changes", "changes", "leaves"]),
        known=FACTS,
        then=THEN,
    )
    def worker_event(self, name, what, known, then):
        reading = known["reading"]
        told = facts(name, **{**known, "reading": None if reading is None else Reading(self.now, *reading)})
        if what == "leaves":
            self.worker_leaves(name)
        else:
            (self.worker_joins if what == "joins" else self.worker_changes)(told)
        self.changed(then)

    def worker_joins(self, known):
        self.around_workers(lambda: self.scheduler.worker_joined(known, self.now), known)

    def worker_changes(self, known):
        self.around_workers(lambda: self.scheduler.worker_changed(known, self.now), known)

    def worker_leaves(self, name):
        def act():
            self.scheduler.worker_left(name, self.now)
            self.world.facts.pop(name, None)

        self.around_workers(act)

    def around_workers(self, act, known=None):
        """Requests that no worker will ever run any longer are rejected, and no others."""
        waiting = {asked.request.id: (asked.ticket, asked.request) for asked in self.world.waiting()}
        if known is not None:
            self.world.facts[known.id] = known
        act()
        for name, (ticket, request) in waiting.items():
            if name in self.world.live:
                continue
            failed = any(
                isinstance(event, Left) and event.request.id == name and event.outcome is None
                for event in self.world.heard
            )
            self.pending.append((ticket, RejectReason.ATTEMPTS_FAILED if failed else self.world.obstacle(request)))

    @invariant()
    def what_waits_could_be_served(self):
        if hasattr(self, "world"):
            assert not any(self.world.obstacle(asked.request) for asked in self.world.waiting())

    # -- decisions

    @rule()
    def decide(self):
        world, now = self.world, self.now
        expired = [asked for asked in world.waiting() if asked.latest <= now]
        expected = [*self.pending, *((asked.ticket, RejectReason.WAITED_TOO_LONG) for asked in expired)]
        placed, heard = len(world.placed), len(world.heard)
        decisions = self.scheduler.decisions(now)
        rejects = [(d.ticket, d.reason) for d in decisions if isinstance(d, Reject)]
        assert Counter(rejects) == Counter(expected)
        self.pending = []
        dispatches = [d for d in decisions if isinstance(d, Dispatch)]
        assert [(d.request.id, d.place.placement) for d in dispatches] == world.placed[placed:]
        for dispatch in dispatches:
            assert dispatch.ticket == world.live[dispatch.request.id].ticket
            assert dispatch.waited_s == now - dispatch.request.arrived
        tickets = [decision.ticket for decision in decisions]
        assert self.handed.isdisjoint(tickets), "decided twice"
        assert len(set(tickets)) == len(tickets)
        self.handed.update(tickets)
        for event in world.heard[heard:]:
            assert not (isinstance(event, FirstToken | Output) and event.request.streams), "predicted a stream"
        self.no_request_waits_for_nothing()
        self.decided = True

    def no_request_waits_for_nothing(self):
        """Work conservation: a request that could start waits by choice, or its workers are kept for others.

        Kept are workers that are reserved, and those that older requests claim.
        """
        matcher, closed, claimed, first = self.scheduler._matcher, set(), set(), True
        room = room_of(self.scheduler._fleet.open_views())
        for asked in sorted(self.world.waiting(), key=order)[: matching._LOOKS]:
            request, hold = asked.request, matcher._holds.get(asked.request.id)
            if not has_room(lane_of(request), room):
                continue
            kept = closed | matcher.reservations.blocked(request) | (set() if first else claimed)
            kept -= {matcher.reservations.of(request)}
            first = False
            ready = self.ready(request, kept)
            if ready:
                assert hold is not None, "a request waits beside a worker with room for it"
                assert self.now < hold.until <= hold.since + self.world.settings.hold_s + 1e-9
                assert not ready & hold.accepts, "a worker that ends the wait has room"
                assert hold.worker in self.world.able(request)
            elif hold is None or hold.until <= self.now:
                overdue = self.now - request.arrived > PATIENCE_S
                for view in self.able_now(request):
                    if matching._is_small(request, view.facts):
                        (closed if overdue else claimed).add(view.id)
                    elif view.room.open and view.admits_decode(request, 0):
                        claimed.add(view.id)

    def able_now(self, request):
        views = self.scheduler.able(request)
        return [view for view in views if request.bound is None or view.id in request.bound]

    def ready(self, request, kept):
        """Workers that could begin with the request now."""
        matches = self.scheduler.prefixes.match(request)
        free = [view for view in self.able_now(request) if view.id not in kept]
        named = request.bound
        if named is not None and named.prefill is None:
            return {view.id for view in free if view.admits(request, matches.get(view.id, 0))}
        if named is not None and len(free) < 2:
            return set()
        question, ready = Question(request, matches, self.scheduler.able(request), self.now), set()
        for option in self.scheduler._disaggregation.options(question):
            fits = [view for view in option.workers if view in free]
            if not option.decoders:
                ready |= {view.id for view in fits if view.admits(request, matches.get(view.id, 0))}
            elif any(
                view in free and view.admits_decode(request, matches.get(view.id, 0)) for view in option.decoders
            ):
                ready |= {view.id for view in fits if view.admits_prefill(request, matches.get(view.id, 0))}
        return ready

    @rule(share=st.sampled_from([0.01, 0.5, 0.99]))
    def wait_for_the_deadline(self, share):
        """Asked before its deadline the scheduler has nothing to say; at its deadline it has."""
        if not self.decided:
            self.decide()
        at = self.scheduler.next_deadline()
        if at is None:
            return
        early = self.now + share * (at - self.now)
        heard, silent = (
            len(self.world.heard),
            (self.scheduler._fleet.next_check(), self.scheduler._matcher.wake_at),
        )
        if early < at:
            assert self.scheduler.decisions(early) == []
            assert len(self.world.heard) == heard
            assert self.scheduler.next_deadline() == at
        self.now = max(self.now, at)
        self.decide()
        assert len(self.world.heard) > heard or at in silent, "a deadline at which nothing was due"
        assert at not in (self.scheduler._matcher.wake_at, self.scheduler._waits.next())

    # -- what holds after every step

    @invariant()
    def no_policy_has_a_fault(self):
        """The scheduler survives exceptions of policies, so what listens to them here has to be asked."""
        if hasattr(self, "world") and self.scheduler.faults.count:
            raise self.scheduler.faults.last

    @invariant()
    def counters_are_the_sum_of_what_runs(self):
        if not hasattr(self, "world"):
            return
        world, snapshot = self.world, self.scheduler.snapshot()
        assert self.order_heard == world.heard
        assert (snapshot.queued, snapshot.in_flight) == (len(world.waiting()), len(world.running()))
        loads = {load.facts.id: load for load in self.scheduler._fleet.workers()}
        rows = {row.id: row for row in snapshot.workers}
        busy = {attempt.placement.decode for attempt in world.running()}
        busy |= {attempt.placement.prefill for attempt in world.running() if attempt.pair and attempt.prefilling}
        assert len(rows) == len(snapshot.workers)
        assert rows.keys() == loads.keys() == world.facts.keys() | busy
        for name, load in loads.items():
            attempts, prompts = world.running(name), world.prompts(name)
            assert rows[name].requests == len(attempts) + len(prompts)
            assert rows[name].sequences == sum(attempt.request.sequences for attempt in attempts)
            computing = [
                attempt for attempt in attempts + prompts if attempt.prefilling and attempt.computes == name
            ]
            assert rows[name].prefill_owed == sum(attempt.extend for attempt in computing)
            seen = [attempt for attempt in computing if attempt.pair or attempt.request.streams]
            handed = [
                attempt for attempt in attempts if attempt.handed and attempt.request.streams and not attempt.first
            ]
            assert load.responses_due == len(seen) + len(handed)
            assert load.reserved == sum(attempt.reserved for attempt in attempts)
            assert load.decode_tokens == sum(
                attempt.request.input_tokens * attempt.request.sequences + attempt.output
                for attempt in attempts
                if attempt.first
            )
            assert load.pinned == self.scheduler.prefixes.pinned_tokens(name)
            assert load.pinned <= sum(attempt.request.input_tokens for attempt in attempts + prompts)

    @invariant()
    def what_is_kept_for_waiting_requests_is_for_requests_that_wait(self):
        if not hasattr(self, "world"):
            return
        waiting = {asked.request.id: asked.request for asked in self.world.waiting()}
        matcher, named = self.scheduler._matcher, self.scheduler._named
        assert matcher._holds.keys() <= waiting.keys()
        reserved = matcher.reservations._workers
        assert reserved.keys() <= waiting.keys()
        assert len(set(reserved.values())) == len(reserved) <= 1
        assert set(reserved.values()) <= self.world.facts.keys()
        assert len(self.scheduler._bound) == len(waiting)
        assert self.scheduler._waiting == waiting
        requests, sequences = Counter(), Counter()
        for one in waiting.values():
            assert (one.bound is None) == (named is None)
            if named is not None and named._named[one.id].counted:
                requests[one.bound.ranked] += 1
                sequences[one.bound.ranked] += one.sequences
        for name in self.world.facts:
            worker = self.scheduler._fleet[name]
            assert (worker.named_requests, worker.named_sequences) == (requests[name], sequences[name])
            assert bool(worker.named_prefill_tokens) == bool(requests[name])
        assert named is None or len(named) == len(waiting)

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self.decide()
        for asked in [*self.world.running(), *self.world.waiting()]:
            self.scheduler.settled(asked.ticket, Usage(10, 20), self.now)
        self.decide()
        ended = {ticket.request for ticket in self.tickets}
        assert self.world.ended.keys() == ended
        assert not self.world.live
        self.counters_are_the_sum_of_what_runs()
        for row in self.scheduler.snapshot().workers:
            assert (row.requests, row.sequences, row.prefill_owed, row.kv_reserved) == (0, 0, 0, 0)
        named = self.scheduler._named
        for load in self.scheduler._fleet.workers():
            assert (
                load.responses_due,
                load._unseen_prefills,
                load._answers,
                load._unkeyed,
                len(load._occupants),
            ) == (0,) * 5
        assert self.scheduler.next_deadline() is None
        assert (len(self.scheduler._waits), len(self.scheduler._predictions)) == (0, 0)
        assert not self.scheduler._entries
        assert not self.scheduler._matcher._holds
        assert len(self.scheduler._matcher.reservations) == 0
        assert named is None or not any(stats.nodes for stats in named._coming.stats().values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=80, stateful_step_count=80, deadline=None)

# -- the cases worth reading


def scheduler(*workers, placement="least_loaded", patience_s=PATIENCE_S, **fields):
    made = build(placement, SchedulerSettings(**fields), patience_s)
    for worker in workers or (facts("a"),):
        made.worker_joined(worker, 0.0)
    return made


def listened(made):
    """Everything that the placement policy hears from now on."""
    heard = []
    listener = HeardPlacement(made._matcher._placement, heard.append)
    made._events = EventDispatch((made._order, listener, made._disaggregation), made.faults)
    return heard


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: made.worker_left("large", 1.0), RejectReason.TOO_LARGE),
        (lambda made: made.worker_changed(facts("large", max_model_len=100), 1.0), RejectReason.TOO_LARGE),
        (lambda made: made.worker_changed(facts("large", kv_tokens=100), 1.0), RejectReason.TOO_LARGE),
        (lambda made: made.worker_changed(facts("large", usable=False), 1.0), RejectReason.NO_WORKER),
        (lambda made: made.worker_changed(facts("large", suspect=True), 1.0), None),
    ],
    ids=["leaves", "has a shorter context", "has a smaller cache", "is down", "is suspect"],
)
@pytest.mark.parametrize("arrives", ["before", "after"])
def test_a_prompt_is_rejected_as_soon_as_no_worker_can_ever_hold_it_and_not_while_one_may(arrives, change, reason):
    made = scheduler(facts("small", max_model_len=100), facts("large", slots=1))
    made.submit(request("runs", pinned="large"), 0.0)
    assert dispatched(made, 0.0) == ["runs"]
    long = request("long", prompt=bytes(1000), exact=True)
    if arrives == "after":
        change(made)
    made.submit(long, 1.0)
    if arrives == "before":
        change(made)
    rejects = [d.reason for d in made.decisions(1.0) if isinstance(d, Reject)]
    assert rejects == ([] if reason is None else [reason])


def dispatched(made, now):
    return [d.request.id for d in made.decisions(now) if isinstance(d, Dispatch)]


def rejected(made, now):
    return [(d.request.id, d.reason) for d in made.decisions(now) if isinstance(d, Reject)]


def test_an_idle_fleet_adds_no_wait():
    made = scheduler()
    made.submit(request("r", now=1.0), 1.0)
    (dispatch,) = made.decisions(1.0)
    assert (dispatch.request.id, dispatch.waited_s) == ("r", 0.0)
    assert made.decisions(1.0) == []


def test_the_next_prompt_follows_at_the_first_token_of_the_one_before():
    made = scheduler(prefill_window_tokens=10)
    first = made.submit(request("first"), 0.0)
    made.submit(request("second", prompt=b"something"), 0.0)
    assert dispatched(made, 0.0) == ["first"]
    made.first_token(first, 0.1)
    assert dispatched(made, 0.1) == ["second"]


def test_a_prompt_longer_than_the_window_waits_for_all_prefill_to_end():
    made = scheduler(prefill_window_tokens=20)
    small = made.submit(request("small", prompt=b"tiny"), 0.0)
    made.submit(request("large", prompt=b"l" * 500), 0.0)
    assert dispatched(made, 0.0) == ["small"]
    made.first_token(small, 0.1)
    assert dispatched(made, 0.1) == ["large"]


def test_a_request_that_nobody_serves_is_turned_away_at_once():
    made = scheduler()
    made.submit(request("r", served_name="unheard of"), 0.0)
    assert rejected(made, 0.0) == [("r", RejectReason.NO_WORKER)]


def test_other_limits_hold_from_then_on_and_what_waits_keeps_its_deadline():
    made = scheduler(facts("a", slots=1), max_queued=9, max_wait_s=600.0)
    for name in ("runs", "waits", "waits too"):
        made.submit(request(name), 0.0)
        made.decisions(0.0)
    made.set_limits(max_queued=2, max_wait_s=5.0, attempts=1)
    made.submit(request("too many"), 1.0)
    assert rejected(made, 1.0) == [("too many", RejectReason.QUEUE_FULL)]
    made.set_limits(max_queued=9, max_wait_s=5.0, attempts=1)
    made.submit(request("impatient"), 1.0)
    assert rejected(made, 7.0) == [("impatient", RejectReason.WAITED_TOO_LONG)]
    assert made.queued == 2


def test_a_full_queue_turns_away():
    made = scheduler(facts("a", slots=1), max_queued=1)
    for name in ("runs", "waits", "too many"):
        made.submit(request(name), 0.0)
        decisions = made.decisions(0.0)
    assert [(d.request.id, d.reason) for d in decisions] == [("too many", RejectReason.QUEUE_FULL)]


def test_a_deadline_of_zero_is_a_deadline():
    made = scheduler(facts("a", slots=1))
    made.submit(request("runs", now=-2.0), -2.0)
    made.decisions(-2.0)
    made.submit(request("waits", now=-1.0, deadline=0.0), -1.0)
    assert made.decisions(-1.0) == []
    assert made.next_deadline() == 0.0
    assert rejected(made, 0.0) == [("waits", RejectReason.WAITED_TOO_LONG)]


def test_no_bound_on_waiting_means_no_deadline():
    made = scheduler(facts("a", slots=1), max_wait_s=math.inf)
    made.submit(request("runs", streams=False, expected_output_tokens=0), 0.0)
    made.submit(request("waits"), 0.0)
    made.decisions(0.0)
    made.decisions(made.next_deadline())  # the predicted first token
    assert made.next_deadline() is None


def test_time_on_a_worker_that_failed_is_not_time_spent_waiting():
    made = scheduler(facts("a"), facts("b"), max_wait_s=10.0)
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    failed = dispatch.place.placement.decode
    made.attempt_failed(ticket, failed, AttemptFailure.LOST, 0, 60.0)
    (again,) = made.decisions(60.0)
    assert isinstance(again, Dispatch)
    assert again.place.placement.decode != failed


def test_a_failed_request_goes_before_those_that_came_later():
    made = scheduler(facts("a", slots=1), facts("b", slots=1))
    tickets = {name: made.submit(request(name, now=at), at) for at, name in enumerate(["first", "second"])}
    placed = {d.request.id: d.place.placement.decode for d in made.decisions(1.0)}
    made.submit(request("third", now=2.0), 2.0)
    assert made.decisions(2.0) == []
    made.attempt_failed(tickets["first"], placed["first"], AttemptFailure.LOST, 0, 3.0)
    made.settled(tickets["second"], Usage(9, 40), 3.0)
    places = {d.request.id: d.place.placement.decode for d in made.decisions(3.0)}
    assert places["first"] == placed["second"]


def test_an_answer_goes_on_with_what_has_come_of_it_as_its_prompt():
    made = scheduler(facts("a"), facts("b"), facts("c"))
    asked = request("r", prompt=b"x" * 100, max_output_tokens=50)
    ticket = made.submit(asked, 0.0)
    (first,) = made.decisions(0.0)
    again = first
    for came in (10, 30):
        made.first_token(ticket, 1.0)
        made.output(ticket, 10, 1.0)
        ticket = made.attempt_failed(
            ticket, again.place.placement.decode, AttemptFailure.LOST, 1, 2.0, resume_tokens=came
        )
        (again,) = made.decisions(2.0)
        view = again.request
        assert (view.input_tokens, view.resume_tokens, view.max_output_tokens) == (100 + came, came, 50 - came)
        assert view.expected_output_tokens == max(1, first.request.expected_output_tokens - came)
        assert view.whole
    made.settled(ticket, Usage(100, 50), 3.0)
    assert all((row.requests, row.prefill_owed, row.kv_reserved) == (0, 0, 0) for row in made.snapshot().workers)


def test_a_request_whose_every_worker_failed_is_turned_away_and_says_why():
    made = scheduler(facts("a"))
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    again = made.attempt_failed(ticket, "a", AttemptFailure.TIMEOUT, 0, 1.0)
    (reject,) = made.decisions(1.0)
    assert (reject.ticket, reject.reason) == (again, RejectReason.ATTEMPTS_FAILED)
    assert reject.last_failure is AttemptFailure.TIMEOUT


def test_a_one_worker_fleet_tries_a_lost_connection_once_more():
    made = scheduler(facts("a"))
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    again = made.attempt_failed(ticket, "a", AttemptFailure.LOST, 0, 1.0)
    (dispatch,) = made.decisions(1.0)
    assert (dispatch.ticket, dispatch.place.placement.decode) == (again, "a")
    last = made.attempt_failed(again, "a", AttemptFailure.LOST, 0, 2.0)
    (reject,) = made.decisions(2.0)
    assert (reject.ticket, reject.reason) == (last, RejectReason.ATTEMPTS_FAILED)


def test_where_there_is_another_worker_a_lost_connection_goes_there():
    made = scheduler(facts("a"), facts("b"))
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    failed = dispatch.place.placement.decode
    made.attempt_failed(ticket, failed, AttemptFailure.LOST, 0, 1.0)
    (dispatch,) = made.decisions(1.0)
    assert dispatch.place.placement.decode != failed


def test_low_priority_passes_a_large_prompt_no_longer_than_one_prefill():
    """Small prompts would keep the window filled for ever; those of its own level may still pass."""
    knowledge = Knowledge()
    policies = catalog.queue_policies()["priority"], catalog.placement_policies()["least_loaded"]
    made = Scheduler(
        *(entry.build(knowledge=knowledge) for entry in policies),
        SchedulerSettings(prefill_window_tokens=60),
        knowledge,
    )
    made.worker_joined(facts("a"), 0.0)
    running = made.submit(request("runs", prompt=b"r" * 20), 0.0)
    made.decisions(0.0)
    made.submit(request("large", prompt=b"l" * 500, priority=0, now=0.1), 0.1)
    for number in range(9):
        made.submit(request(f"low {number}", prompt=bytes([number]) * 10, priority=5, now=0.1), 0.1)
    assert dispatched(made, 0.1) == []
    small = made.submit(request("small", prompt=b"s" * 10, priority=5, pinned="a", now=0.2), 0.2)
    assert dispatched(made, 0.2) == []
    made.cancel(small, 0.3)
    made.first_token(running, 0.4)
    assert dispatched(made, 0.4) == ["large"]


def test_attempts_are_bounded():
    made = scheduler(*(facts(name) for name in "abcdef"), attempts=2)
    ticket = made.submit(request("r"), 0.0)
    for attempt in (1, 2):
        (dispatch,) = made.decisions(0.0)
        assert dispatch.ticket.attempt == attempt
        ticket = made.attempt_failed(ticket, dispatch.place.placement.decode, AttemptFailure.CONNECT, 0, 0.0)
    assert rejected(made, 0.0) == [("r", RejectReason.ATTEMPTS_FAILED)]


def test_an_answer_that_broke_off_halfway_is_not_tried_again():
    made = scheduler(facts("a"), facts("b"))
    heard = listened(made)
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    made.output(ticket, 5, 1.0)
    assert made.attempt_failed(ticket, dispatch.place.placement.decode, AttemptFailure.LOST, 5, 2.0) is None
    assert made.decisions(2.0) == []
    assert heard[-1].outcome is Outcome.FAILED


def test_a_worker_that_could_not_be_reached_has_not_cached_the_prompt():
    made = scheduler(facts("a"), facts("b"))
    asked = request("r", prompt=b"a prompt of some length")
    ticket = made.submit(asked, 0.0)
    (dispatch,) = made.decisions(0.0)
    worker = dispatch.place.placement.decode
    assert made.prefixes.match(asked).keys() == {worker}
    made.attempt_failed(ticket, worker, AttemptFailure.CONNECT, 0, 1.0)
    assert made.prefixes.match(asked) == {}


def test_an_id_can_be_used_again_but_not_twice_at_once():
    made = scheduler(facts("a", slots=1))
    made.submit(request("r"), 0.0)
    with pytest.raises(ValueError, match="already here"):
        made.submit(request("r"), 0.0)


def test_a_request_is_not_mistaken_for_an_earlier_one_of_the_same_id():
    made = scheduler(facts("a", slots=1), max_wait_s=10.0)
    old = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.settled(old, Usage(9, 1), 1.0)
    other = made.submit(request("other", now=9.0), 9.0)
    made.decisions(9.0)
    new = made.submit(request("r", now=9.0), 9.0)
    assert made.decisions(10.5) == []  # the old request's ten seconds are over, not the new one's
    made.cancel(old, 11.0)
    made.settled(other, Usage(9, 1), 12.0)
    (dispatch,) = made.decisions(12.0)
    assert dispatch.ticket == new


def test_deadlines_of_what_has_ended_are_not_kept():
    made = scheduler(facts("a"), facts("busy", slots=1))
    runs = made.submit(request("runs", pinned="busy"), 0.0)
    made.submit(request("waits", pinned="busy"), 0.0)  # its deadline comes first, and hides the others
    made.decisions(0.0)
    made.first_token(runs, 0.0)
    for number in range(1000):
        ticket = made.submit(request(f"r{number}", now=1.0, streams=False), 1.0)
        made.decisions(1.0)
        made.settled(ticket, Usage(9, 9), 1.0)
    assert len(made._waits) + len(made._predictions) < 200
    assert made.next_deadline() == made.settings.max_wait_s


def test_who_waits_for_workers_that_are_gone_is_turned_away():
    made = scheduler(facts("a", slots=1), facts("b", served_names=frozenset({"other"})))
    made.submit(request("runs"), 0.0)
    made.submit(request("waits"), 0.0)
    assert dispatched(made, 0.0) == ["runs"]
    made.worker_changed(facts("a", slots=1, usable=False), 1.0)
    assert rejected(made, 1.0) == [("waits", RejectReason.NO_WORKER)]


def test_who_waits_for_a_line_that_is_no_longer_served_is_turned_away():
    made = scheduler(facts("a", slots=1))
    made.submit(request("runs", served_name="lora"), 0.0)
    made.submit(request("waits", served_name="lora"), 0.0)
    made.decisions(0.0)
    made.worker_changed(facts("a", slots=1, served_names=frozenset({"base"})), 1.0)
    assert rejected(made, 1.0) == [("waits", RejectReason.NO_WORKER)]


def test_attempts_on_a_worker_that_left_and_came_back_are_still_counted_there():
    made = scheduler(facts("a", slots=2))
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.worker_left("a", 1.0)
    made.worker_joined(facts("a", slots=2), 2.0)
    (row,) = made.snapshot().workers
    assert (row.requests, row.room.slots_free) == (1, 1)
    made.settled(ticket, Usage(9, 40), 3.0)
    (row,) = made.snapshot().workers
    assert (row.requests, row.sequences, row.prefill_owed, row.kv_reserved) == (0, 0, 0, 0)


def test_a_worker_that_joins_twice_keeps_its_counters():
    made = scheduler(facts("a", slots=1))
    made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.worker_joined(facts("a", slots=1), 1.0)
    made.submit(request("waits", now=1.0), 1.0)
    assert made.decisions(1.0) == []


def test_a_worker_that_left_is_forgotten_with_its_last_request():
    made = scheduler()
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.worker_left("a", 1.0)
    assert [row.id for row in made.snapshot().workers] == ["a"]
    made.settled(ticket, Usage(9, 40), 2.0)
    assert made.snapshot().workers == ()


def test_a_suspect_worker_is_used_when_nobody_better_is_left():
    made = scheduler(facts("a", suspect=True), facts("b"))
    made.submit(request("first"), 0.0)
    made.submit(request("second", prompt=b"another"), 0.0)
    assert {d.place.placement.decode for d in made.decisions(0.0)} == {"b"}
    made.worker_changed(facts("b", usable=False), 1.0)
    made.submit(request("third", now=1.0), 1.0)
    assert [d.place.placement.decode for d in made.decisions(1.0)] == ["a"]


def test_an_answer_that_is_not_streamed_is_predicted_and_corrected_at_its_end():
    made = scheduler()
    heard = listened(made)
    ticket = made.submit(request("r", streams=False, expected_output_tokens=70), 0.0)
    made.decisions(0.0)
    for _ in range(4):
        at = made.next_deadline()
        assert made.decisions(at - 1e-6) == []
        made.decisions(at)
    assert [type(event) for event in heard] == [Queued, Bound, Placed, FirstToken, Output, Output, Output]
    assert [event.tokens for event in heard if isinstance(event, Output)] == [32, 32, 6]
    assert made.next_deadline() is None
    made.settled(ticket, Usage(9, 50), 60.0)
    assert [type(event) for event in heard[7:]] == [Output, Left]
    assert sum(event.tokens for event in heard if isinstance(event, Output)) == 50


def test_a_predicted_first_token_makes_room():
    made = scheduler(prefill_window_tokens=10)
    made.submit(request("first", streams=False), 0.0)
    made.submit(request("second", streams=False, prompt=b"something"), 0.0)
    assert dispatched(made, 0.0) == ["first"]
    assert dispatched(made, made.next_deadline()) == ["second"]


def test_an_answer_without_a_seen_first_token_has_one_at_its_end():
    made = scheduler()
    heard = listened(made)
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.settled(ticket, Usage(9, 3), 1.0)
    assert [type(event) for event in heard] == [Queued, Bound, Placed, FirstToken, Output, Left]


def test_the_events_of_a_stream_add_up_to_the_usage():
    made = scheduler()
    heard = listened(made)
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.first_token(ticket, 0.1)
    made.output(ticket, 32, 0.5)
    made.output(ticket, 12, 0.7)
    made.settled(ticket, Usage(9, 41), 0.8)
    assert [event.tokens for event in heard if isinstance(event, Output)] == [32, 12, -3]


@pytest.mark.parametrize("way", ["settled", "cancel"])
def test_an_answer_is_expected_in_the_cache_of_who_gave_it_however_it_ended(way):
    made = scheduler()

    def turn(name, prompt, now, cached=None):
        ticket = made.submit(request(name, prompt=prompt), now)
        [given] = made.decisions(now)
        if way == "settled":
            made.settled(ticket, Usage(9, 31, cached), now + 1.0)
        else:
            made.output(ticket, 31, now + 0.5)
            made.cancel(ticket, now + 1.0, None if cached is None else Usage(9, 31, cached))
        return given.place.matched_tokens

    assert turn("first", b"hello you", 0.0) == 0
    assert turn("second", b"hello you" * 5, 2.0, cached=39) == 9
    assert turn("third", b"hello you" * 5 + b"and so on" * 5, 4.0) == 45 + 30


def test_a_request_the_size_of_a_worker_starts_beside_a_flood_of_small_ones():
    """The flood keeps every slot busy; once the large request is impatient, the slots empty for it."""
    made = scheduler(facts("a", slots=4), patience_s=1.0)
    running = []
    for step in range(200):
        now = step * 0.05
        if step == 10:
            made.submit(request("large", sequences=4, now=now), now)
        made.submit(request(f"small-{step}", now=now, served_name="lora"), now)
        for done in [attempt for attempt in running if attempt[0] <= now]:
            running.remove(done)
            made.settled(done[1], Usage(9, 9), now)
        for decision in made.decisions(now):
            running.append((now + 0.4, decision.ticket))
            made.first_token(decision.ticket, now)
            if decision.request.id == "large":
                assert 1.5 < now < 2.1  # it arrived at 0.5, and a slot is freed after 0.4 at most
                return
    pytest.fail("the large request never started")


@settings(max_examples=25, deadline=None)
@given(
    placement=st.sampled_from(sorted(catalog.placement_policies())),
    requests=st.lists(
        st.tuples(
            st.floats(0.0, 0.3),
            st.sampled_from(PROMPTS),
            st.sampled_from(SERVED),
            st.sampled_from([None, None, "a", "b"]),
            st.integers(1, 6),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    ),
    slots=st.sampled_from([None, 1, 3]),
    service_s=st.sampled_from([0.05, 1.0]),
    seed=st.randoms(use_true_random=False),
)
def test_with_workers_that_finish_every_request_starts_and_ends(placement, requests, slots, service_s, seed):
    workers = [facts("a", slots=slots, kv_tokens=300), facts("b", slots=slots)]
    made = scheduler(*workers, placement=placement, max_wait_s=math.inf, prefill_window_tokens=30)
    pending, now, ends, done = [], 0.0, [], set()
    for number, (gap, prompt, line, pinned, sequences, streams) in enumerate(requests):
        now += gap
        asked = request(
            f"r{number}",
            now=now,
            prompt=prompt,
            served_name=line,
            pinned=pinned,
            sequences=sequences,
            streams=streams,
        )
        pending.append(asked)
    arrivals = iter(pending)
    upcoming, now = next(arrivals), 0.0
    for _ in range(100 * len(requests)):
        for decision in made.decisions(now):
            assert isinstance(decision, Dispatch)
            ends.append((now + service_s * seed.uniform(0.5, 1.5), decision.ticket))
        times = [at for at in (made.next_deadline(), upcoming.arrived if upcoming else None) if at is not None]
        if len(done) == len(requests):
            break
        now = max(now, min([*times, *(at for at, _ in ends)]))
        if upcoming is not None and upcoming.arrived <= now:
            made.submit(upcoming, now)
            upcoming = next(arrivals, None)
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            made.settled(end[1], Usage(9, seed.randrange(80)), now)
            done.add(end[1].request)
    assert len(done) == len(requests)
    assert made.snapshot().in_flight == made.snapshot().queued == 0


# -- prefill/decode pairs


def paired(*workers, **fields):
    """A fleet that answers in pairs: `p` and `q` compute prompts, `d` and `e` answer."""
    made = build("least_loaded", SchedulerSettings(**{"prefill_window_tokens": 10_000, **fields}))
    for name in workers or ("p", "d"):
        made.worker_joined(prefills(name) if name in "pq" else decodes(name), 0.0)
    return made


def prefills(name, **fields):
    return facts(name, stages=frozenset([Stage.PREFILL]), **fields)


def decodes(name, **fields):
    return facts(name, stages=frozenset([Stage.DECODE]), **fields)


def counts(made):
    """requests, sequences, prefill owed, KV tokens of prompts, of each worker."""
    pinned = made.prefixes.pinned_tokens
    rows = made.snapshot().workers
    return {row.id: (row.requests, row.sequences, row.prefill_owed, pinned(row.id)) for row in rows}


def test_a_pair_shares_the_work_until_the_prefill_is_done():
    made = paired()
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    assert dispatch.place.placement == Placement("d", "p")
    assert counts(made) == {"p": (1, 0, 9, 9), "d": (1, 1, 0, 9)}
    made.prefill_done(ticket, 0.1)
    assert counts(made) == {"p": (0, 0, 0, 0), "d": (1, 1, 0, 9)}
    made.first_token(ticket, 0.2)
    made.settled(ticket, Usage(9, 1), 0.3)
    assert set(counts(made).values()) == {(0, 0, 0, 0)}
    assert made.prefixes.match(request("alike")) == {"p": 8, "d": 8}


def test_the_next_prompt_follows_when_the_prefill_is_done_not_at_the_first_token():
    made = paired(prefill_window_tokens=9)
    first = made.submit(request("first"), 0.0)
    made.submit(request("second", prompt=b"something"), 0.0)
    assert dispatched(made, 0.0) == ["first"]
    made.prefill_done(first, 0.1)
    assert dispatched(made, 0.1) == ["second"]


def test_a_pair_needs_room_on_both_sides():
    made = paired(prefill_window_tokens=5)
    made.worker_changed(decodes("d", slots=1), 0.0)
    tickets = [made.submit(request(name, prompt=name.encode()), 0.0) for name in ("first", "second", "third")]
    assert dispatched(made, 0.0) == ["first"]
    made.prefill_done(tickets[0], 0.1)
    assert dispatched(made, 0.1) == [], "no slot"
    made.worker_changed(decodes("d", slots=3), 0.2)
    assert dispatched(made, 0.2) == ["second"]
    assert dispatched(made, 0.3) == [], "no window"
    made.prefill_done(tickets[1], 0.4)
    assert dispatched(made, 0.4) == ["third"]


def test_a_failed_decode_goes_elsewhere_and_has_its_prompt_computed_again():
    made = paired("p", "d", "e")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    failed = dispatch.place.placement.decode
    made.prefill_done(ticket, 0.1)
    again = made.attempt_failed(ticket, failed, AttemptFailure.LOST, 0, 0.2)
    (dispatch,) = made.decisions(0.2)
    assert dispatch.ticket == again
    assert dispatch.place.placement == Placement("e" if failed == "d" else "d", "p")
    assert counts(made)["p"][:3] == (1, 0, 1), "what is cached is not computed twice"
    made.prefill_done(ticket, 0.3)  # of the attempt that failed
    assert counts(made)["p"][:3] == (1, 0, 1)


def test_a_failed_prefill_goes_elsewhere_and_nothing_is_taken_to_be_where_it_never_came():
    made = paired("p", "q", "d")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    failed = dispatch.place.placement.prefill
    made.attempt_failed(ticket, failed, AttemptFailure.CONNECT, 0, 0.2)
    assert made.prefixes.match(request("alike")) == {}
    (dispatch,) = made.decisions(0.2)
    assert dispatch.place.placement == Placement("d", "q" if failed == "p" else "p")


def test_a_prefill_that_broke_off_may_be_cached_where_it_was_but_not_at_its_partner():
    made = paired("p", "q", "d")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    made.attempt_failed(ticket, dispatch.place.placement.prefill, AttemptFailure.LOST, 0, 0.2)
    assert made.prefixes.match(request("alike")).keys() == {dispatch.place.placement.prefill}


def test_a_decode_that_could_not_be_reached_leaves_the_prompt_at_its_prefill_worker():
    made = paired("p", "d", "e")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    made.prefill_done(ticket, 0.1)
    made.attempt_failed(ticket, dispatch.place.placement.decode, AttemptFailure.CONNECT, 0, 0.2)
    assert made.prefixes.match(request("alike")).keys() == {"p"}


@pytest.mark.parametrize("change", [facts("p", usable=False), facts("p", suspect=True), None])
def test_without_a_prefill_worker_the_decode_worker_serves_alone(change):
    made = paired()
    if change is None:
        made.worker_left("p", 0.0)
    else:
        made.worker_changed(replace(change, stages=frozenset([Stage.PREFILL])), 0.0)
    made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    assert dispatch.place.placement == Placement("d")


def test_a_prefill_worker_learns_from_its_prefills_and_its_partner_follows_it():
    made = paired()
    for number in range(40):
        at = 10.0 * number
        ticket = made.submit(request(f"r{number}", prompt=bytes([number]) * 500, now=at), at)
        made.decisions(at)
        made.prefill_done(ticket, at + 0.4)
        made.first_token(ticket, at + 3.0)
        made.settled(ticket, Usage(500, 1), at + 3.0)
    profiles = {row.id: row.profile for row in made.snapshot().workers}
    assert profiles["p"].prefill_s(500) == pytest.approx(0.4, rel=0.1)
    assert profiles["d"].prefill_s(500) == pytest.approx(0.4, rel=0.1), "what was not seen of it is its fellow's"
    assert profiles["d"].decodes == 0


def test_a_first_token_without_word_of_the_prefill_teaches_nothing():
    made = paired()
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.first_token(ticket, 3.0)
    assert counts(made) == {"p": (0, 0, 0, 0), "d": (1, 1, 0, 9)}
    assert all(row.profile.prefills == 0 for row in made.snapshot().workers)


def test_a_pairs_answer_that_is_not_streamed_is_predicted_from_the_end_of_its_prefill():
    made = paired()
    heard = listened(made)
    ticket = made.submit(request("r", streams=False), 0.0)
    made.decisions(0.0)
    assert made.next_deadline() is None
    made.prefill_done(ticket, 5.0)
    made.decisions(made.next_deadline())
    assert [type(event) for event in heard] == [Queued, Bound, Placed, FirstToken]
    assert made.next_deadline() > 5.0


# -- workers that say nothing


def silent(**fields):
    """`a` owes a first token since 0.0."""
    made = scheduler(facts("a"), prefill_window_tokens=10_000, **fields)
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.worker_joined(facts("b"), 0.0)
    return made, ticket


def names(made):
    return [view.id for view in made.able(request("asks"))]


def test_a_worker_that_owes_a_first_token_for_long_is_given_no_more():
    made, ticket = silent()
    made.decisions(4.9)
    assert names(made) == ["a", "b"]
    made.decisions(5.0)
    assert names(made) == ["b"]
    made.first_token(ticket, 6.0)
    assert names(made) == ["a", "b"]


def test_a_stalled_worker_is_used_where_there_is_no_other():
    made, _ = silent()
    made.decisions(5.0)
    made.worker_left("b", 5.0)
    assert names(made) == ["a"]


@pytest.mark.parametrize(
    "sign",
    [
        lambda made, _, other: made.first_token(other, 4.0),
        lambda made, _, other: made.settled(other, Usage(9, 1), 4.0),
        lambda made, _, other: made.settled(other, Usage(9, 0), 4.0, Outcome.REFUSED),
    ],
    ids=["a first token", "an answer", "a refusal"],
)
def test_any_sign_of_life_counts(sign):
    made, ticket = silent()
    other = made.submit(request("other", pinned="a"), 3.0)
    made.decisions(3.0)
    sign(made, ticket, other)
    made.decisions(8.9)
    assert names(made) == ["a", "b"]
    made.decisions(9.0)
    assert names(made) == ["b"]


def test_what_clients_do_and_what_is_only_predicted_is_no_sign_of_life():
    made, _ = silent()
    given_up = made.submit(request("given up", pinned="a"), 3.0)
    made.submit(request("predicted", pinned="a", streams=False), 3.0)
    made.decisions(3.0)
    made.cancel(given_up, 4.0)
    made.decisions(4.5)
    made.decisions(5.0)
    assert names(made) == ["b"]


def test_a_worker_from_which_nothing_is_due_any_more_is_given_another_chance():
    made, ticket = silent()
    made.decisions(5.0)
    made.cancel(ticket, 6.0)
    made.decisions(11.0)
    assert names(made) == ["a", "b"]


def test_the_decode_worker_of_a_pair_owes_its_first_token_from_the_end_of_the_prefill():
    made = paired("p", "d", "e")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    decoder = dispatch.place.placement.decode
    made.prefill_done(ticket, 4.0)
    made.decisions(8.9)
    assert len(names(made)) == 3
    made.decisions(9.0)
    assert set(names(made)) == {"p", "d", "e"} - {decoder}


def test_a_finished_prefill_is_a_sign_of_life():
    made = paired("p", "q", "d")
    ticket = made.submit(request("r"), 0.0)
    (dispatch,) = made.decisions(0.0)
    prefiller = dispatch.place.placement.prefill
    made.submit(request("other", pinned=prefiller), 3.0)
    made.decisions(3.0)
    made.prefill_done(ticket, 4.0)
    made.first_token(ticket, 4.0)
    made.decisions(8.9)
    assert len(names(made)) == 3
    made.decisions(9.0)
    assert set(names(made)) == {"p", "q", "d"} - {prefiller}


def test_a_prefill_worker_that_left_is_forgotten_when_its_prefill_is_done():
    made = paired()
    ticket = made.submit(request("r"), 0.0)
    made.decisions(0.0)
    made.worker_left("p", 1.0)
    assert counts(made).keys() == {"d", "p"}
    made.prefill_done(ticket, 2.0)
    assert counts(made).keys() == {"d"}


def test_the_decode_worker_of_a_pair_owes_no_first_token_that_nobody_would_see():
    made = paired("p", "d", "e")
    ticket = made.submit(request("r", streams=False), 0.0)
    made.decisions(0.0)
    made.prefill_done(ticket, 1.0)
    made.decisions(60.0)
    assert len(names(made)) == 3
    made.settled(ticket, Usage(9, 5), 61.0)
    assert all(load.responses_due == 0 for load in made._fleet.workers())
