"""The whole brain as one state machine: events in, decisions out. No clock, no sockets, no tasks.

    submit ──► waiting ──► running (a leg) ──► ended
                  ▲            │
                  └─ leg_failed┘          a new attempt, at the head of the queue, that worker excluded

The gateway drives it with a real clock and sockets, the lab with a virtual clock and simulated engines.

Invariants (tests/policies/test_scheduler.py):
- each submitted request ends exactly once: by `settled`, `cancel`, a failed leg, or a `Reject`;
- an event whose ticket is not the current attempt changes nothing;
- policies hear of an attempt in one order: Queued, Bound, Placed, FirstToken, Output ..., Left;
- with nothing in flight every counter of every worker is zero, and with no event nothing is decided twice;
- while a request waits that some worker admits, `decisions` places one (unless the placement holds it back, or
  the queue keeps that worker for somebody older).

Late binding: a request stays in the queue until a worker has room for it (`room.py`), so that order and fairness
are ours for as long as possible.
"""

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
    Reject,
    RejectReason,
    RequestView,
    Snapshot,
    Ticket,
    Usage,
    WorkerFacts,
    WorkerId,
    WorkerView,
)
from policies.protocol import EstimatesAnswers, KeepsDeficits, PlacementPolicy, QueuePolicy
from policies.scheduler.event_dispatch import Audience
from policies.scheduler.faults import Faults
from policies.scheduler.matching import Choice, Chooser
from policies.scheduler.settings import SchedulerSettings
from policies.scheduler.timers import Timers

__all__ = ["Scheduler", "SchedulerSettings"]


@dataclass(slots=True, eq=False)
class _Entry:
    request: RequestView
    ticket: Ticket
    running: Attempt | None = None
    last_failure: AttemptFailure | None = None


