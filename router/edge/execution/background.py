"""A response in the background holds its place until it has ended.

The worker answers that the response is queued, and the client is told so at once; from then on the worker is asked
from time to time how far the response is. Until it has ended, or the worker has, the request keeps what it has
taken: the room on the worker, the client's place under `max_concurrent`, what was charged to its limits. Without
that, work in the background would pass every queue and every limit.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from policies.model import Usage, WorkerId
from router.edge.api.background import progress
from router.edge.execution.worker_answer import WHOLE_BYTES
from router.edge.execution.worker_connections import WorkerConnection, WorkerConnections
from router.edge.trust import is_stored_id
from workers.http.upstream import UpstreamError

_FIRST_POLL_S = 0.1
_LAST_POLL_S = 2.0
_GROWTH = 1.5
"""The time between two polls grows by this factor, from the first to the last."""
_FAILURES = 5
"""Polls in a row without an answer, after which the worker counts as dead, and its response with it."""
_CANCELS = 2
"""How often a worker is told to cancel one, if it does not answer: a kept connection may just have been closed."""
_POLL_TIMEOUT_S = 10.0
_OK = 200
_NOT_FOUND = (404, 410)


class Ending(Enum):
    """How a response in the background ended."""

    COMPLETED = "completed"
    """Or incomplete: as long as the client allowed."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """The worker says so."""
    GONE = "gone"
    """The worker has lost it: it was restarted, or has left, or answers no more."""
    LATE = "late"
    """It took longer than an answer may; the worker was told to cancel it."""


_ENDINGS = {
    "completed": Ending.COMPLETED,
    "incomplete": Ending.COMPLETED,
    "cancelled": Ending.CANCELLED,
    "failed": Ending.FAILED,
}


class End(NamedTuple):
    """The end of a response, with its usage where the worker has said it."""

    ending: Ending
    usage: Usage | None = None


async def end_of(
    response: str, worker: WorkerId, connections: WorkerConnections, *, clock: Callable[[], float]
) -> End:
    """Ask the worker until the response has ended. Returns in any case: `whole_answer_s` is the longest."""
    if not is_stored_id(response):
        return End(Ending.GONE)
    path = b"/v1/responses/" + response.encode()
    started, pause, failures = clock(), _FIRST_POLL_S, 0
    while failures < _FAILURES and (connection := connections.get(worker)) is not None:
        if clock() - started >= connection.upstream.timeouts.whole_answer_s:
            for _ in range(_CANCELS):
                if (await _ask(connection, b"POST", path + b"/cancel"))[0]:
                    break
            return End(Ending.LATE)
        await asyncio.sleep(pause)
        pause = min(_LAST_POLL_S, pause * _GROWTH)
        status, body = await _ask(connection, b"GET", path)
        if status in _NOT_FOUND:
            break
        now = progress(body)
        if status != _OK or now.status is None:
            failures += 1
        elif now.under_way:
            failures = 0
        else:
            return End(_ENDINGS.get(now.status, Ending.COMPLETED), now.usage)
    return End(Ending.GONE)


async def _ask(connection: WorkerConnection, method: bytes, target: bytes) -> tuple[int, bytes]:
    """Status and body; 0 where the worker does not answer."""
    try:
        async with asyncio.timeout(_POLL_TIMEOUT_S):
            exchange = await connection.upstream.send(method, target, list(connection.headers), b"", whole=True)
            try:
                body = await exchange.read_all(WHOLE_BYTES)
            finally:
                exchange.abort()
    except (UpstreamError, TimeoutError):
        return 0, b""
    return exchange.status, body
