"""Request bodies that come compressed (RFC 9110, 8.4): decoded within the limit, or refused by name.

A few kilobytes may hold gigabytes, so decoding stops one byte beyond the limit, and all but tiny bodies are
decoded in a thread. zstd needs Python 3.14 or the package `zstandard`; a window beyond 8 MiB is refused, as RFC
9659 asks.
"""

import asyncio
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from router.edge.errors import BadRequest, BodyTooLarge, UnsupportedCoding

_INLINE_BYTES = 1024
"""Compressed bodies up to this size are decoded at once: they hold a megabyte at most."""
_MOST_CODINGS = 2
_WINDOW_LOG = 23
_GZIP = zlib.MAX_WBITS | 16

Decode = Callable[[bytes, int], bytes]
"""Takes a body and how many bytes are wanted at most. Raises ValueError."""


async def decoded(body: bytes, content_encoding: bytes, limit: int) -> bytes:
    """The body without its codings. Raises UnsupportedCoding, BodyTooLarge, or BadRequest for what is corrupt."""
    names = [name for part in content_encoding.decode("latin-1").split(",") if (name := part.strip().lower())]
    codings = [name for name in names if name != "identity"]
    for name in codings:
        if name not in CODINGS:
            raise _unsupported(f"Content-Encoding: {name[:100]} is not supported")
    if len(codings) > _MOST_CODINGS:
        raise _unsupported(f"More than {_MOST_CODINGS} codings of one body are not supported")
    for name in reversed(codings):
        if body:
            body = await _decoded(body, name, limit)
    return body


async def _decoded(body: bytes, name: str, limit: int) -> bytes:
    decode = CODINGS[name]
    try:
        if len(body) <= _INLINE_BYTES:
            body = decode(body, limit + 1)
        else:
            body = await asyncio.to_thread(decode, body, limit + 1)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid {name}: {error}.", param="body") from None
    if len(body) > limit:
        raise BodyTooLarge(f"The request body, decoded from {name}, has more than {limit} bytes, the limit.")
    return body


def _unsupported(what: str) -> UnsupportedCoding:
    error = UnsupportedCoding(f"{what}; send the body plain, or as {', '.join(sorted(CODINGS))}.")
    error.accept = ", ".join(sorted(CODINGS))
    return error


def _gunzip(body: bytes, wanted: int) -> bytes:
    """All members of a gzip file (RFC 1952)."""
    pieces: list[bytes] = []
    while body and wanted > 0:
        piece, body = _inflate(body, wanted, _GZIP)
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def _deflated(body: bytes, wanted: int) -> bytes:
    """Zlib's format (RFC 1950), as the name means, or bare deflate, as some clients send it."""
    has_header = len(body) > 1 and body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    piece, rest = _inflate(body, wanted, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
    if rest and len(piece) < wanted:
        raise ValueError("bytes follow its end")
    return piece


def _inflate(body: bytes, wanted: int, window: int) -> tuple[bytes, bytes]:
    """One stream, and what follows it. An incomplete result is as long as wanted."""
    stream = zlib.decompressobj(window)
    try:
        piece = stream.decompress(body, wanted)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof and len(piece) < wanted:
        raise ValueError("it is cut off")
    return piece, stream.unused_data


def _zstd() -> Decode | None:
    """A decoder for zstd, if there is one here."""
    for name, decode in (("compression.zstd", _unzstd), ("zstandard", _unzstandard)):
        try:
            return partial(decode, import_module(name))
        except ImportError:
            continue
    return None


def _unzstd(zstd: Any, body: bytes, wanted: int) -> bytes:
    """With Python's own module."""
    pieces: list[bytes] = []
    while body and wanted > 0:
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        try:
            pieces.append(stream.decompress(body, wanted))
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from None
        wanted -= len(pieces[-1])
        if not stream.eof and wanted > 0:
            raise ValueError("it is cut off")
        body = stream.unused_data
    return b"".join(pieces)


def _unzstandard(zstandard: Any, body: bytes, wanted: int) -> bytes:
    """With the package `zstandard`."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as reader:
            piece: bytes = reader.read(wanted)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    return piece


CODINGS: dict[str, Decode] = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflated}
if (_decode := _zstd()) is not None:
    CODINGS["zstd"] = _decode
