"""The line of a finished request for people: who, where and why there, how long, how much, in 120 columns.

12:00:01.123 completed 200 10.0.0.7:8000 hit 512/700+90 2ms/250ms/3.50s team/alice 4bf92f3577b34da6a3ce929d0e0e4736
time, outcome, status, worker, reason, tokens matched/prompt+answer, time waited/to the first token/in all, client,
id, and the model, as far as there is room.

What has no place in it, such as an error, follows on lines of its own, indented.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

COLUMNS = 120
PLACED = frozenset(
    (
        *("outcome", "client", "model", "status", "worker", "prefill_worker", "reason", "matched_tokens"),
        *("wait_s", "ttft_s", "e2e_s", "input_tokens", "output_tokens", "cached_tokens", "request_id"),
        *("path", "stream", "attempt", "prefix", "prompt_bytes"),
    )
)
"""Keys of a record that have their place in the line, or that are for programs; the others follow below it."""
_WORKER, _REASON, _CLIENT = 24, 11, 16
_COLOURS = {"completed": "32", "cancelled": "2", "refused": "33", "rejected": "33", "failed": "31"}


def request_as_text(record: Mapping[str, Any], now: float, *, colour: bool = False) -> str:
    """The line, and those below it; none longer than `COLUMNS` but a prompt's. `now`: seconds since 1970."""
    get = record.get
    outcome = f"{get('outcome') or '-':<9}"
    parts = (
        f"{get('status') or '-':<3}",
        _cut(_host(get("worker")), _WORKER),
        _cut(get("reason") or "-", _REASON),
        f"{_count(get('matched_tokens'))}/{_count(get('input_tokens'))}+{_count(get('output_tokens'))}",
        f"{duration(get('wait_s'))}/{duration(get('ttft_s'))}/{duration(get('e2e_s'))}",
        _cut(get("client") or "-", _CLIENT),
        get("request_id") or "-",
        get("model") or "-",
    )
    head = f"{local_time(now)} "
    line = printable(f" {' '.join(parts)}")
    room = COLUMNS - len(head) - len(outcome)
    line = line if len(line) <= room else f"{line[: room - 1]}…"
    code = _COLOURS.get(outcome.strip()) if colour else None
    painted = outcome if code is None else f"\x1b[{code}m{outcome}\x1b[0m"
    below = [_below(key, value) for key, value in record.items() if key not in PLACED and value is not None]
    return "\n".join([f"{head}{painted}{line}".rstrip(), *below])


def _below(key: str, value: object) -> str:
    text = printable(f"    {key}: {value}")
    return text if len(text) <= COLUMNS or key != "error" else f"{text[: COLUMNS - 1]}…"


def _cut(text: str, width: int) -> str:
    """At most so wide; the end of a name tells more than its beginning."""
    text = printable(text)
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _host(worker: str | None) -> str:
    return (worker or "-").removeprefix("http://").removeprefix("https://")


def duration(seconds: float | None) -> str:
    """A time for people: milliseconds below a second."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.2f}s"


def _count(tokens: int | None) -> str:
    return "-" if tokens is None else str(tokens)


def printable(text: str) -> str:
    """A client's name or a worker's message must not forge lines or move the cursor."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def local_time(now: float) -> str:
    """The time of day, to the millisecond."""
    return datetime.fromtimestamp(now).astimezone().strftime("%H:%M:%S.%f")[:-3]
