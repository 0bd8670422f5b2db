"""Whether one worker should be asked anything: a machine of marks, fed by probes and by requests.

Two kinds of evidence disagree all the time, so each may say only what it knows:

* A **probe** knows whether a process listens. Its failures in a row take a worker DOWN, its success brings it
  back. It does not know whether requests are served: vLLM answers `/health` with 200 while it is paused, asleep
  or shutting down. A good probe therefore never clears a mark that requests made.
* A **request** knows whether work gets done. Its failures make a worker SUSPECT, which only says "prefer
  another", and never DOWN; otherwise one bad upstream minute could eject a whole fleet. Only a refused
  connection that the probe confirms takes a worker down at once.

Invariants: every mark that requests make carries its own end; marks grow (up to a bound) while failures go on
and shrink back with the first success; answers with a 4xx status are a client's affair and are never reported.
"""

import math
from dataclasses import dataclass

from workers.fleet.worker import Exclusion, State

_NEVER = -math.inf
_DRAIN_WHY = {Exclusion.DRAINED: "drained by the operator", Exclusion.REMOVED: "being removed"}


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When a worker is doubted, and for how long."""

    fail_threshold: int = 3
    """Failed requests in a row that make a worker suspect; one is enough just after an earlier mark."""
    fail_window_s: float = 30.0
    """Failures further apart than this are not "in a row"."""
    suspect_for_s: float = 2.0
    suspect_growth: float = 2.0
    """Each further mark without a success between lasts this many times longer ..."""
    suspect_max_s: float = 60.0
    """... up to this; a worker without failures for as long starts again from `suspect_for_s`."""
    down_after_probes: int = 3
    refused_for_s: float = 15.0
    """How long a worker gets nothing after saying that it shuts down."""
    down_silence_s: float = 5.0
    """A request on a worker that is down is taken for lost once it has been silent for so long."""

    def __post_init__(self) -> None:
        for name in ("fail_threshold", "suspect_for_s", "down_after_probes", "refused_for_s", "down_silence_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.suspect_growth < 1:
            raise ValueError("suspect_growth must be at least 1")
        if self.suspect_max_s < self.suspect_for_s:
            raise ValueError("suspect_max_s must be at least suspect_for_s")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state that follows from everything known, and why: for people, and as a closed list."""

    state: State
    why: str = ""
    excluded: Exclusion | None = None


