"""What follows from an attempt that came to nothing: one row for each kind of failure, and nothing else decides.

The kind says whose fault it is (the worker's health), how loudly the log speaks of it, and what the client hears
if no other attempt follows. Texts are for people; none of them is read here.
"""

import logging
from enum import Enum
from typing import NamedTuple

from policies.model import AttemptFailure
from router.port import RejectKind


class Effect(Enum):
    """What a failure says of its worker."""

    NONE = "none"
    """The worker is well."""
    FAILED = "failed"
    """A request failed there; several in a row make it suspect."""
    UNREACHABLE = "unreachable"
    LEAVING = "leaving"
    """It turns requests away because it is shutting down."""


class Row(NamedTuple):
    """One kind of failure. `last_words`: how the client's message begins if it was the last attempt.

    `tells`: it goes on with what exactly went wrong, which must not name a worker's address.
    """

    effect: Effect
    level: int
    answer: RejectKind
    retry_after_s: float | None
    last_words: str
    tells: bool = True


_FAILED = "Every attempt failed; the last one"
_LATE = "No worker answered in time; the last one"
_BUSY = "Every worker is busy; one of them"
_WRONG = "The worker refuses the request"
_NOT_STORED = "No worker stores it; the last one"
_NONE_TOOK_IT = "No worker could take the request; the last one"
_NOT_REACHED = "No worker could take the request; the last one could not be reached."

OUTCOMES = {
    AttemptFailure.CONNECT: Row(
        Effect.UNREACHABLE, logging.WARNING, RejectKind.UNAVAILABLE, 2, _NOT_REACHED, tells=False
    ),
    AttemptFailure.TIMEOUT: Row(Effect.FAILED, logging.WARNING, RejectKind.WORKER_TIMEOUT, None, _LATE),
    AttemptFailure.FROZEN: Row(Effect.NONE, logging.WARNING, RejectKind.WORKER_TIMEOUT, None, _LATE),
    AttemptFailure.LOST: Row(Effect.FAILED, logging.WARNING, RejectKind.WORKER_FAILED, None, _FAILED),
    AttemptFailure.ERROR: Row(Effect.FAILED, logging.WARNING, RejectKind.WORKER_FAILED, None, _FAILED),
    AttemptFailure.SHUTDOWN: Row(Effect.LEAVING, logging.WARNING, RejectKind.UNAVAILABLE, 2, _NONE_TOOK_IT),
    AttemptFailure.BUSY: Row(Effect.NONE, logging.WARNING, RejectKind.OVERLOADED, 5, _BUSY),
    AttemptFailure.NOT_HERE: Row(Effect.NONE, logging.DEBUG, RejectKind.NOT_FOUND, None, _NOT_STORED),
    AttemptFailure.CLIENTS_FAULT: Row(Effect.NONE, logging.INFO, RejectKind.BAD_REQUEST, None, _WRONG),
    AttemptFailure.HANDOVER: Row(Effect.NONE, logging.DEBUG, RejectKind.WORKER_FAILED, None, _FAILED),
}
"""FROZEN blames no worker here: it is said of a worker that is known to be down."""
