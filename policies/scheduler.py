"""The whole brain as one state machine: events in, decisions out. No clock, no sockets, no tasks.

    submit ──► waiting ──► running (a leg) ──► ended
                  ▲            │
                  └─ leg_failed┘          a new attempt, at the head of the queue, that worker excluded

The gateway drives it with a real clock and sockets, the lab with a virtual clock and simulated engines.

Invariants (tests/policies/test_scheduler.py):
- each submitted request ends exactly once: by `settled`, `cancel`, a failed leg, or a `Reject`;
- an event whose ticket is not the current attempt changes nothing;
- with nothing in flight every counter of every worker is zero, and with no event nothing is decided twice;
- while a request waits that some worker admits, `decisions` places one (unless the placement holds it back, or
  the queue keeps that worker for somebody older).

Late binding: a request stays in the queue until a worker has room for it (`room.py`), so that order and fairness
are ours for as long as possible.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from policies.lengths import Lengths
from policies.load import Leg, Load
from policies.model import (
    Decision,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    Left,
    LegFailure,
    Matches,
    Outcome,
    Output,
    Place,
    Placed,
    Queued,
    Reject,
    RejectReason,
    RequestView,
    Snapshot,
    Ticket,
    Usage,
    WorkerArrived,
    WorkerFacts,
    WorkerGone,
    WorkerId,
    WorkerLoad,
    WorkerView,
    reserve,
)
from policies.prefixes import Pinned, Prefixes
from policies.protocol import PlacementPolicy, QueuePolicy

_PREDICTED_TOKENS = 32
"""Output tokens per predicted event of an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Bounds of one pool."""

    max_queued: int = 4096
    max_wait_s: float = 600.0
    attempts: int = 3
    prefill_window_s: float = 0.2
    """Prefill in flight per worker, in time by its profile: about one engine step."""
    prefill_window_tokens: int | None = None
    """The same in extend tokens; set, it replaces the time."""


@dataclass(slots=True, eq=False)
class _Running:
    """What a running request has taken; everything here is given back by `_release`."""

    leg: Leg
    prefiller: Load
    decoder: Load
    pinned: Pinned | None
    matched_tokens: int


@dataclass(slots=True, eq=False)
class _Entry:
    request: RequestView
    ticket: Ticket
    deadline: float
    running: _Running | None = None
    last_failure: LegFailure | None = None


class Scheduler:
    """One pool: its queue, its workers, and every request between `submit` and its end."""

    def __init__(
        self, queue: QueuePolicy, placement: PlacementPolicy, settings: SchedulerSettings | None = None
    ) -> None:
        self.settings = settings or SchedulerSettings()
        self.lengths = Lengths()
        self.prefixes = Prefixes()
        self._queue = queue
        self._placement = placement
        self._loads: dict[WorkerId, Load] = {}
        self._gone: dict[WorkerId, Load] = {}
        self._entries: dict[str, _Entry] = {}
        self._rejects: list[Reject] = []
        self._waits: list[tuple[float, Ticket]] = []
        self._predictions: list[tuple[float, Ticket]] = []
        self._hold_until: float | None = None

    # -- events: requests

    def submit(self, request: RequestView, now: float) -> Ticket:
        """Take a request in. What becomes of it is said by `decisions`."""
        ticket = Ticket(request.id, 1)
        deadline = min(now + self.settings.max_wait_s, request.deadline or float("inf"))
        entry = _Entry(request, ticket, deadline)
        self._entries[request.id] = entry
        if len(self._queue) >= self.settings.max_queued:
            self._reject(entry, RejectReason.QUEUE_FULL, now)
        elif not self._usable(request):
            self._reject(entry, RejectReason.NO_WORKER, now)
        else:
            self._enqueue(entry, now, again=False)
        return ticket

    def cancel(self, ticket: Ticket, now: float, usage: Usage | None = None) -> None:
        """The client left, whether the request waits or runs. What was computed stays charged."""
        self._end(ticket, Outcome.CANCELLED, usage, now)

    def prefill_done(self, ticket: Ticket, now: float) -> None:
        """The prefill worker of a pair has finished: its room is free again."""
        running = self._running(ticket)
        if running is not None and running.leg.prefilling:
            self._end_prefill(running, now, finished=True)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """The first token of a streamed answer has arrived."""
        running = self._running(ticket)
        if running is not None and running.leg.first_token_at is None:
            if running.leg.prefilling:
                self._end_prefill(running, now, finished=True)
            leg = running.leg
            leg.first_token_at = now
            running.decoder.start_decode(leg)
            self._tell(FirstToken(leg.request, leg.placement, now))

    def output(self, ticket: Ticket, tokens: int, now: float) -> None:
        """So many more output tokens; drivers coalesce (every 32 tokens or 100 ms)."""
        running = self._running(ticket)
        if running is not None and tokens > 0:
            self.first_token(ticket, now)
            running.decoder.saw_output(running.leg, tokens)
            self._tell(Output(running.leg.request, running.leg.placement, tokens, now))

    def settled(self, ticket: Ticket, usage: Usage, now: float, outcome: Outcome = Outcome.COMPLETED) -> None:
        """The worker has answered: the accounts are corrected to what it reports."""
        self._end(ticket, outcome, usage, now)

    def leg_failed(
        self, ticket: Ticket, worker: WorkerId, reason: LegFailure, tokens_so_far: int, now: float
    ) -> Ticket | None:
        """The attempt broke off; the ticket of the next one, which `decisions` will place or turn away.

        None if there is no next one: part of the answer has reached the client, so the request ends here, or the
        ticket is not the current attempt.
        """
        entry = self._entry(ticket)
        if entry is None or entry.running is None:
            return None
        if tokens_so_far > 0:
            self._end(ticket, Outcome.FAILED, None, now)
            return None
        running, request = entry.running, entry.request
        self._release(entry, now, finished=False)
        if reason is LegFailure.CONNECT:
            self.prefixes.forget(worker, request, running.matched_tokens)
        self._tell(Left(request, running.leg.placement, None, None, now))
        entry.request = replace(request, excluded=request.excluded | {worker})
        entry.ticket = Ticket(request.id, ticket.attempt + 1)
        entry.last_failure = reason
        if ticket.attempt >= self.settings.attempts or not self._usable(entry.request):
            self._reject(entry, RejectReason.LEGS_FAILED, now)
        else:
            self._enqueue(entry, now, again=True)
        return entry.ticket

    # -- events: workers

    def worker_joined(self, facts: WorkerFacts, now: float) -> None:
        """A worker that was not known; a restarted one comes under a new name, with an empty cache."""
        settings = self.settings
        self._loads[facts.id] = Load(
            facts, window_s=settings.prefill_window_s, window_tokens=settings.prefill_window_tokens
        )
        self.prefixes.set_capacity(facts.id, facts.kv_tokens)
        self._tell(WorkerArrived(facts, now))

    def worker_changed(self, facts: WorkerFacts, now: float) -> None:
        """Facts about a known worker, whole. Its index stays through every change."""
        load = self._loads.get(facts.id)
        if load is None:
            self.worker_joined(facts, now)
            return
        shrinks = (load.facts.usable and not facts.usable) or not load.facts.lines <= facts.lines
        load.tell(facts)
        self.prefixes.set_capacity(facts.id, facts.kv_tokens)
        if shrinks:
            self._reject_the_unserved(now)

    def worker_left(self, worker: WorkerId, now: float) -> None:
        """A worker is gone. Its running legs end as the driver sees them end."""
        load = self._loads.pop(worker, None)
        if load is None:
            return
        if not load.idle:
            self._gone[worker] = load
        self.prefixes.remove(worker)
        self._tell(WorkerGone(worker, now))
        self._reject_the_unserved(now)

    # -- decisions

    def decisions(self, now: float) -> list[Decision]:
        """What the driver has to do now. Each decision is handed out once."""
        self._predict(now)
        self._expire(now)
        decisions: list[Decision] = list(self._rejects)
        self._rejects.clear()
        self._hold_until = None
        while len(self._queue) and (dispatch := self._next(now)):
            decisions.append(dispatch)
        return decisions

    def next_deadline(self) -> float | None:
        """When `decisions` should be asked again, if nothing happens before."""
        times = [heap[0][0] for heap in (self._waits, self._predictions) if heap]
        if self._hold_until is not None:
            times.append(self._hold_until)
        return min(times, default=None)

    def snapshot(self) -> Snapshot:
        """Counts for metrics and the admin pages."""
        rows = []
        for load in (*self._loads.values(), *self._gone.values()):
            view = load.view()
            rows.append(
                WorkerLoad(
                    view.id,
                    view.requests,
                    view.sequences,
                    view.prefill_owed,
                    view.kv_reserved,
                    view.room.slots_free,
                    view.room.prefill_free,
                )
            )
        return Snapshot(len(self._queue), len(self._entries) - len(self._queue), tuple(rows))

    # -- choosing

    def _next(self, now: float) -> Dispatch | None:
        """Place one request, if any can start."""
        views = [load.view() for load in self._loads.values() if load.facts.usable]
        if not any(view.room.open for view in views):
            return None
        for request, keep_off in self._queue.candidates(views, now):
            workers = self._usable(request)
            if keep_off:
                workers = [view for view in workers if view.id not in keep_off]
            if not any(view.room.open for view in workers):
                continue
            matches = self.prefixes.match(request)
            choice = self._placement.choose(request, matches, workers, now)
            if isinstance(choice, Place):
                return self._place(self._entries[request.id], choice, matches, now)
            if isinstance(choice, Hold):
                until = max(choice.until, now)
                self._hold_until = until if self._hold_until is None else min(until, self._hold_until)
        return None

    def _place(self, entry: _Entry, place: Place, matches: Matches, now: float) -> Dispatch:
        request, placement = entry.request, place.placement
        computes = placement.prefill or placement.decode
        matched = matches.get(computes, 0)
        extend = max(1, request.input_tokens - matched)
        leg = Leg(request, placement, extend, reserve(request), now, request.input_tokens)
        prefiller, decoder = self._loads[computes], self._loads[placement.decode]
        self._queue.remove(request)
        prefiller.start_prefill(leg, now)
        decoder.start_sequences(leg)
        pinned = self.prefixes.insert(placement.decode, request, now)
        entry.running = _Running(leg, prefiller, decoder, pinned, matches.get(placement.decode, 0))
        decoder.pin(self.prefixes.pinned_tokens(placement.decode))
        if not request.streams:
            heapq.heappush(self._predictions, (prefiller.prefill_due, entry.ticket))
        self._tell(Placed(request, placement, matched, extend, now))
        return Dispatch(entry.ticket, request, place, now - request.arrived)

    def _usable(self, request: RequestView) -> Sequence[WorkerView]:
        """Workers that could serve the request, with room or without; suspects only where there is nobody else."""
        views = [load.view() for load in self._loads.values() if load.facts.serves(request)]
        if any(view.facts.suspect for view in views):
            return [view for view in views if not view.facts.suspect] or views
        return views

    # -- the passing of time

    def _expire(self, now: float) -> None:
        """Turn away who has waited too long."""
        while self._waits and self._waits[0][0] <= now:
            _, ticket = heapq.heappop(self._waits)
            entry = self._entry(ticket)
            if entry is not None and entry.running is None:
                self._queue.remove(entry.request)
                self._reject(entry, RejectReason.WAITED_TOO_LONG, now)

    def _predict(self, now: float) -> None:
        """First tokens and output of answers that are not streamed, by their worker's profile."""
        while self._predictions and self._predictions[0][0] <= now:
            due, ticket = heapq.heappop(self._predictions)
            running = self._running(ticket)
            if running is None:
                continue
            leg = running.leg
            if leg.first_token_at is None:
                self.first_token(ticket, now)
            else:
                self.output(ticket, min(_PREDICTED_TOKENS, leg.reserved - leg.output_tokens), now)
            if leg.output_tokens < leg.reserved:
                per_sequence = -(-_PREDICTED_TOKENS // leg.request.sequences)
                step = max(running.decoder.profile.decode_s(per_sequence), 1e-3)
                heapq.heappush(self._predictions, (max(due, now - step) + step, ticket))

    # -- beginnings and ends

    def _enqueue(self, entry: _Entry, now: float, *, again: bool) -> None:
        self._queue.push(entry.request, again=again)
        heapq.heappush(self._waits, (entry.deadline, entry.ticket))
        self._tell(Queued(entry.request, now, again=again))

    def _end(self, ticket: Ticket, outcome: Outcome, usage: Usage | None, now: float) -> None:
        """The one way out for a request that was not rejected."""
        entry = self._entry(ticket)
        if entry is None:
            return
        del self._entries[ticket.request]
        running = entry.running
        if running is None:
            self._queue.remove(entry.request)
            self._tell(Left(entry.request, None, outcome, usage, now))
            return
        leg = running.leg
        if usage is not None:
            self._learn(running, usage, outcome, now)
            correction = usage.output_tokens - leg.output_tokens
            if correction:
                self._tell(Output(leg.request, leg.placement, correction, now))
        self._release(entry, now, finished=outcome is Outcome.COMPLETED)
        self._tell(Left(entry.request, leg.placement, outcome, usage, now))

    def _learn(self, running: _Running, usage: Usage, outcome: Outcome, now: float) -> None:
        if outcome is Outcome.COMPLETED and usage.output_tokens > 0:
            request = running.leg.request
            running.decoder.saw_answer(running.leg, usage.output_tokens, now)
            self.lengths.saw(request.client, usage.output_tokens / request.sequences)

    def _release(self, entry: _Entry, now: float, *, finished: bool) -> None:
        """Give back everything a leg has taken; the only place that does."""
        running = entry.running
        if running is None:
            return
        entry.running = None
        if running.leg.prefilling:
            self._end_prefill(running, now, finished=finished)
        running.decoder.end_sequences(running.leg)
        worker = running.leg.placement.decode
        if running.pinned is not None:
            self.prefixes.release(running.pinned, now)
        running.decoder.pin(self.prefixes.pinned_tokens(worker))
        for load in (running.prefiller, running.decoder):
            if load.idle:
                self._gone.pop(load.facts.id, None)

    def _end_prefill(self, running: _Running, now: float, *, finished: bool) -> None:
        running.leg.prefilling = False
        running.prefiller.end_prefill(running.leg, now, finished=finished)

    def _reject(self, entry: _Entry, reason: RejectReason, now: float) -> None:
        """Turn away a request that is not (or no longer) in the queue."""
        del self._entries[entry.request.id]
        waited = now - entry.request.arrived
        self._rejects.append(Reject(entry.ticket, entry.request, reason, waited, entry.last_failure))
        self._tell(Left(entry.request, None, Outcome.REJECTED, None, now))

    def _reject_the_unserved(self, now: float) -> None:
        """Turn away who waits for workers that are no longer there."""
        for request in [r for r in self._queue.waiting() if not self._usable(r)]:
            entry = self._entries[request.id]
            self._queue.remove(entry.request)
            failed = RejectReason.LEGS_FAILED if request.excluded else RejectReason.NO_WORKER
            self._reject(entry, failed, now)

    # -- looking up

    def _entry(self, ticket: Ticket) -> _Entry | None:
        entry = self._entries.get(ticket.request)
        return entry if entry is not None and entry.ticket == ticket else None

    def _running(self, ticket: Ticket) -> _Running | None:
        entry = self._entry(ticket)
        return None if entry is None else entry.running

    def _tell(self, event: Event) -> None:
        self._queue.on(event)
        self._placement.on(event)
