"""Answers as no worker should give them, made from sound ones by chance."""

import json
from random import Random
from typing import Any

from tests.end_to_end.wild import mutation
from tests.end_to_end.wild.listener import Answer, End
from tests.end_to_end.wild.sound import document, event_bytes, events

_STATUS = (
    *(
        "200 OK",
        "200",
        "201 Created",
        "202 Accepted",
        "204 No Content",
        "205 Reset Content",
        "206 Partial Content",
    ),
    *(
        "301 Moved",
        "302 Found",
        "304 Not Modified",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
        "101 Switching",
    ),
    *(
        "400 Bad",
        "401 Unauthorized",
        "404 Not Found",
        "413 Large",
        "422 Bad",
        "429 Busy",
        "499 Left",
        "500 Broken",
    ),
    *(
        "501 No",
        "502 Bad",
        "503 Busy",
        "504 Late",
        "599 Odd",
        "600 Odd",
        "999 Odd",
        "099 Odd",
        "2000 OK",
        "0 x",
        "-200 OK",
    ),
)
_ERRORS = (
    {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}},
    {"error": {"message": "busy", "type": "ServiceUnavailable", "param": None, "code": 503}},
    {"error": {"message": "broken", "type": "InternalServerError", "param": None, "code": 500}},
    *({"error": "no"}, {"error": None}, {"error": {"code": "x"}}, {"error": {"code": 10**30}}, {"error": [1]}),
    {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
)
_USAGES = (
    *(
        None,
        5,
        "x",
        [],
        {},
        {"prompt_tokens": -1},
        {"prompt_tokens": "2"},
        {"prompt_tokens": 1e300},
        {"prompt_tokens": True},
    ),
    *(
        {"prompt_tokens": 2**70, "completion_tokens": 1},
        {"prompt_tokens": 2, "completion_tokens": None},
        {"completion_tokens": 3},
    ),
    {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 10**9}},
    *(
        {"input_tokens": -5, "output_tokens": 3},
        {"input_tokens": {}, "output_tokens": []},
        {"prompt_tokens": float("nan")},
    ),
)
_INTERIM = (
    *(
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3,
        b"HTTP/1.1 102 \r\n\r\n",
    ),
    b"HTTP/1.1 100 C\r\ncontent-length: 5\r\n\r\nhello",
)
_SHUTDOWN = (b'"finish_reason":"abort"', b'"stop_reason":null')
"""What vLLM says when it shuts down, and is asked nothing more for a while: it is among `worker_shapes`."""
_VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"ICY", b"http/1.1")
_STALLS = 0.02
"""Share of answers that never end: each costs the time limit."""


def mutated_answer(chance: Random, path: str, *, stream: bool, usage: bool) -> Answer:
    """One answer to a request on this path with faults of one kind or several."""
    streams = stream and chance.random() < 0.93
    body = _stream(chance, path, usage=usage) if streams else _document(chance, path)
    if any(mark in body for mark in _SHUTDOWN) or (b'"type":"message"' in body and b'"stop_reason":"' not in body):
        body = b""
    data, end = _framed(chance, body, streams=streams)
    data, end = _spoiled(chance, data, end)
    return Answer(tuple(mutation.split(chance, data)), end)


def _framed(chance: Random, body: bytes, *, streams: bool) -> tuple[bytes, End]:
    """A head and this body, by length, in chunks, or to the end of the connection."""
    status = chance.choice(_STATUS).encode() if chance.random() < 0.2 else b"200 OK"
    kind = b"text/event-stream; charset=utf-8" if streams else b"application/json"
    headers: mutation.Headers = [(b"server", b"uvicorn"), (b"content-type", kind)]
    end = End.KEEP
    match chance.choice(
        ("length", "chunks", "chunks", "close") if streams else ("length", "length", "chunks", "close")
    ):
        case "length":
            wrong = chance.choice((0, 0, 0, 0, 0, 0, -1, 1, 1000)) if chance.random() < 0.3 else 0
            headers.append((b"content-length", b"%d" % (len(body) + wrong)))
        case "chunks":
            headers.append((b"transfer-encoding", b"chunked"))
            is_sound = chance.random() < 0.6
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_sound else mutation.chunked(chance, body)
        case _:
            end = chance.choice((End.CLOSE, End.CLOSE, End.RESET))
    if chance.random() < 0.15:
        headers = mutation.of_headers(chance, headers)
    version = b"HTTP/1.1" if chance.random() < 0.95 else chance.choice(_VERSIONS)
    return mutation.head(version + b" " + status, headers) + body, end


