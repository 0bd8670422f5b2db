"""What the admin API says of requests, for people: lines of text."""

from collections.abc import Iterator, Sequence
from typing import Any

_COLUMNS = ("state", "age", "waited", "client", "model", "tokens", "worker", "request")


def as_text(told: dict[str, Any]) -> str:
    """`GET /admin/requests/{id}` as text; several requests of one id one below the other."""
    texts = ["\n".join(_request(request)) for request in told["requests"]]
    return "\n\n".join(printable(text) for text in texts)


def as_table(told: dict[str, Any]) -> str:
    """`GET /admin/requests` as a table."""
    rows = [
        (
            row["state"],
            seconds(row["age_s"]),
            seconds(row["waited_s"]),
            row["client"],
            row["model"],
            str(row["input_tokens"]),
            _where(row) or "-",
            row["request_id"],
        )
        for row in told["requests"]
    ]
    head = f"{told['waiting']} wait, {told['open'] - told['waiting']} run"
    return printable("\n".join([head, *table(_COLUMNS, rows)]))


def _request(request: dict[str, Any]) -> Iterator[str]:
    counted = "" if request["input_tokens_counted"] else "about "
    yield f"request {request['request_id']} of {request['client']} for {request['model']}: {request['state']}"
    yield (
        f"came {request['arrived']}, {counted}{request['input_tokens']} prompt tokens"
        f"{_expected(request)}; {seconds(request['age_s'])} in all, {seconds(request['waited_s'])} of it waiting"
    )
    for wait in request["waits"]:
        there = f" for {wait['worker']}" if wait["worker"] else ""
        yield f"  waited {seconds(wait['for_s']):>8} from {seconds(wait['from_s']):>8}: {wait['for']}{there}"
    for attempt in request["attempts"]:
        yield from _attempt(attempt)
    found = request.get("found")
    if found is not None:
        cached = "not said by the worker" if found["cached_tokens"] is None else found["cached_tokens"]
        yield (
            f"cached prefix: expected {found['matched_tokens']}, found {cached} "
            f"of {found['input_tokens']} prompt tokens; {found['output_tokens']} output tokens"
        )
    now = request.get("now")
    if now is not None:
        yield from _now(now)
    ended = request.get("ended")
    if ended is not None:
        why = [each for each in (ended["reject_reason"], ended["why"]) if each]
        yield f"ended after {seconds(ended['at_s'])}: {ended['outcome']}{': ' + ': '.join(why) if why else ''}"


def _attempt(attempt: dict[str, Any]) -> Iterator[str]:
    yield (
        f"attempt {attempt['attempt']} at {seconds(attempt['at_s'])} on {_where(attempt)}: {attempt['reason']}, "
        f"{attempt['matched_tokens']} tokens expected in its cache"
    )
    yield from _workers(attempt["workers"], "taken")
    if attempt["first_token_at_s"] is not None:
        yield f"  first token at {seconds(attempt['first_token_at_s'])}"
    failed = attempt.get("failed")
    if failed is not None:
        yield f"  failed at {seconds(failed['at_s'])} on {failed['on']}: {failed['reason']}: {failed['why']}"


def _now(now: dict[str, Any]) -> Iterator[str]:
    hold = f" for {now['hold_for']}" if now["hold_for"] else ""
    owed = "" if now["deficit"] is None else f"; its client is owed {now['deficit']:.0f} units of service"
    yield (
        f"now it waits for {now['waits_for']}{hold}: {now['waiting']} wait, {now['arrived_before']} came before "
        f"it, {now['of_this_client']} are of its client{owed}"
    )
    yield from _workers(now["workers"], "has room")


def _workers(workers: Sequence[dict[str, Any]], nothing: str) -> Iterator[str]:
    rows = []
    for worker in workers:
        state = worker.get("state_why") or worker.get("state")
        why = worker["why_not"] or nothing
        rows.append(
            (
                worker["worker"],
                "-" if worker["cost"] is None else f"{worker['cost']:.4g}",
                "-" if worker["matched_tokens"] is None else str(worker["matched_tokens"]),
                f"{why} ({state})" if worker["why_not"] == "not_usable" and state else why,
            )
        )
    yield from (f"  {line}" for line in table(("worker", "cost", "matched", "why not"), rows))


def _expected(request: dict[str, Any]) -> str:
    tokens = request["expected_output_tokens"]
    return "" if tokens is None else f", about {tokens} output tokens expected"


def _where(row: dict[str, Any]) -> str | None:
    if row.get("prefill_worker"):
        return f"{row['prefill_worker']} then {row['worker']}"
    worker: str | None = row["worker"]
    return worker


def seconds(value: float | None) -> str:
    """A time for people: milliseconds below a second."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as what stands in them."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """What clients and workers have named must not move the cursor or forge lines."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
