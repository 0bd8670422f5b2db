"""The bytes that open a request: one line, the headers that concern the next hop, and an empty line."""

import re
from collections.abc import Iterable
from functools import lru_cache

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_TARGET = re.compile(rb"[!-~]+")
_FRAMED_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods whose body is expected: an empty one is announced as `content-length: 0` (RFC 9110, 8.6)."""

_THIS_HOP_ONLY = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"host",
        b"content-length",
    }
)
"""Headers that describe the connection a request came on, not the request; ours are made anew."""


def request_head(
    method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], host: bytes, length: int
) -> bytes:
    """Request line and headers for a body of `length` bytes.

    ValueError if the method or a name is no token, or if the target or a value would break its line (CR, LF,
    NUL; in the target any space or byte outside visible ASCII).
    """
    lines = [_opening(method, target, host)]
    lines += [name + b": " + value for name, value in headers if _goes_on(name)]
    if length or method in _FRAMED_BODY:
        lines.append(b"content-length: %d" % length)
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    # Three scans of the whole instead of three per header: each line has just its own line break.
    breaks = len(lines) + 1
    if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
        raise ValueError(f"a header value holds CR, LF or NUL: {_broken(headers)!r}")
    return head


@lru_cache(maxsize=256)
def _goes_on(name: bytes) -> bool:
    """Whether a header of this name is forwarded. Remembered: the same few names come with every request."""
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"not a header name: {name!r}")
    name = name.lower()
    return name not in _THIS_HOP_ONLY and not name.startswith(b"proxy-")


@lru_cache(maxsize=64)
def _opening(method: bytes, target: bytes, host: bytes) -> bytes:
    """Request line and host, checked. Remembered likewise: an API has few paths."""
    if _TOKEN.fullmatch(method) is None or method == b"CONNECT":
        raise ValueError(f"not a method that can be forwarded: {method!r}")
    if _TARGET.fullmatch(target) is None:
        raise ValueError(f"not a request target: {target!r}")
    return b"%b %b HTTP/1.1\r\nhost: %b" % (method, target, host)


def _broken(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The name of the first header whose value would break its line (the value may be a secret)."""
    return next((name for name, value in headers if re.search(rb"[\r\n\0]", value)), b"")
