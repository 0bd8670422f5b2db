"""Faults on demand: what a simulated worker does wrong, how often and for how long.

Kinds
- `refuse`: the port is closed, connections are refused; requests in flight go on.
- `crash`: the port is closed and every connection is cut at once, as when the process is killed.
- `hang`: nothing is answered; with `after_tokens` a stream stalls there instead.
- `slow`: the engine takes `factor` times as long and the first byte waits `delay_s`.
- `error_500`: an internal server error.
- `die_mid_stream`: the connection is cut after `after_tokens` tokens (before a non-streaming answer).
- `error_in_stream`: HTTP 200 whose stream ends, after `after_tokens` tokens, in an error event.
- `draining`: new requests get the 500 of a vLLM that shuts down; `/health` stays 200.
- `paused`: what is in flight ends with `abort`, new requests hang; `/health` stays 200.
- `abort`: once, now: what is in flight ends with finish_reason `abort`.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args

Kind = Literal[
    "refuse",
    "crash",
    "hang",
    "slow",
    "error_500",
    "die_mid_stream",
    "error_in_stream",
    "draining",
    "paused",
    "abort",
]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. It lasts until cleared, for `for_s` seconds, or for `times` requests."""

    kind: Kind
    after_tokens: int = 0
    delay_s: float = 0.0
    factor: float = 1.0
    times: int | None = None
    for_s: float | None = None
    probes: bool = False
    """Whether /health, /metrics and the other GETs suffer as well."""

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Fault":
        """From a JSON object. Raises ValueError that says what is wrong."""
        kind = values.get("kind")
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown key {unknown[0]!r}, known are {', '.join(sorted(known))}")
        for name in ("after_tokens", "delay_s", "factor", "times", "for_s"):
            value = values.get(name)
            least = 1 if name == "times" else 0
            if value is not None and (not isinstance(value, int | float) or value < least):
                raise ValueError(f"{name} is {value!r}, not a number of at least {least}")
        return cls(**values)

    @classmethod
    def from_option(cls, text: str) -> "Fault":
        """From `kind` or `kind:key=value,key=value` on the command line."""
        kind, _, rest = text.partition(":")
        values: dict[str, Any] = {"kind": cast("Kind", kind)}
        for item in filter(None, rest.split(",")):
            key, _, value = item.partition("=")
            values[key] = value == "true" if key == "probes" else float(value)
            if key in ("after_tokens", "times"):
                values[key] = int(float(value))
        return cls.parse(values)


class Faults:
    """The fault that is set on one worker, if any."""

    def __init__(self) -> None:
        self.current: Fault | None = None
        self._left: int | None = None
        self._until: float | None = None

    def set(self, fault: Fault, now: float) -> None:
        self.current = fault
        self._left = fault.times
        self._until = None if fault.for_s is None else now + fault.for_s

    def clear(self) -> None:
        self.current = None

    def peek(self, now: float) -> Fault | None:
        """The fault in force, not counting this look."""
        if self._until is not None and now >= self._until:
            self.current = None
        return self.current

    def take(self, now: float) -> Fault | None:
        """The fault that the next request meets, counted against `times`."""
        fault = self.peek(now)
        if fault is not None and self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.current = None
        return fault
