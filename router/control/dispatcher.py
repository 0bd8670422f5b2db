"""Futures around the scheduler: a request asks where it may run, and waits until that is decided.

A pool drives one `policies.scheduler.Scheduler` with the event loop's clock: every event is followed by `pump`,
which hands the decisions out, and one timer stands for the scheduler's next deadline. If a decision falls at
once, as on an idle fleet it does, no future is made and nobody waits.
"""

import asyncio
import logging

from policies.model import (
    AttemptFailure,
    Dispatch,
    Outcome,
    Reject,
    RequestView,
    Ticket,
    Usage,
    WorkerFacts,
    WorkerId,
)
from policies.scheduler.scheduler import Scheduler

_log = logging.getLogger("fairlead.policies")
_SOONEST_S = 0.005
"""So late a deadline may be met: about the shortest step of an engine. What was predicted of an answer that has
come by then need not be told any more."""
_FAULTS_EVERY_S = 60.0
"""At most so often the log speaks of policies that raise; requests go on without them."""


class Admitted:
    """A request in the scheduler, from `Pool.submit` to its one end: `settle`, `cancel`, or a rejection.

    `place` yields one decision per attempt: a `Dispatch` to perform, or the `Reject` that ends it.
    """

    __slots__ = ("_decided", "_future", "_over", "_pool", "dispatch", "ticket", "view")

    def __init__(self, pool: "Pool", view: RequestView) -> None:
        self._pool = pool
        self.view = view
        self.ticket: Ticket | None = None
        self.dispatch: Dispatch | None = None
        self._decided: Dispatch | Reject | None = None
        self._future: asyncio.Future[Dispatch | Reject] | None = None
        self._over = False

    async def place(self) -> Dispatch | Reject:
        """The next decision about this request; waits in the queue for as long as the scheduler says."""
        decided = self._decided
        if decided is None:
            self._future = self._pool.loop.create_future()
            try:
                decided = await self._future
            finally:
                self._future = None
        self._decided = None
        if isinstance(decided, Dispatch):
            self.dispatch = decided
        return decided

    def first_token(self) -> None:
        pool = self._pool
        pool.scheduler.first_token(self._ticket, pool.loop.time())
        pool.stir()

    def prefill_done(self) -> None:
        """The prefill worker of a pair has the prompt; the decode worker is next."""
        pool = self._pool
        pool.scheduler.prefill_done(self._ticket, pool.loop.time())
        pool.stir()

    def output(self, tokens: int) -> None:
        # Output frees nothing, so nobody can be placed because of it.
        self._pool.scheduler.output(self._ticket, tokens, self._pool.loop.time())

    def failed(self, reason: AttemptFailure, tokens_so_far: int, worker: WorkerId | None = None) -> None:
        """The leg broke off. With `tokens_so_far` the request has ended; otherwise `place` decides again.

        `worker`: which of a pair it was; None: the one that decodes.
        """
        dispatch = self.dispatch
        if dispatch is None:
            return
        self.dispatch = None
        now = self._pool.loop.time()
        worker = worker or dispatch.place.placement.decode
        again = self._pool.scheduler.leg_failed(dispatch.ticket, worker, reason, tokens_so_far, now)
        self._over = again is None
        self.ticket = again or dispatch.ticket
        self._pool.pump()

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        if not self._over:
            self._over = True
            pool = self._pool
            pool.scheduler.settled(self._ticket, usage, pool.loop.time(), outcome)
            pool.stir()

    def cancel(self) -> None:
        """Give back whatever is still held. Harmless after the end."""
        if not self._over:
            self._over = True
            pool = self._pool
            pool.scheduler.cancel(self._ticket, pool.loop.time())
            pool.stir()

    def decide(self, decision: Dispatch | Reject) -> None:
        """The pool has a decision for this request."""
        self.ticket = decision.ticket
        if isinstance(decision, Reject):
            self._over = True
        if self._future is not None and not self._future.done():
            self._future.set_result(decision)
        else:
            self._decided = decision

    @property
    def over(self) -> bool:
        return self._over

    @property
    def _ticket(self) -> Ticket:
        if self.ticket is None:
            raise RuntimeError("an event before submit")
        return self.ticket


class Pool:
    """The requests and workers of one base model."""

    def __init__(self, model: str, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self.scheduler = scheduler
        self.loop = loop
        self._admitted: dict[str, Admitted] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._faults_seen = 0
        self._faults_told_at = -float("inf")

    @property
    def streams(self) -> int:
        """Requests inside, waiting or running, whose answers are streamed."""
        return sum(admitted.view.streams for admitted in self._admitted.values())

    def submit(self, view: RequestView) -> Admitted:
        admitted = Admitted(self, view)
        self._admitted[view.id] = admitted
        admitted.ticket = self.scheduler.submit(view, self.loop.time())
        self.pump()
        return admitted

    def stir(self) -> None:
        """Something has happened to a request; whoever waits may have become placeable by it."""
        if next(self.scheduler.waiting(), None) is not None:
            self.pump()

    def joined(self, facts: WorkerFacts) -> None:
        self.scheduler.worker_joined(facts, self.loop.time())
        self.pump()

    def changed(self, facts: WorkerFacts) -> None:
        self.scheduler.worker_changed(facts, self.loop.time())
        self.pump()

    def left(self, worker: WorkerId) -> None:
        self.scheduler.worker_left(worker, self.loop.time())
        self.pump()

    def pump(self) -> None:
        """Hand out what the scheduler has decided, and set the timer for what it will."""
        now = self.loop.time()
        for decision in self.scheduler.decisions(now):
            admitted = self._admitted.get(decision.request.id)
            if admitted is not None:
                admitted.decide(decision)
        self._arm(self.scheduler.next_deadline(), now)
        if self.scheduler.faults.count != self._faults_seen:
            self._tell_of_faults(now)

    def forget(self, admitted: Admitted) -> None:
        """The last step of a request's life: nothing of it stays behind, whatever happened before."""
        admitted.cancel()
        self._admitted.pop(admitted.view.id, None)

    def close(self) -> None:
        self._arm(None, 0.0)

    def _tell_of_faults(self, now: float) -> None:
        """Say that a policy is broken, and where; the next minute's faults are told together."""
        if now - self._faults_told_at < _FAULTS_EVERY_S:
            return
        faults = self.scheduler.faults
        _log.error(
            "a policy of %s raised an exception, %d times since it was last said",
            self.model,
            faults.count - self._faults_seen,
            exc_info=faults.last,
        )
        self._faults_seen, self._faults_told_at = faults.count, now

    def _arm(self, deadline: float | None, now: float) -> None:
        if deadline == self._timer_at and (deadline is None or deadline > now):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline is not None:
            self._timer = self.loop.call_at(max(deadline, now + _SOONEST_S), self._ring)

    def _ring(self) -> None:
        self._timer = self._timer_at = None
        self.pump()
