"""Compressed bodies without a socket: zstd, where it can be had, and how much is decoded at most."""

import gzip
import zlib

import pytest

from router.edge.content_coding import CODINGS, decoded
from router.edge.errors import BadRequest, BodyTooLarge, UnsupportedCoding

TEXT = b"x" * 5000


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("wanted", [1, 4999, 5000, 5001])
def test_no_more_is_decoded_than_is_wanted(name, wanted):
    body = gzip.compress(TEXT) if name == "gzip" else zlib.compress(TEXT)
    assert CODINGS[name](body, wanted) == TEXT[:wanted]


async def test_zstd_is_decoded_within_the_limit():
    zstandard = pytest.importorskip("zstandard")
    assert await decoded(zstandard.compress(TEXT), b"zstd", 5000) == TEXT
    two_frames = zstandard.compress(TEXT[:10]) + zstandard.compress(TEXT[10:])
    assert await decoded(two_frames, b"zstd", 5000) == TEXT
    with pytest.raises(BodyTooLarge):
        await decoded(zstandard.compress(b" " * 50_000_000), b"zstd", 5000)
    with pytest.raises(BadRequest, match="zstd"):
        await decoded(b"no such thing", b"zstd", 5000)


@pytest.mark.parametrize("name", [b"br", b"compress", b"zstd, lz4"])
async def test_what_is_not_understood_is_named_with_what_is(name):
    with pytest.raises(UnsupportedCoding, match="gzip") as raised:
        await decoded(b"x", name, 10)
    assert name.rpartition(b" ")[2].decode() in raised.value.message
    assert raised.value.headers()[0][0] == b"accept-encoding"


@pytest.mark.parametrize("coding", [b"", b"identity", b" Identity , identity"])
async def test_no_coding_changes_nothing(coding):
    assert await decoded(b"{", coding, 1) == b"{"


async def test_an_empty_body_has_nothing_to_decode():
    assert await decoded(b"", b"gzip", 10) == b""
