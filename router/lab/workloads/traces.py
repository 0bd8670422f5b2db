"""Traces as workloads: which format a file has is seen from its first line.

- JSON lines with `timestamp` (ms), `input_length`, `output_length`, and perhaps `client`, `hash_ids`,
  `session`, `priority`, `n` (answers wanted), `stream` (true or false), `model` (a served name), and the
  service level `slo_ttft_s` with `slo_tpot_s`. The client trace of the VTC paper (Chatbot Arena) is this form
  with clients and no hash ids; the traces published with Mooncake (Qin et al., FAST'25) are this form with hash
  ids and no clients: a request's ids name its blocks of 512 tokens, the last of which may be partial; equal ids
  stand for equal blocks behind equal blocks.
- The CSV of Azure's public LLM traces: `TIMESTAMP,ContextTokens,GeneratedTokens`, without clients or prefixes.
- The gateway's own request log (see `request_log`).

A prompt without names for its blocks is like no other. An output of 0 tokens counts as 1: the first token is made
with the prefill. Times are shifted so that the first request is at 0.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from router.lab.workload import BASE_NAME, Targets, Workload, WorkloadError
from router.lab.workloads import request_log, trace_fields
from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import NO_ROW, RequestTable
from router.lab.workloads.trace_lines import BrokenLine, numbered_lines

TRACE_BLOCK_TOKENS = 512
"""Tokens that one of a trace's hash ids stands for."""
BLOCK_TOKENS = 16
"""vLLM's block size, for traces without ids."""
NO_CLIENT = "trace"
"""The client of requests that name none."""
_SCANNED = 10_000
"""Lines among which a request log has its first request; other programs and the gateway's start may come
before."""
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
JSON_FIELDS = ("timestamp", "input_length", "output_length")
FORMATS = (
    f"known are JSON lines with {', '.join(JSON_FIELDS)}, CSV with the columns {', '.join(AZURE_COLUMNS)}, "
    "and the gateway's request log as JSON lines"
)


def read_trace(path: Path, *, block_tokens: int | None = None) -> Workload:
    """The file as a workload.

    `block_tokens`: what one of its hash ids stands for, by default 512. Raises WorkloadError, and its BrokenLine.
    """
    number, first = next(numbered_lines(path), (0, b""))
    if not number:
        raise WorkloadError(f"{path}: the file is empty")
    warnings: list[str] = []
    table = _reader(path, number, first)(path, block_tokens, warnings)
    if not len(table):
        raise WorkloadError("; ".join([f"{path}: there is no request in it", *warnings]))
    table.sort()
    table.start_at_zero()
    name = path.name.removesuffix(".gz")
    return Workload(
        name,
        table.prompts.block_tokens,
        table,
        table.weights,
        warnings=tuple(warnings),
        served_names=table.served_names,
    )


Reader = Callable[[Path, int | None, list[str]], RequestTable]


def _reader(path: Path, number: int, first: bytes) -> Reader:
    if any(request_log.is_request(line) for _, line in islice(numbered_lines(path), _SCANNED)):
        return request_log.read
    if not first.startswith(b"{"):
        if set(AZURE_COLUMNS) <= set(_columns(first)):
            return _azure
        raise WorkloadError(
            f"{path}: not a trace, its first line is {trace_fields.shown(_text(first))}; {FORMATS}"
        )
    try:
        record = trace_fields.json_object(first)
    except ValueError as error:
        raise BrokenLine(path, number, str(error)) from None
    if "event" in record and "time" in record:
        return request_log.read
    if not any(name in record for name in JSON_FIELDS):
        raise WorkloadError(f"{path}: not a trace, its first line has {', '.join(record) or 'no keys'}; {FORMATS}")
    return _json_lines


def _json_lines(path: Path, block_tokens: int | None, warnings: list[str]) -> RequestTable:
    named = any(b'"hash_ids"' in line for _, line in numbered_lines(path))
    table = RequestTable(block_tokens or (TRACE_BLOCK_TOKENS if named else BLOCK_TOKENS))
    watch = Backwards(path, warnings)
    for number, line in numbered_lines(path):
        try:
            watch.observe(number, _json_line(table, line))
        except (ValueError, TypeError, OverflowError) as error:
            raise BrokenLine(path, number, str(error)) from None
    watch.warn()
    return table


