"""A fleet in steps of one second, driven through the real scheduler, that measures the service of each party.

Each step every running request gets one output token (its prefill takes the first step). Service is measured by a
listener on the scheduler's events, with weights of its own: `extend tokens + 2 x output tokens`, whatever the
order charges.
"""

from dataclasses import dataclass
from itertools import combinations, count

from policies import catalog
from policies.events import EVENTS, Left, Output, Placed, Queued
from policies.knowledge import Knowledge
from policies.model import PrefixKey, Reject, RequestView, Usage, WorkerFacts
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

WE, WQ = 1.0, 2.0


@dataclass(frozen=True)
class Wish:
    """A request to come: whose, when, how many tokens in and out, which prompt it begins with.

    A client with slashes is a party, `organisation/team/user`.
    """

    client: str
    at: int
    tokens: int
    output: int
    topic: int = 0
    weight: float = 1.0
    more: tuple = ()

    @property
    def prompt(self):
        shared = bytes([65 + self.topic]) * (self.tokens // 2)
        return shared + bytes([97 + self.topic, *(self.at % 250,)]) * self.tokens


def view(name, wish, now):
    fields = dict(wish.more)
    return RequestView(
        id=name,
        client=wish.client,
        party=tuple(wish.client.split("/")),
        served_name=fields.pop("served_name", "base"),
        key=PrefixKey(wish.prompt[: wish.tokens], 1, 1.0),
        input_tokens=wish.tokens,
        expected_output_tokens=wish.output,
        arrived=now,
        streams=True,
        weight=wish.weight,
        **fields,
    )


class Measured:
    """An order that notes after every event what each client has been served."""

    hears = EVENTS

    def __init__(self, queue):
        self.queue = queue
        self.served = {}
        self.asking = {}
        self.samples = []
        """(service of each client so far, the clients with a request in the queue)"""
        self.borrowed = 0
        """Requests that used room beside which an earlier one waited by choice."""

    def __getattr__(self, name):
        return getattr(self.queue, name)

    def __len__(self):
        return len(self.queue)

    def on(self, event):
        self.queue.on(event)
        if not isinstance(event, Queued | Placed | Output | Left):
            return
        client = event.request.client
        if isinstance(event, Queued):
            self.served.setdefault(client, 0.0)
            self.asking[client] = self.asking.get(client, 0) + 1
        elif isinstance(event, Placed):
            self.asking[client] -= 1
            self.borrowed += event.borrowed
            self.served[client] += WE * event.extend_tokens
        elif isinstance(event, Output):
            self.served[client] += WQ * event.tokens
        self.samples.append((dict(self.served), {name for name, number in self.asking.items() if number}))


class SteppedFleet:
    """Workers with a number of slots each, fed by one scheduler; `started` says when each request began."""

    def __init__(
        self,
        queue,
        *,
        workers=1,
        slots=2,
        placement="least_loaded",
        binding="late",
        make=None,
        hold_s=0.0,
        served_names=None,
        kv_tokens=None,
        window_tokens=10**9,
        on_start=lambda worker, request: None,
    ):
        knowledge = Knowledge()
        entry = catalog.queue_policies()[queue] if isinstance(queue, str) else None
        placements = catalog.placement_policies()
        chosen = placements[placement].build(knowledge=knowledge) if isinstance(placement, str) else placement

        self.queue = make(knowledge) if make is not None else entry.build(knowledge=knowledge)
        self.measured = Measured(self.queue)
        settings = SchedulerSettings(
            max_wait_s=float("inf"),
            prefill_window_tokens=window_tokens,
            hold_s=hold_s,
            binding=binding,
            kv_margin=0.0,
        )
        self.scheduler = Scheduler(self.measured, chosen, settings, knowledge)
        served = served_names or [frozenset({"base"})] * workers
        for number, names in enumerate(served):
            facts = WorkerFacts(f"w{number}", names, slots=slots, kv_tokens=kv_tokens)
            self.scheduler.worker_joined(facts, 0.0)
        self.slots = slots
        self.now = 0.0
        self.running = []
        self.views = {}
        self.started = {}
        self.rejected = {}
        """The reason for each request that was turned away."""
        self.on_start = on_start
        self.checks = []
        """Called with the fleet after all decisions of a moment."""
        self._names = count()

    @property
    def sequences(self):
        """Sequences that run."""
        return sum(decision.request.sequences for decision, _ in self.running)

    def submit(self, wish):
        one = view(f"r{next(self._names):04}", wish, self.now)
        self.views[one.id] = one
        self.scheduler.submit(one, self.now)
        self.decide()
        return one

    def decide(self):
        for decision in self.scheduler.decisions(self.now):
            if isinstance(decision, Reject):
                self.rejected[decision.request.id] = decision.reason
                continue
            self.started[decision.request.id] = self.now
            self.running.append([decision, 0])
            self.on_start(decision.place.placement.decode, decision.request.id)
        for check in self.checks:
            check(self)

    def step(self, outputs):
        """One token for each running request; those that are complete make room."""
        self.now += 1.0
        for attempt in list(self.running):
            decision, done = attempt
            wanted = outputs[decision.request.id]
            if done < wanted:
                self.scheduler.output(decision.ticket, 1, self.now)
                attempt[1] += 1
            if attempt[1] >= wanted:
                self.running.remove(attempt)
                usage = Usage(decision.request.input_tokens, attempt[1])
                self.scheduler.settled(decision.ticket, usage, self.now)
            self.decide()

    def play(self, wishes, *, steps=10_000, rejected=()):
        """Everything that is wished for, until all have been answered but those that are `rejected`."""
        due, outputs = sorted(wishes, key=lambda wish: wish.at), {}
        for _ in range(steps):
            while due and due[0].at <= self.now:
                wish = due.pop(0)
                outputs[f"r{len(outputs):04}"] = wish.output
                self.submit(wish)
            if not due and not self.running and not len(self.queue):
                if self.scheduler.faults.last is not None:
                    raise self.scheduler.faults.last
                assert self.rejected.keys() == set(rejected)
                return self
            self.step(outputs)
        raise AssertionError("not every request was answered")


def unfairness(samples, weights=None):
    """The largest difference in service (by weight) that any two clients got while both had requests waiting."""
    weights = weights or {}
    worst = {}
    for pair in combinations(sorted({name for served, _ in samples for name in served}), 2):
        low = high = None
        for served, waiting in samples:
            if not waiting.issuperset(pair):
                low = high = None
                continue
            difference = served[pair[0]] / weights.get(pair[0], 1.0) - served[pair[1]] / weights.get(pair[1], 1.0)
            low = difference if low is None else min(low, difference)
            high = difference if high is None else max(high, difference)
            worst[pair] = max(worst.get(pair, 0.0), high - low)
    return worst


def at_level(samples, depth):
    """The same by the first levels of each party."""

    def above(name):
        return "/".join(name.split("/")[:depth])

    summed = []
    for served, waiting in samples:
        totals = {}
        for name, service in served.items():
            totals[above(name)] = totals.get(above(name), 0.0) + service
        summed.append((totals, {above(name) for name in waiting}))
    return summed


def head_starts(samples):
    """For each waiting client f and any g: the most that g was given beyond f while f had requests waiting."""
    worst = {}
    names = sorted({name for served, _ in samples for name in served})
    for f in names:
        for g in names:
            low = None
            for served, waiting in samples:
                if f == g or f not in waiting or g not in served:
                    low = None
                    continue
                ahead = served[g] - served[f]
                low = ahead if low is None else min(low, ahead)
                worst[f, g] = max(worst.get((f, g), 0.0), ahead - low)
    return worst


def largest(wishes, slots):
    """U of the paper: the longest prompt, and the output that a full batch can still bring."""
    return WE * max(wish.tokens for wish in wishes) + WQ * slots * max(wish.output for wish in wishes)
