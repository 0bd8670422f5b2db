"""The whole brain as one state machine: events in, decisions out. No clock, no sockets, no tasks.

    submit ──► waiting ──► running (an attempt) ──► ended
                  ▲                │
                  └─ attempt_failed┘      a new attempt, at the head of the queue, that worker excluded

The gateway drives it with a real clock and sockets, the lab with a virtual clock and simulated engines.

Invariants (tests/policies/scheduler/test_scheduler.py):
- each submitted request ends exactly once: by `settled`, `cancel`, a failed attempt, or a `Reject`;
- an event whose ticket is not the current attempt changes nothing;
- policies hear of an attempt in one order: Queued, Bound, Placed, FirstToken, Output ..., Left;
- with nothing in flight every counter of every worker is zero, and with no event nothing is decided twice;
- while a request waits that some worker admits, `decisions` places one (unless it waits by choice for a better
  worker, or that worker is reserved for an overdue request).

Late binding: a request stays in the queue until a worker has room for it (`policies/fleet/capacity.py`), so that
order and fairness are ours for as long as possible.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from policies.events import Bound, FirstToken, Left, Output, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.fleet import Fleet
from policies.fleet.worker import Attempt
from policies.knowledge import Knowledge
from policies.model import (
    AttemptFailure,
    Decision,
    Dispatch,
    Outcome,
    Question,
    Rated,
    Reject,
    RejectReason,
    RequestView,
    Snapshot,
    Ticket,
    Usage,
    Wait,
    WorkerFacts,
    WorkerId,
    WorkerView,
)
from policies.protocol import OrderPolicy, PlacementPolicy
from policies.scheduler.binding import NamedWorkers
from policies.scheduler.disaggregation import Disaggregation
from policies.scheduler.event_dispatch import EventDispatch
from policies.scheduler.faults import Faults
from policies.scheduler.matching import Match, Matcher
from policies.scheduler.queue_bound import QueueBound
from policies.scheduler.settings import SchedulerSettings
from policies.scheduler.timers import Timers

__all__ = ["Scheduler", "SchedulerSettings"]


@dataclass(slots=True, eq=False)
class _Entry:
    request: RequestView
    ticket: Ticket
    running: Attempt | None = None
    last_failure: AttemptFailure | None = None
    waits: tuple[Wait, ...] = ()
    """Since it came, or came back, as far as it has left the queue for it."""


class Scheduler:
    """One pool: its queue, its workers, and every request between `submit` and its end."""

    def __init__(
        self,
        order: OrderPolicy,
        placement: PlacementPolicy,
        settings: SchedulerSettings | None = None,
        knowledge: Knowledge | None = None,
    ) -> None:
        """`knowledge` is what the policies were built with, if they read any."""
        self.settings = settings or SchedulerSettings()
        knowledge = knowledge or Knowledge()
        self.lengths = knowledge.lengths
        self.prefixes = knowledge.prefixes
        self.heatmap = knowledge.heatmap
        self._order = order
        self._placement = placement
        self._fleet = Fleet(
            self.settings.prefill_window_s,
            self.settings.prefill_window_tokens,
            self.settings.kv_margin,
            prefixes=self.prefixes,
            lengths=self.lengths,
        )
        self._entries: dict[str, _Entry] = {}
        self._waiting: dict[str, RequestView] = {}
        """All requests in the queue, whatever the order does with them."""
        self._bound = QueueBound()
        self._named = NamedWorkers(self._fleet, self.prefixes) if self.settings.binding == "early" else None
        self._membership = 0
        """Of the fleet, when named workers were looked at last."""
        self._rejects: list[Decision] = []
        self._waits = Timers(self._is_waiting, self._entries)
        self._predictions = Timers(self._is_predictable, self._entries)
        self._serials = count(1)
        self._disaggregation = Disaggregation(
            knowledge.heatmap, knowledge.rng.getrandbits(64), self.settings.disaggregate
        )
        self._matcher = Matcher(
            order, placement, self._fleet, self.prefixes, self._disaggregation, settings=self.settings
        )
        self._events = EventDispatch((order, placement, self._disaggregation), self._matcher.faults)

    def set_limits(self, *, max_queued: int, max_wait_s: float, attempts: int) -> None:
        """Other bounds from now on; requests that wait keep their place and their deadline."""
        self.settings = replace(self.settings, max_queued=max_queued, max_wait_s=max_wait_s, attempts=attempts)

    # -- events: requests

    def submit(self, request: RequestView, now: float) -> Ticket:
        """Take a request in. What becomes of it is said by `decisions`. Raises ValueError if its id is in use."""
        if request.id in self._entries:
            raise ValueError(f"a request with the id {request.id} is already here")
        expected = self._estimate(request)
        if expected != request.expected_output_tokens:
            request = replace(request, expected_output_tokens=expected)
        ticket = Ticket(request.id, 1, next(self._serials))
        entry = self._entries[request.id] = _Entry(request, ticket)
        obstacle = self._fleet.obstacle(request)
        if obstacle is not None:
            self._reject(entry, obstacle, now)
        else:
            self._enqueue(entry, now, again=False)
            if len(self._waiting) > self.settings.max_queued:
                self._reject_one(now)
        return ticket

    def cancel(self, ticket: Ticket, now: float, usage: Usage | None = None) -> None:
        """The client left, whether the request waits or runs. What was computed stays charged."""
        self._end(ticket, Outcome.CANCELLED, usage, now)

    def prefill_done(self, ticket: Ticket, now: float) -> None:
        """The prefill worker of a pair has finished: its room is free again. Nothing for a single worker."""
        running = self._running(ticket)
        if running is not None and running.pair and running.prefilling:
            self._fleet.prefill_done(running, now)
            if not running.request.streams:
                self._predictions.set(now, ticket)  # the transfer is not known; it is short beside the rest

    def first_token(self, ticket: Ticket, now: float) -> None:
        """The first token of a streamed answer has arrived."""
        running = self._running(ticket)
        if running is not None:
            self._first_token(running, now)

    def output(self, ticket: Ticket, tokens: int, now: float) -> None:
        """More output tokens have come; drivers coalesce (every 32 tokens or 250 ms)."""
        running = self._running(ticket)
        if running is not None and tokens > 0:
            self._first_token(running, now)
            self._fleet.record_output(running, tokens, now)
            self._events.publish(Output, running.request, running.placement, tokens, now)

    def settled(self, ticket: Ticket, usage: Usage, now: float, outcome: Outcome = Outcome.COMPLETED) -> None:
        """The worker has answered: the accounts are corrected to what it reports."""
        self._end(ticket, outcome, usage, now)

    def attempt_failed(
        self,
        ticket: Ticket,
        worker: WorkerId,
        reason: AttemptFailure,
        tokens_so_far: int,
        now: float,
        *,
        resume_tokens: int | None = None,
    ) -> Ticket | None:
        """The attempt broke off; the ticket of the next one, which `decisions` will place or turn away.

        None if there is none: the client has part of the answer, so the request ends, or the ticket is an old one.
        `resume_tokens`: how many tokens of the answer the next attempt goes on from; they are part of its prompt.
        """
        entry = self._entry(ticket)
        if entry is None or entry.running is None:
            return None
        if tokens_so_far > 0 and resume_tokens is None:
            self._end(ticket, Outcome.FAILED, None, now)
            return None
        running, request = entry.running, entry.request
        entry.running = None
        self._fleet.release(running, now, finished=False)
        self._fleet.record_failure(running, worker, reason)
        self._events.publish(Left, request, running.placement, None, None, now)
        if resume_tokens is not None:
            request = entry.request = _resumed(request, resume_tokens)
        apart = reason is AttemptFailure.HANDOVER  # either of the two does well by itself
        if apart:
            entry.request = replace(request, whole=True)
        else:
            elsewhere = replace(request, excluded=request.excluded | {worker})
            # A kept connection may die without fault of its worker: where there is no other, it is tried again.
            once_more = reason is AttemptFailure.LOST and entry.last_failure is None
            if not once_more or self._fleet.obstacle(elsewhere) is None:
                entry.request = elsewhere
        entry.ticket = Ticket(request.id, ticket.attempt + 1, next(self._serials))
        entry.last_failure = reason
        used_up = ticket.attempt >= self.settings.attempts and not apart
        if used_up or self._fleet.obstacle(entry.request) is not None:
            self._reject(entry, RejectReason.ATTEMPTS_FAILED, now)
        else:
            self._enqueue(entry, now, again=True)
        return entry.ticket

    # -- events: workers

    def worker_joined(self, facts: WorkerFacts, now: float) -> None:
        """A worker that was not known; a restarted one comes under a new name, with an empty cache."""
        self.worker_changed(facts, now)

    def worker_changed(self, facts: WorkerFacts, now: float) -> None:
        """Facts about a worker, whole; one not known joins. Its prefix index stays through every change."""
        known = facts.id in self._fleet
        serves_less = self._fleet.update_facts(facts)
        self.prefixes.update_facts(facts)
        self._fleet.check_stalled(now)  # facts come regularly, also while nothing waits
        if not known:
            self._events.publish(WorkerArrived, facts, now)
        elif serves_less:
            self._reject_the_unserved(now)

    def worker_left(self, worker: WorkerId, now: float) -> None:
        """A worker is gone. Its running attempts end as the driver sees them end."""
        if self._named is not None:
            self._named.remove_worker(worker)
        if not self._fleet.remove(worker):
            return
        self.prefixes.remove_worker(worker)
        self._matcher.remove_worker(worker)
        self._events.publish(WorkerGone, worker, now)
        self._reject_the_unserved(now)

    # -- decisions

    def decisions(self, now: float) -> list[Decision]:
        """What the driver has to do now. Each decision is handed out once."""
        if self._predictions.earliest <= now:
            self._predict(now)
        if self._waits.earliest <= now:
            self._expire(now)
        if self._fleet.check_at <= now:
            self._fleet.check_stalled(now)
        if self._named is not None and self._membership != self._fleet.membership:
            self._name_anew(self._named, now)
        decisions: list[Decision] = []
        if self._rejects:
            decisions, self._rejects = self._rejects, []
        self._matcher.wake_at = None
        while self._waiting and (match := self._matcher.next(self._waiting, now)):
            decisions.append(self._place(match, now))
        return decisions

    @property
    def undecided(self) -> bool:
        """Whether requests wait or were rejected, so that an event may lead to a decision."""
        return bool(self._waiting or self._rejects)

    def next_deadline(self) -> float | None:
        """When `decisions` should be asked again, if nothing happens before."""
        predicted = self._predictions.next() if self._predictions.earliest < math.inf else None
        if not self._waiting:  # everything else is about waiting requests
            if self._waits.earliest < math.inf:
                self._waits.clear()
            return predicted
        times = (predicted, self._waits.next(), self._matcher.wake_at, self._fleet.next_check())
        return min((at for at in times if at is not None), default=None)

    def snapshot(self) -> Snapshot:
        """Counts for metrics and the admin pages."""
        views = tuple(worker.view() for worker in self._fleet.workers())
        return Snapshot(len(self._waiting), len(self._entries) - len(self._waiting), views)

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def sizes(self) -> dict[str, int]:
        """Entries of everything here that grows with traffic, by name."""
        sizes = {**self.prefixes.sizes(), "answer_lengths": len(self.lengths)}
        for policy in (self._order, self._placement):
            try:
                sizes |= policy.sizes()
            except Exception as fault:  # noqa: BLE001 - whatever it is, pages and metrics go on
                self.faults.add(fault)
        return sizes

    def progress(self, ticket: Ticket, now: float) -> tuple[int, int]:
        """Tokens of the prompt and of the answers that the present attempt has computed; none while it waits.

        During the prefill, and of answers that are not streamed, as the worker's profile predicts it.
        """
        running = self._running(ticket)
        return (0, 0) if running is None else (running.prefilled_tokens(now), running.output_tokens)

    def waiting(self) -> Iterator[RequestView]:
        """All waiting requests, in no particular order."""
        return iter(self._waiting.values())

    def waits(self, request: str) -> tuple[Wait, ...]:
        """What a request in the queue has waited for so far; before the first of them, its turn."""
        waiting = self._waiting.get(request)
        return () if waiting is None else self._matcher.waits.of(waiting)

    def look(self, request: str, now: float) -> list[Rated] | None:
        """How the workers look to a request that waits, best first; None: it does not wait. Commits nothing."""
        waiting = self._waiting.get(request)
        return None if waiting is None else self._matcher.look(waiting, now)

    def deficit(self, client: str) -> float | None:
        """Service that a client is owed (positive) or owes; None where the order keeps no such account."""
        try:
            return self._order.deficit(client)
        except Exception as fault:  # noqa: BLE001 - whatever it is, pages and metrics go on
            self.faults.add(fault)
            return None

    @property
    def faults(self) -> Faults:
        """Exceptions of policies, for the driver to report."""
        return self._matcher.faults

    def able(self, request: RequestView) -> list[WorkerView]:
        """Who could serve a request, or a stage of it, with room or without."""
        return self._fleet.eligible(request)

    def _place(self, match: Match, now: float) -> Dispatch:
        request, place = match.request, match.place
        entry, placement = self._entries[request.id], place.placement
        self._dequeue(request)
        running = entry.running = self._fleet.start(request, placement, match.matches, now)
        if not running.prefill_seen:
            self._predictions.set(running.prefiller.prefill_due, entry.ticket)
        if Bound in self._events.heard and request.bound != placement:
            self._events.publish(Bound, request, placement, now)
        matched, extend = place.matched_tokens, running.extend_tokens
        self._events.publish(Placed, request, placement, matched, extend, now, borrowed=match.borrowed)
        self._matcher.waits.started_at = now
        waits, entry.waits = entry.waits, ()
        return Dispatch(entry.ticket, request, place, now - request.arrived, waits)

    # -- the passing of time

    def _expire(self, now: float) -> None:
        """Turn away who has waited too long."""
        while (timer := self._waits.due(now)) is not None:
            entry = self._entries[timer[1].request]
            self._dequeue(entry.request)
            self._reject(entry, RejectReason.WAITED_TOO_LONG, now)

    def _predict(self, now: float) -> None:
        """First tokens and output of answers that are not streamed, by their worker's profile."""
        while (timer := self._predictions.due(now)) is not None:
            due, ticket = timer
            running = self._running(ticket)
            if running is None:
                continue
            if running.first_token_at is None:
                self._first_token(running, now)
            else:
                self.output(ticket, running.predicted_tokens(), now)
            if running.predictable:
                self._predictions.set(running.next_prediction(due, now), ticket)

    # -- beginnings and ends

    def _first_token(self, running: Attempt, now: float) -> None:
        """Nothing the second time."""
        if running.first_token_at is None:
            self._fleet.first_token(running, now)
            if FirstToken in self._events.heard:
                self._events.publish(FirstToken, running.request, running.placement, now)

    def _enqueue(self, entry: _Entry, now: float, *, again: bool) -> None:
        self._push(entry, now, again=again)
        request = entry.request
        latest = now + self.settings.max_wait_s  # time spent on a worker that failed is not waiting
        self._waits.set(latest if request.deadline is None else min(latest, request.deadline), entry.ticket)
        if Queued in self._events.heard:
            self._events.publish(Queued, request, now, again=again)
        if request.bound is not None:
            self._events.publish(Bound, request, request.bound, now)

    def _push(self, entry: _Entry, now: float, *, again: bool) -> None:
        """Put the request into the queue, under early binding with a worker that is named now."""
        if self._named is not None:
            entry.request = self._name(entry.request, now)
        request = entry.request
        self._waiting[request.id] = request
        self._bound.add(request)
        try:
            self._order.push(request, again=again)
        except Exception as fault:  # noqa: BLE001 - the matcher offers what the order has not taken
            self.faults.add(fault)

    def _dequeue(self, request: RequestView) -> None:
        del self._waiting[request.id]
        try:
            self._order.remove(request)
        except Exception as fault:  # noqa: BLE001 - the matcher ignores what does not wait
            self.faults.add(fault)
        waits = self._matcher.forget(request)
        if waits and (entry := self._entries.get(request.id)) is not None:
            entry.waits = waits
        self._bound.remove(request)
        if self._named is not None:
            self._named.remove(request)

    def _name(self, request: RequestView, now: float) -> RequestView:
        """`binding: early`: the request with the worker or pair that it will wait for."""
        assert self._named is not None  # noqa: S101 - asked under early binding only
        workers, matches = self._named.workers(request, now), self._named.matches(request)
        placement = self._matcher.name(Question(request, matches, workers, now))
        request = replace(request, bound=placement)
        self._named.add(request, placement, matches.get(placement.ranked, 0), now)
        return request

    def _name_anew(self, named: NamedWorkers, now: float) -> None:
        """Workers have changed: requests whose named worker may not serve them any longer get another one."""
        self._membership = self._fleet.membership
        for request in [one for one in self._waiting.values() if not named.stands(one)]:
            entry = self._entries[request.id]
            self._dequeue(request)
            self._push(entry, now, again=True)
            if entry.request.bound is not None:
                self._events.publish(Bound, entry.request, entry.request.bound, now)

    def _estimate(self, request: RequestView) -> int:
        """Expected output tokens per sequence, as the order has it."""
        try:
            tokens = self._order.estimate(request)
        except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
            self.faults.add(fault)
            return request.expected_output_tokens
        if not isinstance(tokens, int) or tokens < 0:
            self.faults.add(TypeError(f"{tokens!r} is no number of tokens"))
            return request.expected_output_tokens
        return tokens

    def _end(self, ticket: Ticket, outcome: Outcome, usage: Usage | None, now: float) -> None:
        """The one way out for a request that was not rejected."""
        entry = self._entry(ticket)
        if entry is None:
            return
        running = entry.running
        if running is not None and usage is not None and usage.output_tokens > 0:
            self._first_token(running, now)  # where it was neither seen nor predicted so far
        del self._entries[ticket.request]
        if running is None:
            self._dequeue(entry.request)
            self._events.publish(Left, entry.request, None, outcome, usage, now)
            return
        if outcome is Outcome.COMPLETED or outcome is Outcome.REFUSED:
            self._fleet.record_response(running.decoder, now)
        if usage is not None:
            if usage.cached_tokens is not None and not running.pair:
                self._fleet.record_cached(running, usage.cached_tokens)
            if outcome is Outcome.COMPLETED:
                self._fleet.learn(running, usage.output_tokens, now)
            correction = usage.output_tokens - running.output_tokens
            if correction:
                self._events.publish(Output, running.request, running.placement, correction, now)
        self._fleet.record_answer(running, usage)
        self._fleet.release(running, now, finished=outcome is Outcome.COMPLETED)
        self._events.publish(Left, entry.request, running.placement, outcome, usage, now)

    def _reject(self, entry: _Entry, reason: RejectReason, now: float) -> None:
        """Turn away a request that is not (or no longer) in the queue."""
        del self._entries[entry.request.id]
        waited = now - entry.request.arrived
        self._rejects.append(Reject(entry.ticket, entry.request, reason, waited, entry.last_failure, entry.waits))
        self._events.publish(Left, entry.request, None, Outcome.REJECTED, None, now)

    def _reject_one(self, now: float) -> None:
        """The queue is full: turn away the newest request of the party that holds most of it, by weight."""
        request = self._bound.to_reject()
        self._dequeue(request)
        self._reject(self._entries[request.id], RejectReason.QUEUE_FULL, now)

    def _reject_the_unserved(self, now: float) -> None:
        """Turn away who waits for workers that are no longer there."""
        for request in list(self._waiting.values()):
            obstacle = self._fleet.obstacle(request)
            if obstacle is not None:
                self._dequeue(request)
                entry = self._entries[request.id]
                failed_before = entry.last_failure is not None
                self._reject(entry, RejectReason.ATTEMPTS_FAILED if failed_before else obstacle, now)

    # -- looking up

    def _entry(self, ticket: Ticket) -> _Entry | None:
        entry = self._entries.get(ticket.request)
        return entry if entry is not None and entry.ticket == ticket else None

    def _running(self, ticket: Ticket) -> Attempt | None:
        entry = self._entries.get(ticket.request)
        return entry.running if entry is not None and entry.ticket == ticket else None

    def _is_waiting(self, ticket: Ticket) -> bool:
        entry = self._entry(ticket)
        return entry is not None and entry.running is None

    def _is_predictable(self, ticket: Ticket) -> bool:
        running = self._running(ticket)
        return running is not None and running.predictable


def _resumed(request: RequestView, tokens: int) -> RequestView:
    """The request that goes on from `tokens` tokens of its answer: they count as prompt, and are not expected."""
    before, most = request.resume_tokens, request.max_output_tokens
    return replace(
        request,
        input_tokens=request.input_tokens - before + tokens,
        expected_output_tokens=max(1, request.expected_output_tokens + before - tokens),
        max_output_tokens=None if most is None else max(1, most + before - tokens),
        resume_tokens=tokens,
        whole=True,
    )
