"""Futures around the scheduler: a request asks where it may run, and waits until that is decided.

A pool drives one `Scheduler` with the event loop's clock, through the same `SchedulerLoop` as the lab: every event
is followed by `after_event`, which hands out the decisions, and one timer stands for the scheduler's next
deadline. If a decision falls at once, as on an idle fleet it does, no future is made.
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
from policies.scheduler.loop import SchedulerLoop
from policies.scheduler.scheduler import Scheduler

_log = logging.getLogger("fairlead.policies")
_FAULTS_EVERY_S = 60.0
"""Time between two log lines about policies that raise; requests go on without them."""


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
        pool.after_event()

    def prefill_done(self) -> None:
        """The prefill worker of a pair has the prompt; the decode worker is next."""
        pool = self._pool
        pool.scheduler.prefill_done(self._ticket, pool.loop.time())
        pool.after_event()

    def output(self, tokens: int) -> None:
        """More output tokens have passed: the end of the answer is nearer, so KV may suffice that did not."""
        pool = self._pool
        pool.scheduler.output(self._ticket, tokens, pool.loop.time())
        pool.after_event()

    def failed(
        self,
        reason: AttemptFailure,
        tokens_so_far: int,
        worker: WorkerId | None = None,
        *,
        resume_tokens: int | None = None,
    ) -> None:
        """The attempt broke off. With `tokens_so_far` the request has ended; otherwise `place` decides again.

        `worker`: which of a pair it was; None: the one that decodes. `resume_tokens`: how many tokens of
        the answer the next attempt goes on from; None: it starts anew.
        """
        dispatch = self.dispatch
        if dispatch is None:
            return
        self.dispatch = None
        now = self._pool.loop.time()
        worker = worker or dispatch.place.placement.decode
        again = self._pool.scheduler.attempt_failed(
            dispatch.ticket, worker, reason, tokens_so_far, now, resume_tokens=resume_tokens
        )
        self._over = again is None
        self.ticket = again or dispatch.ticket
        self._pool.after_event()

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        if not self._over:
            self._over = True
            pool = self._pool
            pool.scheduler.settled(self._ticket, usage, pool.loop.time(), outcome)
            pool.after_event()

    def cancel(self) -> None:
        """Give back whatever is still held. Harmless after the end."""
        if not self._over:
            self._over = True
            pool = self._pool
            pool.scheduler.cancel(self._ticket, pool.loop.time())
            pool.after_event()

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
        self._steps = SchedulerLoop(scheduler, self._perform, self._wake_at)
        self._timer: asyncio.TimerHandle | None = None
        self._faults_seen = 0
        self._faults_logged_at = -float("inf")

    @property
    def streams(self) -> int:
        """Requests inside, waiting or running, whose answers are streamed."""
        return sum(admitted.view.streams for admitted in self._admitted.values())

    def submit(self, view: RequestView) -> Admitted:
        admitted = Admitted(self, view)
        self._admitted[view.id] = admitted
        admitted.ticket = self.scheduler.submit(view, self.loop.time())
        self.after_event()
        return admitted

    def progress(self, admitted: Admitted) -> tuple[int, int]:
        """Tokens of the prompt and of the answer that its present attempt has computed; none while it waits."""
        ticket = admitted.ticket
        return (0, 0) if ticket is None else self.scheduler.progress(ticket, self.loop.time())

    def joined(self, facts: WorkerFacts) -> None:
        self.scheduler.worker_joined(facts, self.loop.time())
        self.after_event()

    def changed(self, facts: WorkerFacts) -> None:
        self.scheduler.worker_changed(facts, self.loop.time())
        self.after_event()

    def left(self, worker: WorkerId) -> None:
        self.scheduler.worker_left(worker, self.loop.time())
        self.after_event()

    def after_event(self) -> None:
        """Hand out what the scheduler has decided after an event, and set the timer for what it will."""
        self._steps.after_event(self.loop.time())
        if self.scheduler.faults.count != self._faults_seen:
            self._log_faults()

    def forget(self, admitted: Admitted) -> None:
        """The last step of a request's life: nothing of it stays behind, whatever happened before."""
        admitted.cancel()
        self._admitted.pop(admitted.view.id, None)

    def close(self) -> None:
        self._wake_at(None)

    def _log_faults(self) -> None:
        """Log that a policy is broken, and where; at most once a minute, with the number of faults since."""
        now = self.loop.time()
        if now - self._faults_logged_at < _FAULTS_EVERY_S:
            return
        faults = self.scheduler.faults
        _log.error(
            "a policy of %s raised an exception, %d times since it was last logged",
            self.model,
            faults.count - self._faults_seen,
            exc_info=faults.last,
        )
        self._faults_seen, self._faults_logged_at = faults.count, now

    def _perform(self, decision: Dispatch | Reject, now: float) -> bool:  # noqa: ARG002 - the lab needs the time
        admitted = self._admitted.get(decision.request.id)
        if admitted is not None:
            admitted.decide(decision)
        return False

    def _wake_at(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self.loop.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._steps.wake(self.loop.time())
