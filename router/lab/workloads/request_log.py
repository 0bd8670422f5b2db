"""The gateway's own request log as a workload, so that an operator can replay yesterday.

A line is written when its request ends: it arrived `e2e_s` before `time`. The log holds no prompts. Where a line
has `prefix` (see `fingerprint`), prompts keep their common prefixes; otherwise each is like no other.

What is reconstructed:

- *Lengths* are the worker's counts. A piece of a prompt has the share of its tokens that it has of its bytes; a
  piece that several prompts share has the length that the first of them gives it.
- *Conversations*: a prompt that goes on where an earlier, ended one stopped is its next turn. Its beginning
  repeats the answer, which the worker holds in its cache, and it is sent as long after the end of the turn
  before as it was.

Lines that are no requests (other events of the gateway, text of other programs) are skipped; so are requests
without a worker's count of their tokens (rejected, refused, failed, given up). Both are counted in a warning.
"""

import math
from array import array
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.edge.api.fingerprint import RECORD_BYTES
from router.lab.workloads import trace_fields
from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import NO_ROW, RequestTable
from router.lab.workloads.trace_lines import BrokenLine, numbered_lines

BLOCK_TOKENS = 16
NO_CLIENT = "anonymous"


def read(path: Path, block_tokens: int | None, warnings: list[str]) -> RequestTable:
    """Every finished request of the log; in the order of the lines, which is not that of arrival.

    Raises BrokenLine for a request whose fields make no sense.
    """
    table = RequestTable(block_tokens or BLOCK_TOKENS)
    skipped = _Skipped()
    shared = _shared(path)
    writer = _Writer(table, shared)
    for number, record in _requests(path, skipped):
        try:
            writer.add(record)
        except ValueError as error:
            raise BrokenLine(path, number, str(error)) from None
    skipped.describe(path, len(table), warnings)
    if writer.cached_of:
        warnings.append(
            f"{path}: its workers found {writer.cached / writer.cached_of:.1%} of the prompt tokens cached"
        )
    return table


def is_request(line: bytes) -> bool:
    """Whether a line is a request of the gateway's log."""
    return _record(line) is not None


# -- lines


@dataclass(slots=True)
class _Skipped:
    """Lines that are not replayed."""

    events: int = 0
    other: int = 0
    uncounted: int = 0

    def describe(self, path: Path, kept: int, warnings: list[str]) -> None:
        if self.uncounted:
            warnings.append(
                f"{path}: {self.uncounted} of {self.uncounted + kept} requests ended without a count of their "
                "tokens and are left out"
            )
        if self.events or self.other:
            warnings.append(
                f"{path}: {self.events + self.other} lines are no requests and are skipped "
                f"({self.events} other events, {self.other} of another format)"
            )


