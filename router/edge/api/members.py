"""The members of a JSON object as places in its text, and the text with some of them changed.

What is changed in a body is spliced into it: every byte of every other member stays as the client wrote it,
numbers of any size, escapes, spacing and depth included. To parse and write a body anew would change all of
these, and fail where it is nested deeply.

The text must be valid JSON, which the caller has had parsed; then the end of a value is found by the quotes and
brackets alone. Time is linear: each byte is looked at a bounded number of times, nearly all of them by
`bytes.find` and `bytes.count`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from router.edge.pieces import Body, Payload, part
from workers.http.connection import Buffer

_BLANKS = b" \t\r\n"
_BACKSLASH, _QUOTE = b'\\"'
_CLOSING = {ord("{"): b"}", ord("["): b"]"}
_SCALAR_ENDS = frozenset(b",}]" + _BLANKS)


class Member(NamedTuple):
    """One member. Offsets are of its name's opening quote, of its value, and behind the value."""

    name: str
    start: int
    value: int
    end: int


def members(text: bytes) -> list[Member]:
    """All members of a valid JSON object in their order; a name that comes twice is in it twice."""
    found: list[Member] = []
    at = _behind_blanks(text, text.index(b"{") + 1)
    while text[at] == _QUOTE:
        start, name_end = at, _string_end(text, at)
        value = _behind_blanks(text, _behind_blanks(text, name_end) + 1)
        end = _value_end(text, value)
        found.append(Member(orjson.loads(text[start:name_end]), start, value, end))
        at = _behind_blanks(text, end)
        if text[at] == ord(","):
            at = _behind_blanks(text, at + 1)
    return found


def changed(body: Body, found: Sequence[Member], changes: Mapping[str, bytes | None]) -> Payload:
    """The object with these members set to a value (JSON), or, where that is None, without them.

    A member that was not there stands at the end. Of one that was there several times, one is left.
    """
    last = {member.name: member for member in found if member.name in changes}
    buffers: list[Buffer] = list(part(body, 0, found[0].start) if found else (b"{",))
    first, before = True, 0
    for member in found:
        if member.name not in changes:
            value: bytes | None = b""
        else:
            value = changes[member.name] if last[member.name] is member else None
        if value is not None:
            if not first:
                buffers += part(body, before, member.start)  # the comma, as it stands there
            first = False
            buffers += part(body, member.start, member.value if value else member.end)
            buffers.append(value)
        before = member.end
    for name, value in changes.items():
        if value is not None and name not in last:
            buffers.append(b"%s%s:%s" % (b"" if first else b",", orjson.dumps(name), value))
            first = False
    buffers += part(body, before, len(body)) if found else (b"}",)
    return _joined(buffers, body)


def appended(body: Body, more: Mapping[str, bytes]) -> Payload:
    """The object with these members behind its own, none of which has such a name."""
    size = len(body)
    tail = b"".join(part(body, max(0, size - 64), size)) if size > 64 else b"".join(part(body, 0, size))
    if b"}" not in tail or not tail[: tail.rindex(b"}")].strip(_BLANKS):
        tail = b"".join(part(body, 0, size))  # little else than blanks
    before = tail[: tail.rindex(b"}")].rstrip(_BLANKS)
    comma = b"" if before.endswith(b"{") else b","
    end = size - len(tail) + len(before)
    added = b",".join(orjson.dumps(name) + b":" + value for name, value in more.items())
    return _joined([*part(body, 0, end), comma + added, tail[tail.rindex(b"}") :]], body)


def _joined(buffers: list[Buffer], body: Body) -> Payload:
    return b"".join(buffers) if isinstance(body, bytes) else tuple(buffers)


def _behind_blanks(text: bytes, at: int) -> int:
    if text[at] in _BLANKS:
        rest = text[at : at + 64].lstrip(_BLANKS)
        if rest:
            return at + min(64, len(text) - at) - len(rest)
        return len(text) - len(text[at:].lstrip(_BLANKS))
    return at


def _string_end(text: bytes, start: int) -> int:
    """Behind the closing quote of the string that opens at `start`."""
    at = start + 1
    while True:
        quote = text.index(b'"', at)
        before = quote
        while text[before - 1] == _BACKSLASH:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        at = quote + 1


def _value_end(text: bytes, start: int) -> int:
    first = text[start]
    if first == _QUOTE:
        return _string_end(text, start)
    if first in _CLOSING:
        return _container_end(text, start)
    end = start
    while text[end] not in _SCALAR_ENDS:
        end += 1
    return end


def _container_end(text: bytes, start: int) -> int:
    """Behind the bracket that closes the one at `start`: strings are skipped, brackets between them counted."""
    depth, at = 0, start
    closing = _CLOSING[text[start]]
    while True:
        quote = text.find(b'"', at)
        stop = quote if quote >= 0 else len(text)
        closers = text.count(b"}", at, stop) + text.count(b"]", at, stop)
        if closers >= depth and closers:  # it may be closed before the next string
            while (end := text.find(closing, at, stop) + 1) > 0:
                depth += _balance(text, at, end)
                at = end
                if depth == 0:
                    return end
        depth += _balance(text, at, stop)
        at = _string_end(text, quote)


def _balance(text: bytes, start: int, end: int) -> int:
    """Brackets opened, less those closed, in a stretch without strings."""
    count = text.count
    opened = count(b"{", start, end) + count(b"[", start, end)
    return opened - count(b"}", start, end) - count(b"]", start, end)