def _json_line(table: RequestTable, line: bytes) -> float:
    """One request; returns its moment."""
    record = trace_fields.json_object(line)
    at = trace_fields.number(record, "timestamp") / 1000
    length = trace_fields.tokens(record, "input_length", 1)
    output = trace_fields.tokens(record, "output_length", 0)
    ids = trace_fields.units(record, "hash_ids")
    size = table.prompts.block_tokens
    if len(ids) > -(-length // size):
        raise ValueError(
            f"hash_ids has {len(ids)} blocks of {size} tokens for a prompt of {length}; "
            "give block_tokens if its ids stand for fewer"
        )
    session = trace_fields.text(record, "session")
    priority = trace_fields.whole(record.get("priority", 0), "priority", -(2**31), 2**31 - 1)
    client = table.client(trace_fields.text(record, "client") or NO_CLIENT)
    try:
        prompt = table.prompts.name(ids, length)
    except (TypeError, OverflowError):
        raise ValueError("hash_ids should be whole numbers from 0 to 2**64 - 1") from None
    place = NO_ROW if session is None else table.session(session)
    table.add(
        at,
        client,
        prompt,
        output,
        session=place,
        priority=priority,
        streams=trace_fields.flag(record, "stream", default=True),
        sequences=trace_fields.whole(record.get("n", 1), "n", 1, 2**16),
        served_name=trace_fields.text(record, "model") or BASE_NAME,
        targets=_targets(record),
    )
    return at


def _targets(record: dict[str, Any]) -> Targets | None:
    """The service level of a line, if it names one."""
    if "slo_ttft_s" not in record and "slo_tpot_s" not in record:
        return None
    ttft, tpot = trace_fields.number(record, "slo_ttft_s"), trace_fields.number(record, "slo_tpot_s")
    if min(ttft, tpot) < 0:
        raise ValueError("slo_ttft_s and slo_tpot_s should not be negative")
    return Targets(ttft, tpot)


def _azure(path: Path, block_tokens: int | None, warnings: list[str]) -> RequestTable:
    table = RequestTable(block_tokens or BLOCK_TOKENS)
    client, watch = table.client(NO_CLIENT), Backwards(path, warnings)
    lines = numbered_lines(path)
    columns = _columns(next(lines)[1])
    for number, line in lines:
        try:
            row = dict(zip(columns, _columns(line), strict=True))
            at = trace_fields.moment(row["TIMESTAMP"], "TIMESTAMP")
            length = _count(row, "ContextTokens", 1)
            output = _count(row, "GeneratedTokens", 0)
        except ValueError as error:
            reason = str(error) if "zip" not in str(error) else f"should have {len(columns)} columns"
            raise BrokenLine(path, number, reason) from None
        table.add(at, client, table.prompts.grow(NO_PARENT, length), output)
        watch.observe(number, at)
    watch.warn()
    return table


def _columns(line: bytes) -> list[str]:
    return [column.strip() for column in _text(line).split(",")]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _count(row: dict[str, str], name: str, least: int) -> int:
    try:
        value: object = int(row[name])
    except ValueError:
        value = row[name]
    return trace_fields.whole(value, name, least, trace_fields.MAX_TOKENS)


class Backwards:
    """Counts times that run backwards; one warning in all."""

    def __init__(self, path: Path, warnings: list[str]) -> None:
        self._path = path
        self._warnings = warnings
        self._last = float("-inf")
        self._count = 0
        self._first_line = 0

    def observe(self, line: int, at: float) -> None:
        if at < self._last:
            self._count += 1
            self._first_line = self._first_line or line
        self._last = at

    def warn(self) -> None:
        """Add the warning, if there is a reason."""
        if self._count:
            self._warnings.append(
                f"{self._path}: time runs backwards {self._count} times, first at line {self._first_line}; "
                "its requests are sorted by time"
            )
