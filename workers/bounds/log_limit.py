"""Log lines about a state that lasts: when it begins, when its cause changes, then at longer and longer intervals.

A worker that cannot be reached is probed every few seconds, and a stream of unreadable events fails thousands of
times a second. One line tells an operator everything; none, or a flood, hides it.
"""

import logging
import math
from dataclasses import dataclass

from workers.bounds.backoff import Backoff
from workers.bounds.bounded_map import BoundedMap

_REPEAT = Backoff(first_s=60.0, longest_s=3600.0, factor=4.0)
_MOST_SUBJECTS = 1024


@dataclass(slots=True)
class _Said:
    cause: str
    times: int
    next_at: float


class LogLimit:
    """Which lines about which subject are due. Times are one monotonic clock's, in seconds.

    `repeat`: the pauses between two lines about a subject whose cause stays the same; None: it is said once.
    """

    def __init__(self, logger: logging.Logger, repeat: Backoff | None = _REPEAT) -> None:
        self._logger = logger
        self._repeat = repeat
        self._said: BoundedMap[str, _Said] = BoundedMap(_MOST_SUBJECTS)

    def warn(self, subject: str, cause: str, now: float, message: str, *args: object) -> bool:
        """Log a warning about `subject` if it is due; say whether it was.

        It is due the first time, when `cause` is another one than before, and after the pause of its back-off.
        """
        due = self.count(subject, cause, now)
        if due:
            self._logger.warning(message, *args)
        return due

    def count(self, subject: str, cause: str, now: float) -> bool:
        """Do the same without a line: another one has just said it."""
        said = self._said.get(subject)
        if said is None or said.cause != cause:
            said = self._said[subject] = _Said(cause, 0, now)
        if now < said.next_at:
            return False
        said.times += 1
        said.next_at = now + self._repeat.delay_s(said.times) if self._repeat is not None else math.inf
        return True

    def over(self, subject: str) -> bool:
        """Forget a subject: its state has ended, so it is news when it begins again. Say whether it was told."""
        return self._said.pop(subject, None) is not None
