"""What happens to requests and workers: heard by both policies, in this order per attempt."""

from typing import get_args

from policies.model import Outcome, Placement, RequestView, Usage, WorkerFacts, WorkerId
from policies.value import value


@value
class Queued:
    request: RequestView
    now: float
    again: bool = False
    """A failed attempt came back: it stands at the head of the queue, and nothing is charged for waiting."""


@value
class Bound:
    """The request's worker is settled: on arrival under early binding, just before `Placed` under late."""

    request: RequestView
    placement: Placement
    now: float


@value
class Placed:
    request: RequestView
    placement: Placement
    matched_tokens: int
    extend_tokens: int
    """Prompt tokens that the worker has to compute: the service charged at once."""
    now: float
    borrowed: bool = False
    """It uses room beside which a candidate whose turn came first waits by choice: its turn has not come yet."""


@value
class FirstToken:
    request: RequestView
    placement: Placement
    now: float


@value
class Output:
    request: RequestView
    placement: Placement
    tokens: int
    """Since the last event of this attempt. May be negative once, at the end, when an estimate was too high."""
    now: float


@value
class Left:
    """The request has left the queue or its worker. `placement` is None if it never ran."""

    request: RequestView
    placement: Placement | None
    outcome: Outcome | None
    """None: this attempt failed and the request is queued again."""
    usage: Usage | None
    now: float


@value
class WorkerArrived:
    worker: WorkerFacts
    now: float


@value
class WorkerGone:
    worker: WorkerId
    now: float


Event = Queued | Bound | Placed | FirstToken | Output | Left | WorkerArrived | WorkerGone

EVENTS: frozenset[type[Event]] = frozenset(get_args(Event))
NONE: frozenset[type[Event]] = frozenset()
