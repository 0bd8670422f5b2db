"""What requests went through: those under way, and the last ones that ended. For operators who ask why.

Nothing is rendered before an operator asks; until then a request costs one small object, and one for each attempt.
They keep what exists anyway: the scheduler's decision and what a failed attempt said. No prompt is kept.

Invariants: at most `most` histories of requests that have ended; an attempt keeps a bounded number of workers
(`policies.model.Rated`) and waits (`policies.model.Wait`).
"""

from collections import deque
from collections.abc import Iterator

from policies.model import AttemptFailure, Dispatch, Outcome, Place, RejectReason, Usage, Wait, WorkerId

KEPT = 1000
"""Histories of requests that have ended."""


class Attempted:
    """One attempt on one worker or pair. Times are the loop's, in seconds."""

    __slots__ = ("at", "failed_at", "failed_on", "failure", "first_token_at", "number", "place", "waits", "why")

    def __init__(self, decision: Dispatch) -> None:
        self.at = decision.request.arrived + decision.waited_s
        self.number = decision.ticket.attempt
        self.place: Place = decision.place
        self.waits: tuple[Wait, ...] = decision.waits
        self.first_token_at: float | None = None
        self.failed_at: float | None = None
        self.failed_on: WorkerId = ""
        self.failure: AttemptFailure | None = None
        self.why = ""
        """What is said of the failure."""


class History:
    """One request from `admit` to its end."""

    __slots__ = (
        "arrived",
        "attempts",
        "client",
        "ended_at",
        "exact",
        "id",
        "input_tokens",
        "model",
        "outcome",
        "output_tokens",
        "queued_at",
        "reject",
        "usage",
        "waits",
        "why",
    )

    def __init__(self, request: str, client: str, model: str, *, arrived: float, queued_at: float) -> None:
        self.id = request
        """As the port has it: the client's id, a slash, and what makes it unique."""
        self.client = client
        self.model = model
        self.arrived = arrived
        self.queued_at = queued_at
        self.input_tokens = 0
        self.output_tokens = 0
        """Expected, of all sequences together."""
        self.exact = False
        """`input_tokens` has been counted."""
        self.attempts: list[Attempted] = []
        self.waits: tuple[Wait, ...] = ()
        """Since the last attempt, of a request that has left the queue without another one."""
        self.outcome: Outcome | None = None
        """None: it is under way."""
        self.reject: RejectReason | None = None
        self.why = ""
        """What the client was told of a rejection, or what the last failure said."""
        self.usage: Usage | None = None
        self.ended_at: float | None = None

    @property
    def placed(self) -> bool:
        """Whether it is on a worker, or was at its end; otherwise it waits, or left the queue."""
        return bool(self.attempts) and self.attempts[-1].failed_at is None

    @property
    def name(self) -> str:
        """The request's id as clients and the log know it."""
        return self.id.rpartition("/")[0] or self.id


class Histories:
    """The histories of requests that have ended, the last `most` of them."""

    def __init__(self, most: int = KEPT) -> None:
        self._ended: deque[History] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._ended)

    def keep(self, history: History) -> None:
        self._ended.append(history)

    def latest(self) -> Iterator[History]:
        """The last to end comes first."""
        return reversed(self._ended)
