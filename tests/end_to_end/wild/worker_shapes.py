"""Workers that misbehave, one shape each, and what a client hears of an answer in one piece, and of a stream."""

import json
from dataclasses import dataclass
from typing import Any

from tests.end_to_end.wild.listener import Answer, End, whole
from tests.end_to_end.wild.sound import STREAM_HEAD, document, event_bytes, events

CHAT = "/v1/chat/completions"
SOUND = "sound"
"""Status 200 and the worker's answer to its end."""
CUT = "cut"
"""Status 200, a part of the answer, and an error as its last words."""

Heard = frozenset[int | str]
"""What a client may hear: statuses of errors, SOUND, CUT."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The answer to a request in one piece and to a streamed one, each with what may come of it."""

    whole: Answer
    hears_whole: Heard
    stream: Answer
    hears_stream: Heard


def _says(*pieces: bytes, end: End = End.CLOSE) -> Answer:
    return Answer(pieces, end)


def _head(*headers: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((version + b" " + status, *headers)) + b"\r\n\r\n"


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _pieces(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[start : start + 9] for start in range(0, len(data), 9))


JSON = json.dumps(document(CHAT), separators=(",", ":")).encode()
_JSON = b"content-type: application/json"
_LENGTH = b"content-length: %d" % len(JSON)
_CHUNKED = b"transfer-encoding: chunked"
_SSE = b"content-type: text/event-stream; charset=utf-8"
_PARTS = [event_bytes(*event) for event in events(CHAT, usage=True)]
_BODY = b"".join(_PARTS)
_BAD: Heard = frozenset((502,))
_LATE: Heard = frozenset((504,))
_FINE: Heard = frozenset((SOUND,))
_BROKEN: Heard = frozenset((CUT,))
_EITHER: Heard = frozenset((SOUND, 502))
_END = b"0\r\n\r\n"


def _both(answer: Answer, hears: Heard) -> Shape:
    """The same whatever was asked."""
    return Shape(answer, hears, answer, hears)


def _body(*headers: bytes, hears: Heard, body: bytes = JSON, end: End | None = None) -> Shape:
    """An answer of JSON with these headers, whatever was asked."""
    if end is None:
        end = End.KEEP if SOUND in hears else End.CLOSE
    return _both(_says(_head(_JSON, *headers) + body, end=end), hears)


def _sse(*parts: bytes, hears: Heard, **other: Any) -> Shape:
    """A stream in which each part is a chunk; `whole` and `hears_whole` say what else there is."""
    stream = Answer((STREAM_HEAD, *(_chunk(part) for part in parts), _END))
    return Shape(other.get("whole", Answer((whole(JSON),))), other.get("hears_whole", _FINE), stream, hears)


def _refusing(status: str, hears: Heard, *headers: bytes, body: bytes | None = None) -> Shape:
    """An error, whatever was asked."""
    code = int(status[:3])
    error = {"error": {"message": "no", "type": "E", "param": None, "code": code}}
    said = json.dumps(error).encode() if body is None else body
    head = _head(_JSON, b"content-length: %d" % len(said), *headers, status=status.encode())
    return _both(_says(head + said, end=End.KEEP), hears)


def _error_event(code: object, message: object = "boom") -> bytes:
    return event_bytes(b"", {"error": {"message": message, "type": "E", "param": None, "code": code}})


def _usage(usage: object) -> Shape:
    content = {**document(CHAT), "usage": usage}
    answer = Answer((whole(json.dumps(content, separators=(",", ":")).encode()),))
    last = event_bytes(b"", {"id": "c", "object": "chunk", "choices": [], "usage": usage})
    return _sse(*_PARTS[:3], last, _PARTS[-1], hears=_FINE, whole=answer)


_CONNECTIONS = {
    "closes at once": _both(_says(), _BAD),
    "resets at once": _both(_says(end=End.RESET), _BAD),
    "says nothing": _both(_says(end=End.STALL), _LATE),
    "half a head, then closes": _both(_says(b"HTTP/1.1 200 OK\r\ncontent-ty"), _BAD),
    "half a head, then resets": _both(_says(b"HTTP/1.1 200 OK\r\ncontent-ty", end=End.RESET), _BAD),
    "half a head, then silence": _both(_says(b"HTTP/1.1 200 OK\r\ncontent-ty", end=End.STALL), _LATE),
    "a head, then silence": Shape(
        _says(_head(_JSON, _LENGTH), end=End.STALL), _LATE, _says(STREAM_HEAD, end=End.STALL), _LATE
    ),
    "a head, then closes": Shape(_says(_head(_JSON, _LENGTH)), _BAD, _says(STREAM_HEAD), _BAD),
    "half an answer, then silence": Shape(
        _says(_head(_JSON, _LENGTH) + JSON[:20], end=End.STALL),
        _LATE,
        _says(STREAM_HEAD, _chunk(_PARTS[0]), end=End.STALL),
        _BROKEN,
    ),
    "half an answer, then closes": Shape(
        _says(_head(_JSON, _LENGTH) + JSON[:20]),
        _BAD,
        _says(STREAM_HEAD, _chunk(_PARTS[0]), b"ff\r\ndata: {"),
        _BROKEN,
    ),
    "half an answer, then resets": Shape(
        _says(_head(_JSON, _LENGTH), JSON[:20], end=End.RESET),
        frozenset((502,)),
        _says(STREAM_HEAD, _chunk(_PARTS[0]), _chunk(_PARTS[1]), end=End.RESET),
        frozenset((CUT, 502)),
    ),
    "all but the last byte": Shape(
        _says(_head(_JSON, _LENGTH) + JSON[:-1]),
        _BAD,
        _says(STREAM_HEAD + _chunk(_BODY) + _END[:-1]),
        frozenset((SOUND, CUT)),
    ),
}

_NO_HTTP = {
    f"no HTTP: {name}": _both(_says(data), _BAD)
    for name, data in {
        "zeros": b"\0" * 500,
        "a web page": b"<html>hi</html>\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/2": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d\0\x04\0\0\xff\xff",
        "TLS": b"\x15\x03\x01\0\x02\x02\x0a",
        "HTTP/0.9": JSON,
        "ICY": b"ICY 200 OK\r\n\r\n",
        "no version": b"HTTP/ 200 OK\r\n\r\n",
        "no status": b"HTTP/1.1 \r\n\r\n",
        "a status in words": b"HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n",
        "a request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    }.items()
}

_HEADS = {
    "bare line feeds": _both(
        _says(b"HTTP/1.1 200 OK\n" + _JSON + b"\n" + _LENGTH + b"\n\n" + JSON, end=End.KEEP), _EITHER
    ),
    "a folded header": _body(b"x-a: b\r\n c: d", _LENGTH, hears=_EITHER),
    "NUL in a header": _body(b"x-a: b\0c", _LENGTH, hears=_BAD),
    "a bare CR in a header": _body(b"x-a: b\rc", _LENGTH, hears=_BAD),
    "a header without a colon": _body(b"foo bar", _LENGTH, hears=_BAD),
    "a space before the colon": _body(b"foo : bar", _LENGTH, hears=_BAD),
    "an empty header name": _body(b": bar", _LENGTH, hears=_BAD),
    "bytes beyond ASCII in a header": _body(b"x-a: \xff\xfe\xe9", _LENGTH, hears=_FINE),
    "a header of 500 kB": _body(b"x: " + b"a" * 500_000, _LENGTH, hears=_BAD),
    "20,000 headers": _body(*(b"x-%d: y" % number for number in range(20_000)), _LENGTH, hears=_BAD),
    "a reason of 500 kB": _both(_says(_head(_LENGTH, status=b"200 " + b"O" * 500_000) + JSON), _BAD),
    "no content type": _both(_says(_head(_LENGTH) + JSON, end=End.KEEP), _FINE),
    "two content types": _body(_SSE, _LENGTH, hears=_FINE),
    "hop headers": _body(b"connection: x-secret", b"x-secret: 1", b"keep-alive: timeout=5", _LENGTH, hears=_FINE),
    "cookies and addresses": _body(
        b"set-cookie: a=b", b"location: http://10.9.8.7:1/", b"server: x", _LENGTH, hears=_FINE
    ),
    "an alternative service": _body(
        b'alt-svc: h3=":443"', b"refresh: 0; url=http://10.9.8.7:1/", _LENGTH, hears=_FINE
    ),
}

_FRAMING = {
    "a negative length": _body(b"content-length: -5", hears=_BAD),
    "a length with a sign": _body(b"content-length: +%d" % len(JSON), hears=_BAD),
    "a list of lengths": _body(b"content-length: %d, %d" % (len(JSON), len(JSON)), hears=_BAD),
    "a length of 30 digits": _body(b"content-length: " + b"9" * 30, hears=_BAD),
    "a length in hexadecimal": _body(b"content-length: 0x10", hears=_BAD),
    "an empty length": _body(b"content-length: ", hears=_EITHER),
    "two lengths": _body(_LENGTH, b"content-length: 5", hears=_BAD),
    "the same length twice": _body(_LENGTH, _LENGTH, hears=_EITHER),
    "a length and chunks": _body(_LENGTH, _CHUNKED, body=_chunk(JSON) + _END, hears=_BAD),
    "chunks and a length": _body(_CHUNKED, _LENGTH, body=_chunk(JSON) + _END, hears=_BAD),
    "gzip as transfer": _body(b"transfer-encoding: gzip, chunked", body=_chunk(JSON) + _END, hears=_BAD),
    "chunks twice": _body(_CHUNKED, _CHUNKED, body=_chunk(JSON) + _END, hears=_BAD),
    "an unknown transfer": _body(b"transfer-encoding: xchunked", body=_chunk(JSON) + _END, hears=_BAD),
    "a length that is too large": _body(b"content-length: 5000", hears=_BAD),
    "a length that is too small": _body(b"content-length: %d" % (len(JSON) - 5), hears=_EITHER | {SOUND}),
    "chunk sizes that are none": _body(_CHUNKED, body=b"zz\r\n" + JSON, hears=_BAD),
    "a chunk size of 20 digits": _body(_CHUNKED, body=b"f" * 20 + b"\r\n" + JSON, hears=_BAD),
    "a negative chunk size": _body(_CHUNKED, body=b"-5\r\n" + JSON, hears=_BAD),
    "a chunk without its end": _body(_CHUNKED, body=b"%x\r\n" % len(JSON) + JSON + _END, hears=_BAD),
    "chunks without an end": _body(_CHUNKED, body=_chunk(JSON), hears=_BAD),
    "a chunk extension of 3 MB": _body(
        _CHUNKED, body=b"5;" + b"e" * 3_000_000 + b"\r\nhello\r\n" + _END, hears=_BAD
    ),
    "a small chunk extension": _body(
        _CHUNKED, body=b"%x;a=b\r\n" % len(JSON) + JSON + b"\r\n" + _END, hears=_EITHER
    ),
    "trailers of 3 MB": _body(
        _CHUNKED, body=_chunk(JSON) + b"0\r\n" + (b"t: " + b"e" * 1000 + b"\r\n") * 3000 + b"\r\n", hears=_BAD
    ),
    "a trailer": _body(_CHUNKED, body=_chunk(JSON) + b"0\r\nx-checksum: 1\r\n\r\n", hears=_FINE),
    "a trailer that is a length": _body(
        _CHUNKED, body=_chunk(JSON) + b"0\r\ncontent-length: 1\r\n\r\n", hears=_EITHER
    ),
    "no length, then closes": _body(hears=_FINE, end=End.CLOSE),
    "HTTP/1.0": _both(_says(_head(_JSON, version=b"HTTP/1.0") + JSON), _FINE),
    "HTTP/1.0 in chunks": _both(
        _says(_head(_JSON, _CHUNKED, version=b"HTTP/1.0") + _chunk(JSON) + _END, end=End.KEEP), _EITHER
    ),
    "HTTP/2.0": _both(_says(_head(_JSON, _LENGTH, version=b"HTTP/2.0") + JSON, end=End.KEEP), _EITHER),
    "a second answer behind the first": _both(_says(whole(JSON) + whole(b"stolen"), end=End.KEEP), _FINE),
    "garbage behind the answer": _both(_says(whole(JSON) + b"\0\0\0", end=End.KEEP), _FINE),
    "a second answer a moment later": _both(_says(whole(JSON), whole(b"stolen"), end=End.KEEP), _FINE),
    "a few bytes at a time": Shape(
        Answer(_pieces(whole(JSON))),
        _FINE,
        Answer(_pieces(STREAM_HEAD + _chunk(_BODY) + _END)),
        _FINE,
    ),
    "one byte in each chunk": Shape(
        Answer((_head(_JSON, _CHUNKED) + b"".join(_chunk(bytes((byte,))) for byte in JSON) + _END,)),
        _FINE,
        Answer((STREAM_HEAD + b"".join(_chunk(bytes((byte,))) for byte in _BODY) + _END,)),
        _FINE,
    ),
}

_INTERIM = {
    "100 before the answer": _both(_says(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(JSON), end=End.KEEP), _FINE),
    "five times 103": _both(
        _says(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 5 + whole(JSON), end=End.KEEP), _FINE
    ),
    "103 without end": _both(_says(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 20_000), _BAD),
    "101": _both(_says(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nxx"), _BAD),
    "100 with a body": _both(_says(b"HTTP/1.1 100 C\r\ncontent-length: 2\r\n\r\n{}" + whole(JSON)), _BAD),
}

_STATUSES = {
    **{
        f"status {status}": _refusing(status, _BAD, b"location: http://10.9.8.7:1/", body=b"")
        for status in ("204 N", "205 R", "300 M", "301 M", "302 F", "304 N", "307 T", "308 P")
    },
    **{
        f"status {status}": _refusing(status, _BAD)
        for status in ("600 X", "999 X", "000 X", "099 X", "401 U", "403 F")
    },
    **{
        f"status {status}": _refusing(f"{status} X", frozenset((status,)))
        for status in (400, 402, 404, 405, 408, 409, 413, 415, 418, 422, 451, 499, 501)
    },
    **{
        f"status {status}": _refusing(f"{status} X", frozenset((status, 502)))
        for status in (500, 502, 504, 507, 599)
    },
    **{
        f"status {status}": _refusing(f"{status} X", frozenset((429, 503)), b"retry-after: 7")
        for status in (429, 503)
    },
    **{f"status {status}": _body(_LENGTH, hears=_FINE) for status in (200,)},
    "status 400 without a body": _refusing("400 X", frozenset((400,)), body=b""),
    "status 400 with a page": _refusing("400 X", frozenset((400,)), body=b"<html>"),
    "status 500 without a body": _refusing("500 X", frozenset((500, 502)), body=b""),
    "status 500 with bytes that are no text": _refusing("500 X", frozenset((500, 502)), body=b"\xff\xfe\0" * 500),
    "status 200 with a page": _both(
        _says(_head(b"content-type: text/html", b"content-length: 6") + b"<html>", end=End.KEEP), _BAD
    ),
    "shutting down": _refusing("500 X", frozenset((503,)), body=b"cannot schedule new futures after shutdown"),
}

_STREAMS = {
    "an empty stream": _sse(hears=_BAD),
    "no last words": _sse(*_PARTS[:2], hears=_BROKEN),
    "no last words after the finish": _sse(*_PARTS[:3], hears=_BROKEN),
    "last words only": _sse(_PARTS[-1], hears=_FINE),
    "last words twice": _sse(*_PARTS, _PARTS[-1], hears=_FINE),
    "events behind the last words": _sse(*_PARTS, _PARTS[0], hears=_FINE),
    "last words without a blank line": _sse(*_PARTS[:-1], b"data: [DONE]", hears=frozenset((SOUND, CUT))),
    "the end of the connection for an end": Shape(
        _says(_head(_JSON) + JSON), _FINE, _says(_head(_SSE) + _BODY), _FINE
    ),
    "the end of the connection in the middle": Shape(
        _says(_head(_JSON) + JSON), _FINE, _says(_head(_SSE), _PARTS[0]), _BROKEN
    ),
    "CRLF": _sse(*(part.replace(b"\n", b"\r\n") for part in _PARTS), hears=_FINE),
    "comments between": _sse(b": ping\n\n", _PARTS[0], b": ping\n\n", *_PARTS[1:], hears=_FINE),
    "comments and nothing else": _sse(b": ping\n\n", b": ping\n\n", hears=_BAD),
    "retry, id and unknown fields": _sse(
        b"retry: 5\n\n", b"id: 1\n" + _PARTS[0], b"odd: 1\n\n", *_PARTS[1:], hears=_FINE
    ),
    "a byte order mark": _sse(b"\xef\xbb\xbf" + _PARTS[0], *_PARTS[1:], hears=_FINE),
    "an event of 2 MiB": _sse(
        event_bytes(b"", {"id": "1", "choices": [{"index": 0, "text": "x" * (2 << 20)}]}), *_PARTS, hears=_FINE
    ),
    "an event of 2 MiB without an end": _sse(b"data: " + b"x" * (2 << 20), hears=frozenset((502, CUT))),
    "characters cut in two": _sse(
        *(bytes((byte,)) for byte in _PARTS[0].replace(b"he", "é😀".encode())), *_PARTS[1:], hears=_FINE
    ),
    "bytes that are no text": _sse(_PARTS[0].replace(b"he", b"\xff\xfe\0"), *_PARTS[1:], hears=_FINE),
    "events that are no JSON": _sse(b"data: {\n\n", b"data: null\n\n", b"data:\n\n", *_PARTS, hears=_FINE),
    "events nested a thousand levels": _sse(b"data: " + b"[" * 1000 + b"]" * 1000 + b"\n\n", *_PARTS, hears=_FINE),
    "all events in one piece": _sse(_BODY, hears=_FINE),
    "an answer in one piece to a stream": _both(_says(whole(JSON), end=End.KEEP), _FINE),
    "a stream to what is none": _both(_says(STREAM_HEAD + _chunk(_BODY) + _END, end=End.KEEP), _FINE),
    "an error first": _sse(_error_event(500), _PARTS[-1], hears=frozenset((500, 502))),
    "the client's error first": _sse(_error_event(400), _PARTS[-1], hears=frozenset((400,))),
    "busy first": _sse(_error_event(503), _PARTS[-1], hears=frozenset((429, 503))),
    "an error without a code": _sse(_error_event(None), _PARTS[-1], hears=frozenset((500, 502))),
    "an error whose code is text": _sse(
        _error_event("context_length"), _PARTS[-1], hears=frozenset((400, 500, 502))
    ),
    "an error whose code is no status": _sse(_error_event(10**30), _PARTS[-1], hears=frozenset((500, 502))),
    "an error that is text": _sse(event_bytes(b"", {"error": "boom"}), _PARTS[-1], hears=frozenset((500, 502))),
    "an error in the middle": _sse(_PARTS[0], _error_event(500), _PARTS[-1], hears=_BROKEN),
    "given up first": _sse(_PARTS[2].replace(b"stop", b"abort"), _PARTS[-1], hears=frozenset((503,))),
    "given up in the middle": _sse(*_PARTS[:2], _PARTS[2].replace(b"stop", b"abort"), _PARTS[-1], hears=_BROKEN),
    "given up in one piece": Shape(
        _says(whole(JSON.replace(b'"stop"', b'"abort"')), end=End.KEEP),
        frozenset((503,)),
        _says(STREAM_HEAD + _chunk(_BODY) + _END, end=End.KEEP),
        frozenset((SOUND, 503)),
    ),
}

_DOCUMENTS = {
    "no JSON": _body(b"content-length: 5", body=b"hello", hears=_FINE),
    "an empty answer": _body(b"content-length: 0", body=b"", hears=_FINE | {502}),
    "NaN": _body(b"content-length: 11", body=b'{"usage": NaN}'[:11], hears=_FINE),
    "nested ten thousand levels": _body(b"content-length: 20000", body=b"[" * 10_000 + b"]" * 10_000, hears=_FINE),
    "usage that never ends": _body(b"content-length: 5009", body=b'{"usage":' + b"{" * 5000, hears=_FINE),
    "the word usage in a text": _body(
        b"content-length: 27", body=b'{"a":"\\"usage\\":{","usage":'[:27], hears=_FINE
    ),
}

_USAGES = {
    f"usage {json.dumps(usage)[:60]}": _usage(usage)
    for usage in (
        *(None, True, 5, "x", [], {}, [1, 2]),
        *({"prompt_tokens": -1}, {"prompt_tokens": "2"}, {"prompt_tokens": 1e300}, {"prompt_tokens": None}),
        *({"prompt_tokens": 2**70, "completion_tokens": 1}, {"prompt_tokens": 2**62, "completion_tokens": 2**62}),
        {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 10**9}},
        {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": []},
        {"input_tokens": {}, "output_tokens": []},
        {"prompt_tokens": 10**11, "completion_tokens": 10**11},
    )
}

SHAPES: dict[str, Shape] = {
    **_CONNECTIONS,
    **_NO_HTTP,
    **_HEADS,
    **_FRAMING,
    **_INTERIM,
    **_STATUSES,
    **_STREAMS,
    **_DOCUMENTS,
    **_USAGES,
}