class Health:
    """The evidence about one worker. Times are one monotonic clock's, in seconds."""

    __slots__ = (
        "_answered",
        "_asleep_until",
        "_connect_failed_at",
        "_disputed",
        "_disputed_at",
        "_down",
        "_draining",
        "_failed_at",
        "_failures",
        "_mark_for_s",
        "_ok_at",
        "_probe_failures",
        "_probe_refused",
        "_probe_why",
        "_refused_until",
        "_refused_why",
        "_request_why",
        "_seen",
        "_settings",
        "_suspect_until",
    )

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._seen = False
        self._down = False
        self._draining: Exclusion | None = None
        # Probes.
        self._probe_failures = 0
        self._probe_why = ""
        self._probe_refused = False
        # Requests.
        self._answered = False  # a request was answered since the last probe
        self._ok_at = _NEVER
        self._disputed = 0  # failures since then that another worker shared
        self._disputed_at = _NEVER  # the first of them
        self._failures = 0
        self._failed_at = _NEVER
        self._connect_failed_at = _NEVER
        self._request_why = ""
        self._mark_for_s = 0.0  # length of the last mark; 0 after a success
        self._suspect_until = _NEVER
        self._refused_until = _NEVER
        self._refused_why = ""
        self._asleep_until = _NEVER

    def verdict(self, now: float) -> Verdict:  # noqa: PLR0911 - one return per reason
        """Say what follows at `now`. The strongest reason wins; what the operator wants comes first."""
        if self._draining is not None:
            return Verdict(State.DRAINING, _DRAIN_WHY[self._draining], self._draining)
        if not self._seen:
            return Verdict(State.STARTING, self._probe_why or "not reached yet", Exclusion.STARTING)
        if self._down:
            return Verdict(State.DOWN, self._probe_why, Exclusion.PROBE_FAILED)
        if now < self._refused_until:
            why = f"it refuses new requests: {self._refused_why}"
            return Verdict(State.DRAINING, why, Exclusion.SHUTTING_DOWN)
        if now < self._asleep_until:
            return Verdict(State.DOWN, "the engine is asleep", Exclusion.ASLEEP)
        if now < self._suspect_until:
            return Verdict(State.SUSPECT, f"requests failed: {self._request_why}", Exclusion.REQUESTS_FAILED)
        if self._probe_failures:
            return Verdict(State.SUSPECT, self._probe_why, Exclusion.PROBE_FAILED)
        return Verdict(State.UP)

    def silence_limit_s(self, now: float) -> float:
        """Return how long a request there may be silent at `now`; infinite unless the worker does not work.

        No state is asked but the two that say so: an operator who drains a worker wants its requests to finish.
        """
        if now < self._asleep_until:
            return 0.0
        return self._settings.down_silence_s if self._down else math.inf

    def next_change(self, now: float) -> float | None:
        """Return when the next mark expires, None where none is standing."""
        ends = [end for end in (self._suspect_until, self._refused_until, self._asleep_until) if end > now]
        return min(ends, default=None)

    def probe_ok(self, _now: float) -> None:
        if self._down and self._probe_refused:
            # Nothing listened and now a process does: the one that was shutting down is gone.
            self._refused_until = _NEVER
        self._seen = True
        self._down = False
        self._probe_failures = 0
        self._probe_why = ""
        self._probe_refused = False
        self._answered = False
        self._connect_failed_at = _NEVER

    def probe_failed(self, why: str, now: float, *, connect: bool = False) -> None:
        """Count a failed probe; `connect`: nothing listens there."""
        settings = self._settings
        self._probe_why = f"probe failed: {why}"
        self._probe_refused = self._probe_refused or connect
        self._probe_failures += 1
        if self._answered and not connect:
            # A server under load may be slow to answer a probe while it serves requests all the time.
            self._probe_failures = min(self._probe_failures, settings.down_after_probes - 1) or 1
        elif self._probe_failures >= settings.down_after_probes:
            self._down = True
        self._answered = False
        self._agree(now)

    def request_ok(self, now: float) -> bool:
        """Clear what failed requests marked; say whether there was anything to clear.

        A refusal stays: requests that began before a shutdown still end well during it.
        """
        self._answered = True
        self._ok_at = now
        self._disputed = 0
        if not (self._failures or self._mark_for_s):
            return False
        self._failures = 0
        self._mark_for_s = 0.0
        self._suspect_until = _NEVER
        self._connect_failed_at = _NEVER
        return True

    def request_failed(self, why: str, now: float, *, connect: bool = False) -> None:
        """Count a failure that is the worker's (never a 4xx); `connect`: nothing listens there."""
        settings = self._settings
        if now - self._failed_at > settings.fail_window_s:
            self._failures = 0
        if now - max(self._failed_at, self._suspect_until) > settings.suspect_max_s:
            self._mark_for_s = 0.0
        self._failed_at = now
        self._failures += 1
        if connect:
            self._connect_failed_at = now
            self._agree(now)
        if now < self._suspect_until:
            return  # requests sent before the mark fail all at once: one event, not a reason to grow
        self._request_why = why
        if self._failures >= settings.fail_threshold or self._mark_for_s:
            grown = self._mark_for_s * settings.suspect_growth
            self._mark_for_s = min(max(grown, settings.suspect_for_s), settings.suspect_max_s)
            self._suspect_until = now + self._mark_for_s
            self._failures = 0

    def request_at_fault(self, why: str, now: float, last_ok_elsewhere: float) -> None:
        """Note a failure that another worker shared: the request's fault.

        Unless there are many of them in a row here while others answer what they get (`last_ok_elsewhere`):
        workers that are broken in the same way confirm each other, and failing fast they attract ever more.
        """
        if self._disputed == 0:
            self._disputed_at = now
        self._disputed += 1
        if self._disputed >= self._settings.fail_threshold and last_ok_elsewhere > self._disputed_at:
            self.request_failed(why, now)

    @property
    def ok_at(self) -> float:
        """When a request was answered last; minus infinity: never."""
        return self._ok_at

    def refused(self, why: str, now: float) -> None:
        """Note that the worker says it is shutting down and takes nothing new."""
        self._refused_why = why
        self._refused_until = now + self._settings.refused_for_s

    def asleep(self, until: float) -> None:
        """Note that the engine sleeps; holds until `awake`, or until the reading that said so is too old."""
        self._asleep_until = until

    def awake(self) -> None:
        self._asleep_until = _NEVER

    def drain(self, why: Exclusion = Exclusion.DRAINED) -> None:
        """Note that the operator wants nothing new there: DRAINED or REMOVED."""
        self._draining = why

    def undrain(self) -> None:
        self._draining = None

    def _agree(self, now: float) -> None:
        """Take the worker down at once when a request and a probe were both refused."""
        if self._probe_refused and now - self._connect_failed_at <= self._settings.fail_window_s:
            self._down = True
