"""Request bodies that come compressed (RFC 9110, 8.4): decoded within the limit, or refused by name.

A few kilobytes may hold gigabytes, so decoding goes piece by piece and stops behind the limit, after each coding;
and all but tiny bodies are decoded in a thread, which holds the interpreter's lock for no longer than a piece
takes. zstd needs Python 3.14 or the package `zstandard`; a window beyond 8 MiB is refused, as RFC 9659 asks.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from router.edge.errors import BadRequest, BodyTooLarge, UnsupportedCoding
from router.edge.pieces import PIECE_BYTES, Body, PieceCollector, part

_INLINE_BYTES = 1024
"""Compressed bodies up to this size are decoded at once: they hold a megabyte at most."""
_MOST_CODINGS = 2
_WINDOW_LOG = 23
_GZIP = zlib.MAX_WBITS | 16
_FED_BYTES = 16 << 10
"""A decoder gets so much at once: what it has not used after a piece is copied."""

Decode = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Takes a body in pieces, and makes pieces of at most `PIECE_BYTES`. Raises ValueError."""


async def decoded(body: Body, content_encoding: bytes, limit: int, *, joined_bytes: int = 0) -> Body:
    """The body without its codings, in one object up to `joined_bytes`, else in pieces.

    Raises UnsupportedCoding, BodyTooLarge, or BadRequest for what is corrupt.
    """
    names = [name for word in content_encoding.decode("latin-1").split(",") if (name := word.strip().lower())]
    codings = [name for name in names if name != "identity"]
    for name in codings:
        if name not in CODINGS:
            raise _unsupported(f"Content-Encoding: {name[:100]} is not supported")
    if len(codings) > _MOST_CODINGS:
        raise _unsupported(f"More than {_MOST_CODINGS} codings of one body are not supported")
    if not codings or not body:
        return body
    pieces = _fed(body)
    for name in reversed(codings):
        pieces = _within(pieces, name, limit)
    if len(body) <= _INLINE_BYTES:
        return _collected(pieces, joined_bytes)
    return await asyncio.to_thread(_collected, pieces, joined_bytes)


def _fed(body: Body) -> Iterator[bytes]:
    for start in range(0, len(body), _FED_BYTES):
        yield b"".join(part(body, start, min(start + _FED_BYTES, len(body))))


def _within(pieces: Iterable[bytes], name: str, limit: int) -> Iterator[bytes]:
    """What a coding makes of these pieces, up to the limit."""
    size = 0
    try:
        for piece in CODINGS[name](pieces):
            size += len(piece)
            if size > limit:
                message = f"The request body, decoded from {name}, has more than {limit} bytes, the limit."
                raise BodyTooLarge(message)
            yield piece
    except ValueError as error:
        raise BadRequest(f"The request body is not valid {name}: {error}.", param="body") from None


def _collected(pieces: Iterable[bytes], joined_bytes: int) -> Body:
    collected = PieceCollector()
    for piece in pieces:
        collected.add(piece)
    return collected.finished(joined_bytes)


def _unsupported(what: str) -> UnsupportedCoding:
    error = UnsupportedCoding(f"{what}; send the body plain, or as {', '.join(sorted(CODINGS))}.")
    error.accept = ", ".join(sorted(CODINGS))
    return error


def _gunzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952)."""
    return _inflated(pieces, lambda _: _GZIP, members=True)


def _deflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Zlib's format (RFC 1950), as the name means, or bare deflate, as some clients send it."""

    def window(start: bytes) -> int:
        head = start[:2]
        has_header = len(head) == 2 and head[0] & 15 == zlib.DEFLATED and int.from_bytes(head, "big") % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS

    return _inflated(pieces, window, members=False)


def _inflated(pieces: Iterable[bytes], window: Callable[[bytes], int], *, members: bool) -> Iterator[bytes]:
    """One stream, or several in a row; `window` tells by the first bytes of one how it is to be read."""
    stream: Any = None
    ended = False
    for piece in pieces:
        rest = piece
        while rest:
            if stream is None:
                if ended and not members:
                    raise ValueError("bytes follow its end")
                stream = zlib.decompressobj(window(rest))
            full = True
            while full and not stream.eof:
                try:
                    made = stream.decompress(rest, PIECE_BYTES)
                except zlib.error as error:
                    raise ValueError(str(error)) from None
                rest = stream.unconsumed_tail
                full = len(made) == PIECE_BYTES or bool(rest)
                if made:
                    yield made
            if stream.eof:
                rest, stream, ended = stream.unused_data, None, True
    if stream is not None:
        raise ValueError("it is cut off")


def _zstd() -> Decode | None:
    """A decoder for zstd, if there is one here."""
    for name, decode in (("compression.zstd", _unzstd), ("zstandard", _unzstandard)):
        try:
            return partial(decode, import_module(name))
        except ImportError:
            continue
    return None


def _unzstd(zstd: Any, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """With Python's own module."""
    stream: Any = None
    for piece in pieces:
        rest = piece
        while rest:
            if stream is None:
                stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
            full = True
            while full and not stream.eof:
                try:
                    made = stream.decompress(rest, PIECE_BYTES)
                except zstd.ZstdError as error:
                    raise ValueError(str(error)) from None
                rest = b""  # it keeps what it has not used
                full = not stream.needs_input
                if made:
                    yield made
            if stream.eof:
                rest, stream = stream.unused_data, None
    if stream is not None:
        raise ValueError("it is cut off")


def _unzstandard(zstandard: Any, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """With the package `zstandard`."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        with decompressor.stream_reader(_Source(pieces), read_across_frames=True) as reader:
            while made := reader.read(PIECE_BYTES):
                yield made
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


class _Source:
    """Pieces as a file that is read; each is smaller than what `zstandard` asks for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read(self, _size: int) -> bytes:
        return next(self._pieces, b"")


CODINGS: dict[str, Decode] = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflated}
if (_decode := _zstd()) is not None:
    CODINGS["zstd"] = _decode
