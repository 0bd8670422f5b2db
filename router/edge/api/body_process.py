"""A process beside the gateway that parses large bodies; `body_reader` starts it.

A parser in C holds the interpreter's lock for as long as it runs, half a second for 32 MiB of small values, in
whatever thread it runs; and what it makes may be thirty times as large as its text. Here neither matters.

    stdin   kind (1 byte) and length (8 bytes) of a body, then the body; again and again, until it is closed
    stdout  lengths (8 bytes each) of a pickled answer and of the prompt's key, then both

The answer is what was read, without body and key, or `Refusal`. The process ends by itself when it has become
large; the gateway starts another one.
"""

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from router.edge.api.continuable import continuation_of
from router.edge.api.counts import check_values, structure
from router.edge.api.members import members
from router.edge.api.parsed_request import ParsedRequest, Surface, parse
from router.edge.api.passed_body import PassedBody, parse_passed
from router.edge.errors import BadRequest
from router.edge.process_limits import return_large_blocks

QUESTION = Struct("!BQ")
ANSWER = Struct("!QQ")
KINDS: tuple[Surface | None, ...] = (None, *Surface)
"""None: a body that passes through."""
_GROWN_BYTES = 12 << 20
_LARGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """The body is refused: the message and parameter of a `BadRequest`."""

    message: str
    param: str | None


def read_body(kind: Surface | None, body: bytes) -> tuple[ParsedRequest | PassedBody | Refusal, bytes]:
    """What was read of a body, and the prompt's key, which stands apart."""
    key = b""
    try:
        check_values(body)
        found: ParsedRequest | PassedBody
        if kind is None:
            found = parse_passed(body)
        else:
            asked = found = parse(kind, body)
            asked.continuation = continuation_of(kind, asked.fields or {})
            key, asked.prompt, asked.fields = asked.prompt, b"", None
            asked.structure = structure(body)
            if asked.ids is not None:
                key, asked.ids = asked.ids, b""
        found.members = members(body)
    except BadRequest as error:
        return Refusal(error.message, error.param), b""
    found.body = b""
    return found, key


def main() -> None:
    """Answer until there are no more questions."""
    for number in (signal.SIGINT, signal.SIGHUP):  # meant for the gateway, which closes our input when it ends
        signal.signal(number, signal.SIG_IGN)
    return_large_blocks()
    gc.disable()  # nothing here refers to itself, and a collection would walk all that was parsed
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    before = _resident_bytes()
    while (size := _serve(source, sink)) is not None:
        if size >= _LARGE_BYTES:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            if _resident_bytes() > before + _GROWN_BYTES:
                return


def _serve(source: BinaryIO, sink: BinaryIO) -> int | None:
    """Answer one question; the size of its body, or None at the end."""
    head = source.read(QUESTION.size)
    if len(head) < QUESTION.size:
        return None
    kind, size = QUESTION.unpack(head)
    body = source.read(size)
    if len(body) < size:
        return None
    found, key = read_body(KINDS[kind], body)
    answer = pickle.dumps(found, protocol=pickle.HIGHEST_PROTOCOL)
    sink.write(ANSWER.pack(len(answer), len(key)))
    sink.write(answer)
    sink.write(key)
    sink.flush()
    return int(size)


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
