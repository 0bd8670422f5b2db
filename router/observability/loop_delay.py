"""How late the event loop is: every stream waits at least as long as the longest stop of the loop."""

import asyncio
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_WINDOW_S = 30.0
_EVERY_S = 0.25


class LoopDelay:
    """A histogram of delays in seconds, and the longest of the last half to whole minute.

    The longest is kept over a window of time, not since it was last read: two Prometheus servers see the same.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._histogram = Histogram(
            "fairlead_event_loop_delay_seconds",
            "How late the event loop runs a timer",
            buckets=_BUCKETS,
            registry=registry,
        )
        longest = Gauge(
            "fairlead_event_loop_delay_longest_seconds", "The longest within the last minute", registry=registry
        )
        longest.set_function(self._longest)
        self._since = clock()
        self._last = self._this = 0.0

    def observe(self, delay_s: float) -> None:
        self._turn()
        self._this = max(self._this, delay_s)
        self._histogram.observe(delay_s)

    def _longest(self) -> float:
        self._turn()
        return max(self._last, self._this)

    def _turn(self) -> None:
        """Begin a new window when this one is over; the one before still counts."""
        passed = self._clock() - self._since
        if passed >= _WINDOW_S:
            self._last = self._this if passed < 2 * _WINDOW_S else 0.0
            self._this = 0.0
            self._since += passed - passed % _WINDOW_S


async def watch(delay: LoopDelay) -> None:
    """How late the loop runs this task is how late it runs all others. Ends by cancellation."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        delay.observe(max(0.0, clock() - due))
