"""Seeded mutations of messages: of their bytes, their heads, their framing and their JSON.

Each takes the source of chance as its first argument and returns something new; one seed gives the same bytes.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

Headers = list[tuple[bytes, bytes]]

TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\x0b", b"\x7f", b"\xff", b"\x80", b"\xc3", b"\xe2\x82"),
    *(
        b"\r\n\r\n",
        b"\n\n",
        b"\r\n ",
        b"\n\t",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"ffffffffffffffffff\r\n",
        b"-1\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Host: other\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/9.9", b"HTTP/2.0", b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"OPTIONS "),
    *(b"/../", b"%2e%2e/", b"%00", b"%ff", b"%2f", b"//", b"?", b"#", b"*", b"http://x/", b";", b"\\"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"null",
        b"NaN",
        b"1e999",
        b"-1",
        b"9" * 40,
    ),
    *(b"data: ", b"data: [DONE]\n\n", b'data: {"error": 1}\n\n', b": comment\n\n", b"event: error\n", b"id: 1\n"),
    *(b'"usage":{', b'"choices":[]', b'"finish_reason":"stop"', b'"finish_reason":null'),
    *(
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 N\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
)
"""What means something to one parser or another."""


def one_of(chance: Random, *makers: Callable[[], Any]) -> Any:
    """What one of these makes."""
    return chance.choice(makers)()


def of_bytes(chance: Random, data: bytes) -> bytes:
    """Flip, cut, double, insert, overwrite and move, one to twelve times."""
    mutated = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6, 12))):
        at = chance.randrange(len(mutated) + 1)
        end = min(len(mutated), at + chance.choice((1, 1, 2, 5, 20, 100)))
        match chance.randrange(8):
            case 0:
                del mutated[at:end]
            case 1:
                mutated[at:at] = chance.choice(TOKENS)
            case 2 if mutated:
                mutated[at % len(mutated)] = chance.randrange(256)
            case 3:
                mutated[at:at] = mutated[at:end] * chance.choice((1, 2, 50))
            case 4:
                mutated[at:end] = chance.choice(TOKENS)
            case 5 if chance.random() < 0.3:
                del mutated[at:]
            case 6 if mutated:
                mutated[at % len(mutated)] ^= 1 << chance.randrange(8)
            case 7:
                start = chance.randrange(len(mutated) + 1)
                mutated[at:at] = mutated[start : start + 30]
    return bytes(mutated)


def split(chance: Random, data: bytes) -> list[bytes]:
    """The same bytes in up to six pieces, cut anywhere."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 0, 1, 2, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def chunked(chance: Random, body: bytes) -> bytes:
    """A body in chunks: sound in half of the cases, in all others with one fault."""
    size = chance.choice((1, 7, 100, 5000))
    wrong = chance.randrange(20)
    extension = chance.choice((b"", b";a=b", b' ; a="b"', b";" + b"x" * 3000)) if wrong == 0 else b""
    parts = []
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        digits = b"%x" % len(piece)
        match wrong:
            case 1:
                digits = b"%X" % len(piece)
            case 2:
                digits = b"0" * 30 + digits
            case 3 if chance.random() < 0.2:
                digits = chance.choice((b"0x5", b"-5", b"+5", b"", b" 5", b"5 ", b"f" * 17, b"zz", b"\xc2\xb2"))
            case 4 if chance.random() < 0.2:
                digits = b"%x" % (len(piece) + chance.choice((-1, 1, 100)))
        line_end = b"\n" if wrong == 5 else b"\r\n"
        parts.append(digits + extension + line_end + piece + (b"" if wrong == 6 else line_end))
    trailer = {
        7: b"x-trailer: 1\r\n",
        8: b"content-length: 3\r\n",
        9: b"bad trailer\r\n",
        10: b"x: " + b"y" * 3000 + b"\r\n",
    }
    end = b"" if wrong == 11 else b"0\r\n" + trailer.get(wrong, b"") + b"\r\n"
    return b"".join(parts) + end


# -- heads


def of_headers(chance: Random, headers: Headers) -> Headers:
    """One to three header lines doubled, dropped, moved, renamed, or given another value."""
    mutated = list(headers)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(mutated)) if mutated else 0
        name, value = mutated[at] if mutated else (b"x", b"y")
        match chance.randrange(9):
            case 0:
                mutated.insert(at, (name, value))
            case 1 if mutated:
                del mutated[at]
            case 2:
                chance.shuffle(mutated)
            case 3 if mutated:
                mutated[at] = (
                    chance.choice((name.upper(), name + b" ", b" " + name, name[:-1], b"", name + b"\0")),
                    value,
                )
            case 4 if mutated:
                odd = (
                    b"",
                    b"a\r\n b",
                    b"\tx\t",
                    b"\xff\xfe",
                    b"a\0b",
                    b"x" * 9000,
                    value + b"," + value,
                    b"\x0b" + value,
                )
                mutated[at] = (name, chance.choice(odd))
            case 5:
                mutated.insert(at, chance.choice(_FRAMING))
            case 6:
                mutated += [
                    (b"x-%d" % number, b"y" * chance.choice((1, 50))) for number in range(chance.choice((3, 300)))
                ]
            case 7:
                mutated.insert(at, chance.choice(_HOP))
            case _:
                mutated.insert(at, (b"x-odd", of_bytes(chance, b"a value").replace(b"\n", b"")))
    return mutated


