"""After every event: carry out what the scheduler has decided, and note when to ask it again.

The gateway and the lab drive the scheduler through this one loop, so that what is simulated is what runs. The
driver sends its events to the scheduler itself, then calls `after_event`; when its time comes it calls `wake`.
"""

from collections.abc import Callable

from policies.model import Decision
from policies.scheduler.scheduler import Scheduler

SOONEST_S = 0.005
"""A deadline is met at least so much later than the event that set it: about the shortest step of an engine. What
was predicted of an answer that has come by then need not be said any more."""


class SchedulerLoop:
    """Joins a scheduler to a driver with a clock of its own."""

    def __init__(
        self,
        scheduler: Scheduler,
        perform: Callable[[Decision, float], bool],
        wake_at: Callable[[float | None], None],
    ) -> None:
        """`perform` carries out a decision; it returns whether there may be more to decide at once.

        `wake_at` is called with the time at which the driver has to call `wake`; it replaces the time before, and
        None takes it back.
        """
        self._scheduler = scheduler
        self._perform = perform
        self._wake_at = wake_at
        self._deadline: float | None = None

    def after_event(self, now: float) -> None:
        """An event was sent to the scheduler: carry out what follows from it."""
        scheduler = self._scheduler
        if scheduler.undecided or (self._deadline is not None and self._deadline <= now):
            self._carry_out(now)
        deadline = scheduler.next_deadline()
        if deadline is not None and deadline < now + SOONEST_S:
            if self._deadline is not None and now < self._deadline <= now + SOONEST_S:
                return
            deadline = now + SOONEST_S
        if deadline != self._deadline:
            self._deadline = deadline
            self._wake_at(deadline)

    def wake(self, now: float) -> None:
        """The time has come that `wake_at` was given."""
        self._deadline = None
        self._carry_out(now)
        self.after_event(now)

    def _carry_out(self, now: float) -> None:
        again = True
        while again:
            again = False
            for decision in self._scheduler.decisions(now):
                again |= self._perform(decision, now)