def _requests(path: Path, skipped: _Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that can be replayed, numbered from 1."""
    for number, line in numbered_lines(path):
        record = _record(line)
        if record is None:
            try:
                trace_fields.json_object(line)
            except ValueError:
                skipped.other += 1
            else:
                skipped.events += 1
        elif record.get("input_tokens") == 0 or "output_tokens" not in record or "input_tokens" not in record:
            skipped.uncounted += 1
        else:
            yield number, record


def _record(line: bytes) -> dict[str, Any] | None:
    """A request's line, None for any other."""
    if b'"request"' not in line:
        return None
    try:
        record = trace_fields.json_object(line)
    except ValueError:
        return None
    return record if record.get("event") == "request" and "time" in record else None


# -- prefixes


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where a piece of a prompt ends."""

    hash: int
    end: int
    """Bytes of the prompt up to here."""


def _pieces(record: dict[str, Any]) -> list[_Piece]:
    """The pieces of a line's prompt; none where it has no `prefix`. Raises ValueError."""
    text = trace_fields.text(record, "prefix")
    if text is None:
        return []
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        data = b"?"
    if len(data) % RECORD_BYTES:
        raise ValueError(
            f"prefix should be base64 of records of {RECORD_BYTES} bytes, not {trace_fields.shown(text)}"
        )
    end, pieces = 0, []
    for word in np.frombuffer(data, dtype=">u8").tolist():
        end += word & 0xFFFF
        pieces.append(_Piece(word >> 16, end))
    return pieces


def _shared(path: Path) -> frozenset[int]:
    """Hashes that are in the prompts of several lines: where prompts part, and where conversations go on."""
    hashes = array("Q")
    for _, record in _requests(path, _Skipped()):
        try:
            hashes.extend(piece.hash for piece in _pieces(record))
        except ValueError:
            continue  # the line is refused, with its number, when it is read
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    return frozenset(values[counts > 1].tolist())


@dataclass(frozen=True, slots=True)
class _Ended:
    """The end of a prompt that was answered."""

    row: int
    at: float
    prompt: int


class _Writer:
    """Adds requests to a table, each behind the pieces that it shares with those before it."""

    def __init__(self, table: RequestTable, shared: frozenset[int]) -> None:
        self._table = table
        self._shared = shared
        self._node_of: dict[int, int] = {}
        """Of shared pieces, by hash."""
        self._ended: dict[int, _Ended] = {}
        """The last prompt that ended with a piece, by its hash."""
        self.cached = self.cached_of = 0
        """Prompt tokens that the workers found cached, of how many, where they said so."""

    def add(self, record: dict[str, Any]) -> None:
        """Append a request. Raises ValueError, then nothing is appended."""
        ended = trace_fields.moment(record.get("time"), "time")
        at = ended - trace_fields.number(record, "e2e_s")
        length = trace_fields.tokens(record, "input_tokens", 1)
        output = trace_fields.tokens(record, "output_tokens", 0)
        client = self._table.client(trace_fields.text(record, "client") or NO_CLIENT)
        pieces = _pieces(record)
        size = trace_fields.tokens(record, "prompt_bytes", 1) if pieces else 0
        if pieces and size < pieces[-1].end:
            raise ValueError(f"prompt_bytes is {size}, but the pieces of its prefix have {pieces[-1].end}")
        prompt = self._prompt(pieces, size, length)
        before = self._turn_before(pieces, at)
        row = self._table.add(
            at,
            client,
            prompt,
            output,
            after=NO_ROW if before is None else before.row,
            delay=0.0 if before is None else at - before.at,
            streams=record.get("stream") is not False,
        )
        if before is not None:
            self._table.answered_in(before.row, prompt)
        if pieces and pieces[-1].end == size and pieces[-1].hash in self._shared:
            self._ended[pieces[-1].hash] = _Ended(row, ended, prompt)
        cached = record.get("cached_tokens")
        if isinstance(cached, int):
            self.cached, self.cached_of = self.cached + cached, self.cached_of + length

    def _prompt(self, pieces: list[_Piece], size: int, length: int) -> int:
        """The node of a prompt of `length` tokens in `size` bytes."""
        prompts = self._table.prompts
        node, done, used = NO_PARENT, 0, 0
        marks = [piece for piece in pieces if piece.hash in self._shared]
        for number, piece in enumerate(marks):
            known = self._node_of.get(piece.hash)
            if known is None or prompts.tokens(known) > length:
                marks = marks[number:]
                break
            node, done, used = known, piece.end, prompts.tokens(known)
        else:
            marks = []
        per_byte = (length - used) / (size - done) if size > done else 0.0
        start = used
        for piece in marks:
            tokens = min(length, start + math.floor((piece.end - done) * per_byte + 0.5))
            node = prompts.grow(node, tokens - used)
            used = tokens
            self._node_of.setdefault(piece.hash, node)
        return prompts.grow(node, length - used) if length > used else node

    def _turn_before(self, pieces: list[_Piece], at: float) -> _Ended | None:
        """The ended request whose whole prompt this one begins with, the longest."""
        for piece in reversed(pieces[:-1]):
            ended = self._ended.get(piece.hash)
            if ended is not None and ended.at <= at:
                return ended
        return None
