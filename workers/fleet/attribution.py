"""Whose fault is it that a request failed: the worker's, or the request's own?

One failed attempt cannot tell. An input that trips a bug of the engine fails on every worker, so counting each
failure against the worker lets one client make the whole fleet suspect. The next attempt decides: if it succeeds,
or fails in another way, the earlier worker was at fault; if a second worker fails in the same way, the request is.

Only failures that a request can cause are held back for that: an error status, a lost connection, a time-out. That
nothing listens, that the process shuts down or hangs, is the worker's state and is reported at once elsewhere.
"""

from typing import Protocol


class Reports(Protocol):
    """Who keeps account of workers: `workers.fleet.fleet.Fleet`."""

    def request_failed(self, worker_id: str, why: str) -> None: ...
    def request_at_fault(self, worker_id: str, why: str) -> None: ...


class Attribution:
    """The failed attempts of one request, until one of them can be judged by the next.

    Every failure given to `failed` is reported exactly once: in `failed`, or at the latest in `decided`.
    """

    __slots__ = ("_open", "_reports")

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._open: tuple[str, str, str] | None = None
        """Worker, kind and description of the failure that is not reported yet."""

    def failed(self, worker_id: str, kind: str, why: str) -> bool:
        """Take in a failed attempt; True if the request is at fault, so that no other worker should be tried.

        `kind`: what makes two failures the same one, such as `HTTP 500`.
        """
        before, self._open = self._open, None
        if before is not None and before[1] == kind and before[0] != worker_id:
            self._reports.request_at_fault(before[0], before[2])
            self._reports.request_at_fault(worker_id, why)
            return True
        if before is not None:
            self._reports.request_failed(before[0], before[2])
        self._open = (worker_id, kind, why)
        return False

    def decided(self) -> None:
        """Another attempt has begun to answer, or none follows: a failure that is still open was the worker's."""
        if self._open is not None:
            worker_id, _, why = self._open
            self._open = None
            self._reports.request_failed(worker_id, why)
