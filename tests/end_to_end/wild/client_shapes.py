"""Clients that misbehave, one shape each: the bytes as they are written, and the statuses that may answer them.

Every shape is answered with one of its statuses, in the order of its requests, or, where `NOTHING` is among them,
with the end of the connection. Where 200 is not among them, nothing of it may reach a worker.
"""

import gzip
import json
from dataclasses import dataclass

from tests.end_to_end.wild.sound import MODEL

NOTHING = 0
TEXT = "/v1/completions"
_BODY = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2}).encode()


@dataclass(frozen=True, slots=True)
class Shape:
    """`statuses`: of the first answer; `leaves`: reset the connection instead of reading one."""

    pieces: tuple[bytes, ...]
    statuses: frozenset[int]
    leaves: bool = False


def _sends(*pieces: bytes, may: tuple[int, ...], leaves: bool = False) -> Shape:
    return Shape(pieces, frozenset(may), leaves)


def _post(
    *headers: bytes,
    path: str = TEXT,
    body: bytes = _BODY,
    length: bool = True,
    host: bytes = b"Host: gateway",
    version: bytes = b"HTTP/1.1",
    method: bytes = b"POST",
) -> bytes:
    lines = [method + b" " + path.encode("latin-1") + b" " + version, *([host] if host else []), *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _json(fields: object, **more: object) -> bytes:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return _post(b"Content-Type: application/json", body=body, **more)


_GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = b"Transfer-Encoding: chunked"
_IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
_HIDDEN = b"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
"""A request that must never be taken for one."""
_BAD = (400,)

_NO_HTTP = {
    f"no HTTP: {name}": _sends(data, may=(400, 404, 501, NOTHING))
    for name, data in {
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "SMTP": b"EHLO example.org\r\n",
        "Redis": b"*1\r\n$4\r\nPING\r\n",
        "PROXY v1": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + _GET + b"\r\n",
        "PROXY v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\x7f" * 12 + _GET + b"\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        "RTSP": b"DESCRIBE rtsp://x/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        "SIP": b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\n",
        "zeros": b"\0" * 500,
        "line breaks": b"\r\n" * 500 + b"x\r\n\r\n",
        "a poem": b"Shall I compare thee\r\n\r\n",
    }.items()
}

_LINES = {
    "no version": _sends(b"GET /health\r\n\r\n", may=(400, 501, 505)),
    "HTTP/0.9": _sends(b"GET /health\n", b"\n", may=(400, NOTHING)),
    "HTTP/2.0": _sends(_post(version=b"HTTP/2.0"), may=(400, 501, 505)),
    "HTTP/9.9": _sends(_post(version=b"HTTP/9.9"), may=(400, 505)),
    "HTTP/1.1 in small letters": _sends(_post(version=b"http/1.1"), may=_BAD),
    "two spaces": _sends(b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", may=(200, 400)),
    "tabs": _sends(b"GET\t/health\tHTTP/1.1\r\nHost: x\r\n\r\n", may=_BAD),
    "a space in the path": _sends(b"GET /he alth HTTP/1.1\r\nHost: x\r\n\r\n", may=_BAD),
    "a small method": _sends(_post(method=b"post"), may=_BAD),
    "an unknown method": _sends(_post(method=b"BREW"), may=(400, 405)),
    "TRACE": _sends(_post(method=b"TRACE", length=False, body=b""), may=(400, 405)),
    "CONNECT": _sends(b"CONNECT 10.9.8.7:22 HTTP/1.1\r\nHost: x\r\n\r\n", may=(400, 404, 405, 501)),
    "an asterisk": _sends(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", may=(200, 204, 400, 404, 405)),
    "PUT": _sends(_post(method=b"PUT"), may=(405,)),
    "PATCH": _sends(_post(method=b"PATCH"), may=(405,)),
    "GET of what is posted": _sends(b"GET /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", may=(405,)),
    "bare line feeds": _sends(_post().replace(b"\r\n", b"\n"), may=(200, 400)),
    "bare carriage returns": _sends(_GET.replace(b"\r\n", b"\r") + b"\r\r", may=(400, NOTHING)),
    "line breaks before it": _sends(b"\r\n\r\n" + _post(), may=(200, 400)),
    "one byte at a time": _sends(*(bytes((byte,)) for byte in _post()), may=(200,)),
}

_HEADERS = {
    "a folded header": _sends(_post(b"X-A: b\r\n c"), may=(200, 400)),
    "a space before the colon": _sends(_post(b"X-A : b"), may=_BAD),
    "Transfer-Encoding with a space": _sends(_post(b"Transfer-Encoding : chunked"), may=_BAD),
    "no colon": _sends(_post(b"X-A"), may=_BAD),
    "no name": _sends(_post(b": b"), may=_BAD),
    "a name with a space": _sends(_post(b"X A: b"), may=_BAD),
    "NUL in a value": _sends(_post(b"X-A: b\0c"), may=_BAD),
    "CR in a value": _sends(_post(b"X-A: b\rX-B: c"), may=_BAD),
    "a value beyond ASCII": _sends(_post(b"X-A: \xff\xfe"), may=(200, 400)),
    "a content type beyond ASCII": _sends(_post(b"Content-Type: application/json; \xe9\xff"), may=(200, 400)),
    "a user agent of control characters": _sends(_post(b"User-Agent: a\x01\x1fb"), may=(200, 400)),
    "1,000 headers": _sends(_post(*(b"X-%d: y" % number for number in range(1000))), may=(200, 431)),
    "a header of 200 kB": _sends(_post(b"X-A: " + b"a" * 200_000), may=(431,)),
    "a path of 200 kB": _sends(_post(path="/" + "a" * 200_000), may=(431, 414)),
    "headers without end": _sends(_GET, *([b"X-A: " + b"a" * 8000 + b"\r\n"] * 20), may=(431,)),
    "Expect of what there is not": _sends(_post(b"Expect: 200-ok"), may=(200, 400, 417)),
    "a request id of control characters": _sends(_post(b"X-Request-Id: a\x7fb"), may=(200, 400)),
    "two keys": _sends(_post(b"Authorization: Bearer a", b"Authorization: Bearer b"), may=(200, 400, 401)),
    "hop headers": _sends(_post(b"Connection: close, content-type, host", b"TE: trailers"), may=(200,)),
    "WebSocket": _sends(_GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", may=(501, 426, 400)),
    "HTTP/2 offered": _sends(_post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), may=(200,)),
    "an unknown upgrade": _sends(_post(b"Connection: Upgrade", b"Upgrade: x/1"), may=(200,)),
}

_FRAMING = {
    "length and chunks": _sends(_post(_CHUNKED, body=_IN_CHUNKS) + _HIDDEN, may=_BAD),
    "chunks and a length": _sends(_post(b"Content-Length: 5", _CHUNKED, body=_IN_CHUNKS, length=False), may=_BAD),
    "two lengths": _sends(_post(b"Content-Length: 5") + _HIDDEN, may=_BAD),
    "the same length twice": _sends(_post(b"Content-Length: %d" % len(_BODY)), may=(200, 400)),
    "an unknown coding": _sends(
        _post(b"Transfer-Encoding: xchunked", body=_IN_CHUNKS, length=False), may=(400, 501)
    ),
    "a vertical tab before the coding": _sends(
        _post(b"Transfer-Encoding: \x0bchunked", body=_IN_CHUNKS, length=False), may=(400, 501)
    ),
    "gzip, then chunks": _sends(
        _post(b"Transfer-Encoding: gzip, chunked", body=_IN_CHUNKS, length=False), may=(400, 501, 415)
    ),
    "chunks, then identity": _sends(
        _post(b"Transfer-Encoding: chunked, identity", body=_IN_CHUNKS, length=False), may=(400, 501)
    ),
    "codings in two lines": _sends(
        _post(_CHUNKED, b"Transfer-Encoding: identity", body=_IN_CHUNKS, length=False), may=(400, 501)
    ),
    "a length with a sign": _sends(_post(b"Content-Length: +44", length=False), may=_BAD),
    "a list of lengths": _sends(_post(b"Content-Length: 44, 44", length=False), may=_BAD),
    "a negative length": _sends(_post(b"Content-Length: -1", length=False), may=_BAD),
    "a length of 30 digits": _sends(_post(b"Content-Length: " + b"9" * 30, length=False), may=(400, 413)),
    "a length in hexadecimal": _sends(_post(b"Content-Length: 0x2c", length=False), may=_BAD),
    "no length": _sends(_post(length=False) + b"\r\n", may=_BAD),
    "a chunk size that is none": _sends(_post(_CHUNKED, body=b"zz\r\n" + _BODY, length=False), may=_BAD),
    "a negative chunk size": _sends(_post(_CHUNKED, body=b"-1\r\n" + _BODY, length=False), may=_BAD),
    "a chunk size of 20 digits": _sends(_post(_CHUNKED, body=b"f" * 20 + b"\r\n", length=False), may=_BAD),
    "a chunk size with 0x": _sends(_post(_CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n", length=False), may=_BAD),
    "a chunk without its end": _sends(_post(_CHUNKED, body=b"5\r\nhello0\r\n\r\n", length=False), may=_BAD),
    "a chunk that ends with LF": _sends(
        _post(_CHUNKED, body=b"%x\n%b\n0\n\n" % (len(_BODY), _BODY), length=False), may=(200, 400)
    ),
    "chunk extensions": _sends(
        _post(_CHUNKED, body=b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(_BODY), _BODY), length=False), may=(200, 400)
    ),
    "trailers": _sends(
        _post(_CHUNKED, body=_IN_CHUNKS[:-2] + b"Content-Length: 5\r\nHost: b\r\n\r\n", length=False),
        may=(200, 400),
    ),
    "trailers without end": _sends(
        _post(_CHUNKED, body=_IN_CHUNKS[:-2] + b"X: y\r\n" * 50_000, length=False), may=(400, 431)
    ),
    "one byte in each chunk": _sends(
        _post(_CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in _BODY) + b"0\r\n\r\n", length=False),
        may=(200,),
    ),
    "another request in the body": _sends(_json(_HIDDEN), may=_BAD),
    "another request behind a body of no length": _sends(
        _GET + b"Content-Length: 0\r\n\r\n" + _HIDDEN, may=(200,)
    ),
    "a body with GET": _sends(_GET + b"Content-Length: %d\r\n\r\n" % len(_HIDDEN) + _HIDDEN, may=(200, 400)),
}

_GOOD = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}
_BODIES = {
    **{
        f"a body of {name}": _sends(_json(body), may=_BAD)
        for name, body in {
            "nothing": b"",
            "half an object": b'{"model": "tiny"',
            "two objects": _BODY + _BODY,
            "NaN": b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
            "Infinity": b'{"model": "tiny", "prompt": "x", "n": Infinity}',
            "UTF-16": _BODY.decode().encode("utf-16"),
            "Latin-1": b'{"model": "tiny", "prompt": "\xe9"}',
            "a lone surrogate in bytes": b'{"model": "tiny", "prompt": "\xed\xa0\x80"}',
            "comments": b"// c\n" + _BODY,
            "single quotes": b"{'model': 'tiny'}",
            "a list": b"[" + _BODY + b"]",
            "brackets, 100,000 deep": b"[" * 100_000,
            "objects, 100,000 deep": b'{"a":' * 100_000,
        }.items()
    },
    "a byte order mark": _sends(_json(b"\xef\xbb\xbf" + _BODY), may=(200, 400)),
    "a lone surrogate, escaped": _sends(_json(b'{"model": "tiny", "prompt": "\\ud800"}'), may=(200, 400)),
    "keys twice": _sends(_json(b'{"model": "nope", "model": "tiny", "prompt": "x"}'), may=(200, 400, 404)),
    "a number of 400 digits": _sends(
        _json(b'{"model": "tiny", "prompt": "x", "n": ' + b"9" * 400 + b"}"), may=(200, 400)
    ),
    "a model that is a number": _sends(_json({**_GOOD, "model": 5}), may=_BAD),
    "a model that is a list": _sends(_json({**_GOOD, "model": [MODEL]}), may=_BAD),
    "an unknown model": _sends(_json({**_GOOD, "model": "../../etc/passwd"}), may=(404,)),
    "a model of NUL": _sends(_json({**_GOOD, "model": "\0"}), may=(404, 400)),
    "a model of 5 MB": _sends(_json({**_GOOD, "model": "m" * 5_000_000}), may=(404, 400)),
    "gzip that is none": _sends(_post(b"Content-Encoding: gzip", body=b"no gzip"), may=(400, 415)),
    "gzip": _sends(_post(b"Content-Encoding: gzip", body=gzip.compress(_BODY)), may=(200, 400, 415)),
    "an unknown encoding": _sends(_post(b"Content-Encoding: lzw"), may=(200, 400, 415)),
    "a form": _sends(_post(b"Content-Type: application/x-www-form-urlencoded", body=b"a=b"), may=(400, 415)),
    "a multipart form without a boundary": _sends(
        _post(b"Content-Type: multipart/form-data", path="/v1/audio/transcriptions", body=b"x"), may=_BAD
    ),
    "a multipart form without an end": _sends(
        _post(
            b"Content-Type: multipart/form-data; boundary=x",
            path="/v1/audio/transcriptions",
            body=b"--x\r\n" * 5000,
        ),
        may=_BAD,
    ),
}

_PATHS = {
    f"the path {path}": _sends(_json(_GOOD, path=path), may=(404, 400, 405))
    for path in (
        *(
            "/v1/../pause",
            "/v1/%2e%2e/pause",
            "/v1/..%2fpause",
            "/v1/%2e%2e%2fpause",
            "/v1/..;/pause",
            "/v1/.%00./pause",
        ),
        *(
            "//v1/completions",
            "/v1//completions",
            "/V1/COMPLETIONS",
            "/v1/completions%20",
            "/v1/completions%0a",
            "/v1",
        ),
        *(
            "/v1/completions/..",
            "/v1/completions/x",
            "/v1%2fcompletions",
            "/v1\\completions",
            "/invocations",
            "/pause/",
        ),
        *(
            "/v1/responses/../../pause",
            "/v1/responses/%2e%2e",
            "/v1/responses/" + "r" * 300,
            "/v1/load_lora_adapter/",
        ),
        *(
            "/admin/workers",
            "/admin/../metrics",
            "/.git/config",
            "/v1/completions\xff",
            "/%",
            "/%zz",
            "/\xc0\xaf..",
        ),
    )
}
_TARGETS = {
    "a whole address": _sends(_json(_GOOD, path="http://10.9.8.7/v1/completions"), may=(200, 400, 404)),
    "an address that is none": _sends(_json(_GOOD, path="http://[::1"), may=_BAD),
    "an address with another scheme": _sends(_json(_GOOD, path="file:///etc/passwd"), may=(400, 404)),
    "no path": _sends(_json(_GOOD, path=""), may=_BAD),
    "a fragment": _sends(_json(_GOOD, path="/v1/completions#x"), may=(200, 400)),
    "a query": _sends(_json(_GOOD, path="/v1/completions?a=b&c=%00&d=%0d%0aX:%20y"), may=(200, 400)),
    "a query beyond ASCII": _sends(_json(_GOOD, path="/v1/completions?a=\xff"), may=(200, 400)),
}

_LEAVING = {
    "connects and leaves": _sends(b"", may=(NOTHING,), leaves=True),
    "leaves in the middle of the head": _sends(_post()[:20], may=(NOTHING,), leaves=True),
    "leaves in the middle of the body": _sends(_post()[:-5], may=(NOTHING,), leaves=True),
    "leaves at once": _sends(_post(), may=(NOTHING,), leaves=True),
    "pipelines and leaves": _sends(_post() * 20, may=(NOTHING,), leaves=True),
}

SHAPES: dict[str, Shape] = {
    **_NO_HTTP,
    **_LINES,
    **_HEADERS,
    **_FRAMING,
    **_BODIES,
    **_PATHS,
    **_TARGETS,
    **_LEAVING,
}
