"""HTTP/1.1 as RFC 9112 writes it and nothing more lenient: what the gateway says to clients, and to workers.

Both readers take bytes that have been received and raise `Malformed` for the first that is not as it should be. An
end in the middle of a message is no malformation: the message is returned with `complete` False.
"""

import re
from dataclasses import dataclass

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*\Z")
_REQUEST_LINE = re.compile(rb"(GET|POST|DELETE|HEAD) (/[!-~]*) HTTP/1\.1\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([ \t!-~\x80-\xff]*)\Z")
_SIZE = re.compile(rb"[0-9a-f]{1,15}\Z")
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,14})\Z")
_BODILESS = (204, 304)


class Malformed(AssertionError):
    """These bytes are not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Message:
    """A response (`status`) or a request (`method` and `target`). Header names are lower-cased."""

    status: int
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool

    def values(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]

    def value(self, name: bytes) -> bytes:
        """The value of a header that occurs once; empty if it is not there."""
        found = self.values(name)
        if len(found) > 1:
            raise Malformed(f"{name!r} occurs {len(found)} times")
        return found[0] if found else b""

    @property
    def closes(self) -> bool:
        return self.value(b"connection").lower() == b"close"


def responses(data: bytes, *, ended: bool, head_requests: bool = False) -> list[Message]:
    """The responses in these bytes.

    `ended`: the connection has ended behind them. `head_requests`: some may answer HEAD, and have no body.
    """
    found: list[Message] = []
    at = 0
    while at < len(data):
        if found and found[-1].complete and found[-1].closes:
            raise Malformed(f"bytes behind an answer that closes: {data[at : at + 80]!r}")
        message, at = _response(data, at, ended=ended, head_requests=head_requests)
        found.append(message)
    return found


def _response(data: bytes, at: int, *, ended: bool, head_requests: bool) -> tuple[Message, int]:
    first, headers, body_at = _head(data, at)
    line = _STATUS_LINE.match(first) if body_at else None
    if body_at and line is None:
        raise Malformed(f"not a status line: {first[:80]!r}")
    if line is None:
        if not b"HTTP/1.1 ".startswith(data[at : at + 9]):
            raise Malformed(f"not the beginning of a response: {data[at : at + 80]!r}")
        return Message(0, "", b"", (), b"", False), len(data)
    message = Message(int(line[1]), "", b"", headers, b"", True)
    length, coding = message.value(b"content-length"), message.value(b"transfer-encoding")
    if message.status < 200 or message.status in _BODILESS:
        if coding or (message.status < 200 and length):
            raise Malformed(f"a {message.status} with a body")
        return message, body_at
    if head_requests and data[body_at : body_at + 5] in (b"", b"HTTP/") and not coding:
        return message, body_at
    body, end = _body(data, body_at, length, coding, ended=ended, closes=message.closes)
    return Message(message.status, "", b"", headers, body, end is not None), len(data) if end is None else end


def requests(data: bytes) -> list[Message]:
    """The requests in these bytes."""
    found: list[Message] = []
    at = 0
    while at < len(data):
        message, at = request(data, at)
        found.append(message)
    return found


def request(data: bytes, at: int = 0) -> tuple[Message, int]:
    """The request that begins here, and where it ends."""
    first, headers, body_at = _head(data, at)
    if not body_at:
        return Message(0, "", b"", (), b"", False), len(data)
    line = _REQUEST_LINE.match(first)
    if line is None:
        raise Malformed(f"not a request line: {first[:80]!r}")
    message = Message(0, line[1].decode(), line[2], headers, b"", True)
    if not message.value(b"host"):
        raise Malformed("a request without Host")
    if message.values(b"transfer-encoding"):
        raise Malformed("a request to a worker in chunks")
    length = message.value(b"content-length") or b"0"
    body, end = _body(data, body_at, length, b"", ended=False, closes=False)
    return Message(0, message.method, message.target, headers, body, end is not None), end or len(data)


def _head(data: bytes, at: int) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], int]:
    """First line, headers, and where the body begins: 0 if the head has not ended."""
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        return b"", (), 0
    first, *lines = data[at:end].split(b"\r\n")
    headers = []
    for line in lines:
        header = _HEADER.match(line)
        if header is None:
            raise Malformed(f"not a header line: {line[:80]!r}")
        headers.append((header[1].lower(), header[2].strip(b" \t")))
    return first, tuple(headers), end + 4


def _body(
    data: bytes, at: int, length: bytes, coding: bytes, *, ended: bool, closes: bool
) -> tuple[bytes, int | None]:
    """A body and where it ends; None: it has not."""
    if coding:
        if coding != b"chunked" or length:
            raise Malformed(f"transfer-encoding {coding!r} with content-length {length!r}")
        return _chunks(data, at)
    if not length:
        if not closes:
            raise Malformed("a body without length on a connection that stays open")
        return data[at:], len(data) if ended else None
    if _LENGTH.match(length) is None:
        raise Malformed(f"content-length {length!r}")
    end = at + int(length)
    return data[at:end], end if end <= len(data) else None


def _chunks(data: bytes, at: int) -> tuple[bytes, int | None]:
    body = b""
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return body, None
        if _SIZE.match(data[at:line_end]) is None:
            raise Malformed(f"not a chunk size: {data[at : at + 80]!r}")
        size = int(data[at:line_end], 16)
        at = line_end + 2
        body += data[at : at + size]
        at += size
        if at + 2 > len(data):
            return body, None
        if data[at : at + 2] != b"\r\n":
            raise Malformed(f"a chunk does not end: {data[at : at + 80]!r}")
        at += 2
        if size == 0:
            return body, at