def _spoiled(chance: Random, data: bytes, end: End) -> tuple[bytes, End]:
    """The bytes with what came before them, behind them, inside them or too early for their end."""
    if chance.random() < 0.08:
        data = chance.choice(_INTERIM) + data
    if chance.random() < 0.05:
        # A second answer that comes late would be the next request's: HTTP/1.1 cannot tell them apart.
        data += chance.choice((data, b"\r\n", b"\0", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"))
        end = End.CLOSE
    if chance.random() < 0.25:
        data = mutation.of_bytes(chance, data)
    if chance.random() < 0.15:
        data, end = data[: chance.randrange(len(data) + 1)], chance.choice((End.CLOSE, End.RESET))
    if end is End.KEEP and chance.random() < 0.1:
        end = chance.choice((End.CLOSE, End.RESET))
    if chance.random() < _STALLS:
        return data[: chance.randrange(len(data) + 1)], End.STALL
    return data, End.CLOSE if end is End.KEEP and not _is_sound(data) else end


def _is_sound(data: bytes) -> bool:
    """Whether an answer has an end that a reader can find; any other is followed by the end of its connection."""
    head, gap, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(gap) and (body.endswith(b"0\r\n\r\n") or (length.isdigit() and int(length) == len(body)))


def _document(chance: Random, path: str) -> bytes:
    content: Any = document(path)
    draw = chance.random()
    if draw < 0.1:
        content = chance.choice(_ERRORS)
    elif draw < 0.25 and "usage" in content:
        content = {**content, "usage": chance.choice(_USAGES)}
    if draw > 0.5:
        return mutation.of_json(chance, content)
    body = json.dumps(content, separators=chance.choice(((",", ":"), (", ", ": ")))).encode()
    return mutation.of_bytes(chance, body) if draw > 0.4 else body


def _stream(chance: Random, path: str, *, usage: bool) -> bytes:
    said = events(path, usage=usage)
    for _ in range(chance.choice((0, 1, 1, 2))):
        _change(chance, said)
    line_end = chance.choice((b"\n", b"\n", b"\n", b"\n", b"\r\n", b"\r"))
    parts = [event_bytes(*event, line_end) for event in said]
    if chance.random() < 0.15:
        parts.insert(chance.randrange(len(parts) + 1), chance.choice(_BETWEEN))
    body = b"".join(parts)
    if chance.random() < 0.1:
        body = body.rstrip(b"\r\n")
    return mutation.of_bytes(chance, body) if chance.random() < 0.2 else body


_BETWEEN = (
    *(b": comment\n\n", b":\n", b"\n", b"retry: 5\n\n", b"id\n\n", b"data\n\n", b"data:x\n\n", b"\xef\xbb\xbf"),
    b": " + b"c" * 70_000 + b"\n\n",
)
_TEXTS = ("", "x" * 20_000, "{", "null", "[DONE]", " [DONE]", "é😀" * 50)


def _change(chance: Random, said: list[tuple[bytes, Any]]) -> None:
    """One event left out, doubled, moved, added or changed."""
    if not said:
        return
    at = chance.randrange(len(said))
    name, content = said[at]
    match chance.randrange(9):
        case 0:
            del said[at]
        case 1:
            said.insert(at, said[at])
        case 2:
            chance.shuffle(said)
        case 3 | 4 as kind:
            said.insert(at, (b"error" if kind == 4 else b"", chance.choice(_ERRORS)))
        case 5 if isinstance(content, dict):
            said[at] = (name, {**content, "usage": chance.choice(_USAGES)})
        case 6:
            said[at] = (name, chance.choice(_TEXTS))
        case 7:
            said.insert(at, (chance.choice((b"ping", b"a" * 300, b"\xff")), {}))
        case _:
            said[at] = (name, mutation.of_json(chance, content).decode("latin-1"))