class Scheduler:
    """One pool: its queue, its workers, and every request between `submit` and its end."""

    def __init__(
        self,
        queue: QueuePolicy,
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
        self._queue = queue
        self._estimate = queue.answer if isinstance(queue, EstimatesAnswers) else None
        self._fleet = Fleet(
            self.settings.prefill_window_s,
            self.settings.prefill_window_tokens,
            self.settings.kv_margin,
            prefixes=self.prefixes,
            lengths=self.lengths,
        )
        self._entries: dict[str, _Entry] = {}
        self._rejects: list[Decision] = []
        self._waits = Timers(self._is_waiting, self._entries)
        self._predictions = Timers(self._is_predictable, self._entries)
        self._serials = count(1)
        self._chooser = Chooser(queue, placement, self._fleet, self.prefixes, self.settings)
        self._tell = Audience((queue, placement), self._chooser.faults).tell

    # -- events: requests

    def submit(self, request: RequestView, now: float) -> Ticket:
        """Take a request in. What becomes of it is said by `decisions`. Raises ValueError if its id is in use."""
        if request.id in self._entries:
            raise ValueError(f"a request with the id {request.id} is already here")
        if self._estimate is not None:
            request = replace(request, expected_output_tokens=self._estimate(request))
        ticket = Ticket(request.id, 1, next(self._serials))
        entry = self._entries[request.id] = _Entry(request, ticket)
        if len(self._queue) >= self.settings.max_queued:
            self._reject(entry, RejectReason.QUEUE_FULL, now)
        elif not self._fleet.can_serve(request):
            self._reject(entry, RejectReason.NO_WORKER, now)
        else:
            self._enqueue(entry, now, again=False)
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
        """So many more output tokens; drivers coalesce (every 32 tokens or 250 ms)."""
        running = self._running(ticket)
        if running is not None and tokens > 0:
            self._first_token(running, now)
            self._fleet.record_output(running, tokens, now)
            self._tell(Output, running.request, running.placement, tokens, now)

    def settled(self, ticket: Ticket, usage: Usage, now: float, outcome: Outcome = Outcome.COMPLETED) -> None:
        """The worker has answered: the accounts are corrected to what it reports."""
        self._end(ticket, outcome, usage, now)

    def leg_failed(
        self, ticket: Ticket, worker: WorkerId, reason: AttemptFailure, tokens_so_far: int, now: float
    ) -> Ticket | None:
        """The attempt broke off; the ticket of the next one, which `decisions` will place or turn away.

        None if there is none: the client has part of the answer, so the request ends, or the ticket is an old one.
        """
        entry = self._entry(ticket)
        if entry is None or entry.running is None:
            return None
        if tokens_so_far > 0:
            self._end(ticket, Outcome.FAILED, None, now)
            return None
        running, request = entry.running, entry.request
        entry.running = None
        self._fleet.release(running, now, finished=False)
        self._fleet.record_failure(running, worker, reason)
        self._tell(Left, request, running.placement, None, None, now)
        apart = reason is AttemptFailure.HANDOVER  # either of the two does well by itself
        entry.request = (
            replace(request, whole=True) if apart else replace(request, excluded=request.excluded | {worker})
        )
        entry.ticket = Ticket(request.id, ticket.attempt + 1, next(self._serials))
        entry.last_failure = reason
        used_up = ticket.attempt >= self.settings.attempts and not apart
        if used_up or not self._fleet.can_serve(entry.request):
            self._reject(entry, RejectReason.LEGS_FAILED, now)
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
        if not known:
            self._tell(WorkerArrived, facts, now)
        elif serves_less:
            self._reject_the_unserved(now)

    def worker_left(self, worker: WorkerId, now: float) -> None:
        """A worker is gone. Its running legs end as the driver sees them end."""
        if not self._fleet.remove(worker):
            return
        self.prefixes.remove_worker(worker)
        self._tell(WorkerGone, worker, now)
        self._reject_the_unserved(now)

    # -- decisions

    def decisions(self, now: float) -> list[Decision]:
        """What the driver has to do now. Each decision is handed out once."""
        self._predict(now)
        self._expire(now)
        self._fleet.check_stalled(now)
        decisions: list[Decision] = []
        if self._rejects:
            decisions, self._rejects = self._rejects, []
        self._chooser.hold_until = None
        while len(self._queue) and (choice := self._chooser.next(now)):
            decisions.append(self._place(choice, now))
        return decisions

    def next_deadline(self) -> float | None:
        """When `decisions` should be asked again, if nothing happens before."""
        predicted = self._predictions.next()
        if not len(self._queue):  # nobody waits, and all else is about those who do
            self._waits.clear()
            return predicted
        times = (predicted, self._waits.next(), self._chooser.hold_until, self._fleet.next_check())
        return min((at for at in times if at is not None), default=None)

    def snapshot(self) -> Snapshot:
        """Counts for metrics and the admin pages."""
        views = tuple(worker.view() for worker in self._fleet.workers())
        return Snapshot(len(self._queue), len(self._entries) - len(self._queue), views)

    def waiting(self) -> Iterator[RequestView]:
        """Everybody in the queue, in no particular order."""
        return self._queue.waiting()

    def deficit(self, client: str) -> float | None:
        """What a client is owed (positive) or owes; None where the order keeps no such account."""
        return self._queue.deficit(client) if isinstance(self._queue, KeepsDeficits) else None

    @property
    def faults(self) -> Faults:
        """Exceptions of policies, for the driver to report."""
        return self._chooser.faults

    def able(self, request: RequestView) -> list[WorkerView]:
        """Who could serve a request, or a stage of it, with room or without."""
        return self._fleet.eligible(request)

    def _place(self, choice: Choice, now: float) -> Dispatch:
        request, place, matches, bound = choice
        entry, placement = self._entries[request.id], place.placement
        self._dequeue(request)
        entry.running = self._fleet.start(request, placement, matches, now)
        if not entry.running.prefill_seen:
            self._predictions.set(entry.running.prefiller.prefill_due, entry.ticket)
        if not bound:
            self._tell(Bound, request, placement, now)
        matched = matches.get(placement.prefill or placement.decode, 0)
        self._tell(Placed, request, placement, matched, entry.running.extend_tokens, now)
        return Dispatch(entry.ticket, request, place, now - request.arrived)

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
            self._tell(FirstToken, running.request, running.placement, now)

    def _enqueue(self, entry: _Entry, now: float, *, again: bool) -> None:
        request = entry.request
        self._queue.push(request, again=again)
        latest = now + self.settings.max_wait_s  # time spent on a worker that failed is not waiting
        self._waits.set(latest if request.deadline is None else min(latest, request.deadline), entry.ticket)
        self._tell(Queued, request, now, again=again)

    def _dequeue(self, request: RequestView) -> None:
        self._queue.remove(request)
        self._chooser.forget(request)

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
            self._tell(Left, entry.request, None, outcome, usage, now)
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
                self._tell(Output, running.request, running.placement, correction, now)
        self._fleet.record_answer(running, usage)
        self._fleet.release(running, now, finished=outcome is Outcome.COMPLETED)
        self._tell(Left, entry.request, running.placement, outcome, usage, now)

    def _reject(self, entry: _Entry, reason: RejectReason, now: float) -> None:
        """Turn away a request that is not (or no longer) in the queue."""
        del self._entries[entry.request.id]
        waited = now - entry.request.arrived
        self._rejects.append(Reject(entry.ticket, entry.request, reason, waited, entry.last_failure))
        self._tell(Left, entry.request, None, Outcome.REJECTED, None, now)

    def _reject_the_unserved(self, now: float) -> None:
        """Turn away who waits for workers that are no longer there."""
        for request in [r for r in self._queue.waiting() if not self._fleet.can_serve(r)]:
            self._dequeue(request)
            failed = RejectReason.LEGS_FAILED if request.excluded else RejectReason.NO_WORKER
            self._reject(self._entries[request.id], failed, now)

    # -- looking up

    def _entry(self, ticket: Ticket) -> _Entry | None:
        entry = self._entries.get(ticket.request)
        return entry if entry is not None and entry.ticket == ticket else None

    def _running(self, ticket: Ticket) -> Attempt | None:
        entry = self._entry(ticket)
        return None if entry is None else entry.running

    def _is_waiting(self, ticket: Ticket) -> bool:
        entry = self._entry(ticket)
        return entry is not None and entry.running is None

    def _is_predictable(self, ticket: Ticket) -> bool:
        running = self._running(ticket)
        return running is not None and running.predictable
