"""What all streams share about going on elsewhere: how far it is allowed, whom to trust, what came of it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from policies.model import WorkerId
from router.edge.api.continuable import Continuation
from router.edge.api.parsed_request import ParsedRequest
from router.edge.api.stream_record import StreamRecord
from router.port import ContinuationMode
from workers.bounds.bounded_map import BoundedMap

_log = logging.getLogger("fairlead.gateway")

_REMEMBERED = 10_000
CONTINUED, BROKEN = "continued", "broken"
"""What became of a stream whose worker died; labels of metrics."""


@dataclass(slots=True)
class Continuations:
    """`count` is told of each stream whose worker died: its outcome, and how the worker died or what forbade more.

    `gap` is told how long a stream that went on stood still, in seconds.
    """

    mode: ContinuationMode
    count: Callable[[str, str], None]
    gap: Callable[[float], None]
    _distrusted: BoundedMap[WorkerId, str] = field(default_factory=lambda: BoundedMap(_REMEMBERED))

    def record(self, ask: ParsedRequest, worker: WorkerId) -> StreamRecord | None:
        """Where to note what comes of this stream; None: it will not go on elsewhere, whatever happens."""
        wanted = ask.continuation
        if self.obstacle(ask) is not None or not isinstance(wanted, Continuation) or worker in self._distrusted:
            return None
        return StreamRecord(ask.surface)

    def obstacle(self, ask: ParsedRequest) -> str | None:
        """What forbids that this stream goes on elsewhere; None: nothing, as far as its request is concerned."""
        wanted = ask.continuation
        if self.mode == "off" or wanted is None:
            return "off"
        if not isinstance(wanted, Continuation):
            return wanted.why
        return wanted.inexact if self.mode == "exact" else None

    def distrust(self, worker: WorkerId, why: str) -> None:
        """What this worker says of its tokens is of no use: it is not asked any more. Said once."""
        if worker not in self._distrusted:
            self._distrusted[worker] = why
            _log.warning("streams of %s cannot go on at another worker if it dies: %s", worker, why)
