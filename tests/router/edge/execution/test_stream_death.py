"""How a worker dies under a stream."""

import pytest

from policies.model import AttemptFailure
from router.edge.execution.stream_death import Death, death_of


@pytest.mark.parametrize(
    ("reason", "status", "death"),
    [
        (AttemptFailure.LOST, None, Death.CUT),
        (AttemptFailure.TIMEOUT, None, Death.SILENT),
        (AttemptFailure.FROZEN, None, Death.SILENT),
        (AttemptFailure.SHUTDOWN, None, Death.ABORTED),
        (AttemptFailure.ERROR, None, Death.ENGINE),
        (AttemptFailure.ERROR, 500, Death.ENGINE),
        (AttemptFailure.ERROR, 503, Death.ENGINE),
        (AttemptFailure.ERROR, 400, None),
        (AttemptFailure.CONNECT, None, Death.UNREACHABLE),
        (AttemptFailure.BUSY, None, Death.UNREACHABLE),
        (AttemptFailure.CLIENTS_FAULT, None, None),
    ],
)
def test_a_death_is_the_workers_and_not_the_requests(reason, status, death):
    assert death_of(reason, status) is death


def test_every_reason_has_an_answer():
    assert {death_of(reason, None) for reason in AttemptFailure} <= {None, *Death}
