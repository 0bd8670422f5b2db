"""Has a worker died under a stream, or did the request itself fail? One pure function.

Deaths are not always unclean. A vLLM that is paused or told to abort ends the stream with `finish_reason:
"abort"`, usage and `[DONE]`; one that gets SIGTERM ends it like that, or with an error event, or falls silent
while its port is closed; one whose engine is killed sends an error event and `[DONE]`.
"""

from enum import Enum

from policies.model import AttemptFailure

_ERRORS = 500


class Death(Enum):
    """How a worker died. Values are labels of metrics."""

    CUT = "cut"
    """The connection broke, or the stream ended without its end."""
    SILENT = "silent"
    """Nothing came for too long, or nothing while the worker was known not to work."""
    ABORTED = "aborted"
    """It gave the answer up: it shuts down, or was told to."""
    ENGINE = "engine"
    """It reports an error of its own."""
    UNREACHABLE = "unreachable"
    """Of a later leg: it never began."""


_DEATHS = {
    AttemptFailure.LOST: Death.CUT,
    AttemptFailure.TIMEOUT: Death.SILENT,
    AttemptFailure.FROZEN: Death.SILENT,
    AttemptFailure.SHUTDOWN: Death.ABORTED,
    AttemptFailure.CONNECT: Death.UNREACHABLE,
    AttemptFailure.BUSY: Death.UNREACHABLE,
}


def death_of(reason: AttemptFailure, status: int | None) -> Death | None:
    """How the worker died; None: the request is at fault, which would fail elsewhere as well.

    `status`: the code inside an error event, if there was one and it had a code.
    """
    if reason is AttemptFailure.ERROR:
        return Death.ENGINE if status is None or status >= _ERRORS else None
    return _DEATHS.get(reason)
