"""What RFC 9112 asks of a request's head beyond the syntax that llhttp checks, and what its target means."""

from collections.abc import MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

import httptools

from router.edge.errors import BadRequest, RequestError, Unsupported, WrongMethod
from router.port import shown

_HOST_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+;=:[]"


def check(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the client waits for a 100 (Continue). Raises the RequestError that the head is answered with.

    `headers`: names in lower case.
    """
    if version not in ("1.1", "1.0"):
        raise Unsupported(f"HTTP/{version} is not supported; HTTP/1.1 is.")
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts != 1:
        if hosts:
            raise BadRequest("The request has more than one Host header (RFC 9112, 3.2).")
        if version == "1.1":
            raise BadRequest("The request has no Host header (RFC 9112, 3.2).")
    elif headers[names.index(b"host")][1].translate(None, _HOST_CHARACTERS):
        raise BadRequest("The Host header is no host name or address (RFC 9112, 3.2).")
    if b"transfer-encoding" in names:
        _check_coding(version, [value for name, value in headers if name == b"transfer-encoding"])
    if method == b"CONNECT":
        raise _no_tunnels()
    return b"expect" in names and version == "1.1" and (b"expect", b"100-continue") in _lowered(headers)


def _lowered(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value.lower()) for name, value in headers]


def _check_coding(version: str, codings: list[bytes]) -> None:
    if version == "1.0":
        raise BadRequest("HTTP/1.0 knows no Transfer-Encoding (RFC 9112, 6.1).")
    if [coding.strip(b" \t").lower() for coding in codings] != [b"chunked"]:
        named = shown(b", ".join(codings).decode("latin-1"))
        raise Unsupported(f"Transfer-Encoding: {named} is not supported; chunked alone is.")


def _no_tunnels() -> RequestError:
    error = WrongMethod("CONNECT is not supported: this is no proxy for other servers.")
    error.allow = "GET, POST, DELETE, HEAD, OPTIONS"
    return error


def locate(url: bytes, scope: MutableMapping[str, Any]) -> None:
    """Put path and query of a request target into the scope; most targets are nothing but a path."""
    query = b""
    if not url.startswith(b"/") or b"?" in url or b"#" in url:
        parsed = httptools.parse_url(url)
        url, query = parsed.path or b"/", parsed.query or b""
    path = url.decode("ascii")
    scope["path"] = unquote(path) if "%" in path else path
    scope["raw_path"] = url
    scope["query_string"] = query
