"""Requests as no client should send them, made from sound ones by chance."""

import json
from dataclasses import dataclass
from enum import Enum, auto
from random import Random

from tests.end_to_end.wild import mutation
from tests.end_to_end.wild.sound import BODIES, FORM, MODEL, PAGES, request_bytes


class Leave(Enum):
    """What a client does once all is written."""

    READ = auto()
    """Read until nothing more comes."""
    HALF_CLOSE = auto()
    VANISH = auto()
    """Reset the connection at once."""
    VANISH_MIDWAY = auto()
    """... after the first bytes of an answer."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes as they are written, with a turn of the loop between two pieces."""

    pieces: tuple[bytes, ...]
    leave: Leave = Leave.READ


_METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "P0ST", "M-SEARCH", "")
_PATHS = (
    *(
        "/v1/../v1/chat/completions",
        "/v1/%2e%2e/pause",
        "//v1/completions",
        "/v1//completions",
        "/v1/completions/",
    ),
    *(
        "/v1/completions;a=b",
        "/v1/completions%00",
        "/v1/completions%0d%0ax: y",
        "/v1/comple%74ions",
        "/V1/completions",
    ),
    *(
        "/v1/responses/resp_1/cancel",
        "/v1/responses/" + "r" * 300,
        "/v1/responses/..%2f..",
        "/v1/responses/%f0%9f%98%80",
    ),
    *(
        "/v1/completions?a=b&c=%zz",
        "/v1/completions?a=\xff",
        "/v1/completions?%0d%0a",
        "/v1/completions#x",
        "*",
        "x",
    ),
    *(
        "http://other/v1/completions",
        "http://[::1",
        "https://gateway:99999/v1/completions",
        "/\xe9",
        "/" + "a" * 9000,
    ),
    *(
        "/v1/models/" + "m" * 5000,
        "/v1/models/..",
        "/v1/models/%ff",
        "/admin/workers",
        "/invocations",
        "/.env",
        "",
    ),
)


def mutated_request(chance: Random) -> Sent:
    """One request, or two on one connection, with faults of one kind or several."""
    data = _request(chance)
    if chance.random() < 0.12:
        data += _request(chance)
    if chance.random() < 0.3:
        data = mutation.of_bytes(chance, data)
    pieces = tuple(mutation.split(chance, data))
    leave = chance.choices(list(Leave), (70, 10, 10, 10))[0]
    return Sent(pieces, leave)


def _request(chance: Random) -> bytes:
    method, path, body, kind = _sound(chance)
    wrong = chance.choice(
        ("json", "json", "json", "bytes", "head", "head", "chunks", "path", "method", "line", "")
    )
    match wrong:
        case "json" if kind == b"application/json":
            body = mutation.of_json(chance, json.loads(body))
        case "json" | "bytes":
            body = mutation.of_bytes(chance, body)
        case "path":
            path = chance.choice(_PATHS)
        case "method":
            method = chance.choice(_METHODS)
    first, headers = request_bytes(method, "", body, (b"Content-Type", kind), (b"Authorization", b"Bearer x"))
    first = first.replace(b"  ", b" " + path.encode("latin-1") + b" ")
    match wrong:
        case "head":
            headers = mutation.of_headers(chance, headers)
        case "line":
            first = mutation.of_bytes(chance, first)
        case "chunks":
            headers = [pair for pair in headers if pair[0] != b"Content-Length"]
            headers.append((b"Transfer-Encoding", b"chunked"))
            body = mutation.chunked(chance, body)
    return mutation.head(first, headers) + body


def _sound(chance: Random) -> tuple[str, str, bytes, bytes]:
    """Method, path, body and its type."""
    draw = chance.random()
    if draw < 0.1:
        return "GET", chance.choice(PAGES), b"", b"text/plain"
    if draw < 0.15:
        return "POST", "/v1/audio/transcriptions", FORM, b"multipart/form-data; boundary=xx"
    path, fields = chance.choice(BODIES)
    return "POST", path, json.dumps({"model": MODEL, **fields}).encode(), b"application/json"
