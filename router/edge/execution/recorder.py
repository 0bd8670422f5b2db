"""Where the record of a finished request goes: to the metrics, the log, and the list of the last decisions."""

from collections.abc import MutableSequence
from typing import Any

from router.edge.execution.record import Record
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog


class Recorder:
    """`decisions` collects the lines of what was placed."""

    __slots__ = ("_decisions", "_metrics", "log")

    def __init__(self, metrics: Metrics, log: RequestLog, decisions: MutableSequence[dict[str, Any]]) -> None:
        self._metrics = metrics
        self._decisions = decisions
        self.log = log

    def write(self, record: Record, now: float) -> None:
        record.write(now, self._metrics, self.log, self._decisions)
