"""Compressed bodies without a socket: zstd, where it can be had, and how much is decoded at most."""

import gzip
import random
import zlib

import pytest

from router.edge.content_coding import CODINGS, decoded
from router.edge.errors import BadRequest, BodyTooLarge, UnsupportedCoding
from router.edge.pieces import PIECE_BYTES, Pieces, joined

TEXT = b"x" * 5000


WAYS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "bare deflate": lambda text: zlib.compress(text, wbits=-zlib.MAX_WBITS),
    "gzip of two members": lambda text: gzip.compress(text[:70_000]) + gzip.compress(text[70_000:]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 65_536, 65_537, 3_000_000])
@pytest.mark.parametrize("cut", [1, 100, 10**7])
async def test_a_body_is_decoded_however_it_is_cut_and_large_ones_stay_in_pieces(way, size, cut):
    text = random.Random(size).randbytes(1000) * (size // 1000 + 1)
    text = text[:size]
    packed = WAYS[way](text)
    coding = b"deflate" if "deflate" in way else b"gzip"
    body = Pieces([packed[at : at + cut] for at in range(0, len(packed), cut)])
    plain = await decoded(body, coding, size, joined_bytes=100_000)
    assert joined(plain) == text
    if size > 100_000:
        assert isinstance(plain, Pieces)
        assert max(map(len, plain)) <= 2 * PIECE_BYTES
    with pytest.raises(BodyTooLarge, match=f"more than {size - 1} bytes"):
        await decoded(body, coding, size - 1)


@pytest.mark.parametrize("size", [50, 100_000])
async def test_a_body_that_is_cut_off_or_goes_on_behind_its_end_is_refused(size):
    packed = zlib.compress(random.Random(1).randbytes(size))
    with pytest.raises(BadRequest, match="cut off"):
        await decoded(packed[:-1], b"deflate", 10**6)
    with pytest.raises(BadRequest, match="bytes follow its end"):
        await decoded(packed + b"x", b"deflate", 10**6)
    with pytest.raises(BadRequest, match="not valid gzip"):
        await decoded(packed, b"gzip", 10**6)


def test_a_decoder_reads_no_further_than_what_is_asked_of_it_needs():
    """A megabyte that holds a gigabyte costs what is taken of it."""
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    fed = []

    def pieces():
        for at in range(0, len(packed), 1024):
            fed.append(at)
            yield packed[at : at + 1024]

    made = CODINGS["gzip"](pieces())
    assert next(made) == bytes(PIECE_BYTES)
    assert len(fed) < 3
    del made


async def test_what_lies_between_two_codings_is_bounded_too():
    empty = gzip.compress(b"") * 200_000
    with pytest.raises(BodyTooLarge, match="decoded from gzip"):
        await decoded(gzip.compress(empty), b"gzip, gzip", 1_000_000)
    assert joined(await decoded(gzip.compress(gzip.compress(TEXT)), b"gzip, gzip", 5000)) == TEXT


async def test_zstd_is_decoded_within_the_limit():
    zstandard = pytest.importorskip("zstandard")
    assert joined(await decoded(zstandard.compress(TEXT), b"zstd", 5000)) == TEXT
    two_frames = zstandard.compress(TEXT[:10]) + zstandard.compress(TEXT[10:])
    assert joined(await decoded(two_frames, b"zstd", 5000)) == TEXT
    large = random.Random(1).randbytes(3_000_000)
    assert joined(await decoded(zstandard.compress(large), b"zstd", 3_000_000)) == large
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