_FRAMING = tuple(
    (name, value)
    for name, values in (
        (
            b"content-length",
            (b"0", b"5", b"-1", b"+5", b"5, 5", b"0x5", b"5 5", b"1e3", b"9" * 30, b"", b"\xd9\xa5"),
        ),
        (
            b"transfer-encoding",
            (b"chunked", b"xchunked", b"identity", b"gzip, chunked", b"chunked, chunked", b"chunked;a=b"),
        ),
        (b"transfer-encoding", (b"\x0bchunked", b"Chunked", b"", b"chunked\r\n ", b" chunked")),
        (b"Transfer-Encoding ", (b"chunked",)),
        (b"content_length", (b"5",)),
    )
    for value in values
)
_HOP = (
    (b"connection", b"close"),
    (b"connection", b"keep-alive, host, content-length, x-request-id"),
    (b"connection", b"upgrade"),
    (b"upgrade", b"websocket"),
    (b"upgrade", b"h2c"),
    (b"expect", b"100-continue"),
    (b"expect", b"200-ok"),
    (b"te", b"trailers"),
    (b"host", b"other"),
    (b"content-encoding", b"gzip"),
    (b"content-type", b"text/html"),
    (b"content-type", b"multipart/form-data; boundary=" + b"x" * 200),
    (b"location", b"http://10.9.8.7:6543/inside"),
    (b"x-request-id", b"\xe9" * 200),
)


def head(first: bytes, headers: Headers) -> bytes:
    return first + b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n"


# -- JSON


def of_json(chance: Random, value: Any) -> bytes:
    """A JSON text with one to three of its values replaced, and sometimes what only its text can have."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = _replaced(chance, value)
    text = json.dumps(value).encode()
    match chance.randrange(12):
        case 0 if text.startswith(b"{"):
            names = (b'"model"', b'"stream"', b'"n"', b'"prompt"', b'"usage"', b'"error"', b'"priority"')
            odd = (b"1", b"null", b"true", b'"x"', b"[]", b"NaN", b"-Infinity", b"1E400", b"-0", b'"\\ud800"')
            return b"{" + chance.choice(names) + b":" + chance.choice(odd) + b"," + text[1:]
        case 1:
            return text.replace(b'"', chance.choice((b'"\\ud83d', b'"\\u0000', b'"\xf0\x9f', b'"\\x')), 1)
        case 2:
            return chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * 3000, b"//\n", b"\0")) + text
        case 3:
            return text + chance.choice((b"{}", b",", b"\0", b" " * 3000, b"\n\n"))
        case 4:
            return text.decode().encode("utf-16")
    return text


def _replaced(chance: Random, value: Any) -> Any:
    """One value somewhere inside replaced, dropped or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        changed = {**value, name: _replaced(chance, value[name])}
        if chance.random() < 0.15:
            del changed[name]
        if chance.random() < 0.1:
            changed[chance.choice(_NAMES)] = _odd(chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        copies = chance.choice((0, 1, 1, 1, 2, 50))
        return [*value[:at], *([_replaced(chance, value[at])] * copies), *value[at + 1 :]]
    return _odd(chance)


_NAMES = (
    "model",
    "stream",
    "n",
    "user",
    "priority",
    "kv_transfer_params",
    "max_tokens",
    "cache_salt",
    "",
    "\ud800",
    "a" * 500,
)


def _odd(chance: Random) -> Any:
    """A value that is seldom expected."""
    odd = (
        *(
            None,
            True,
            False,
            0,
            -1,
            1,
            1.5,
            -0.0,
            2**31,
            2**63,
            2**64,
            -(2**70),
            1e308,
            float("nan"),
            float("inf"),
        ),
        *(
            "",
            "x",
            "\0",
            "\ud800",
            "\U0001f600",
            "x" * 5000,
            "data: [DONE]\n\n",
            '"usage":{',
            "tiny",
            "nope",
            "😀" * 300,
        ),
        *([], {}, [None], [[]], [1, "a"], {"a": {}}, [0] * 2000, {"type": "text"}, {"type": 5, "text": []}),
        *({"role": "user"}, {"role": None, "content": [{}]}, {"prompt_tokens": -1}, {"prompt_tokens": "x"}),
    )
    if chance.random() < 0.05:
        return _nested(chance.choice((100, 250, 500, 900)), chance.choice(([], {})))
    return chance.choice(odd)


def _nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value] if isinstance(value, list) else {"a": value}
    return value
