"""A prompt as a chain of hashes: enough to replay yesterday's traffic with its prefixes, and no word of it.

The prompt's key is cut into pieces at positions that depend only on the text before them, so that two prompts with
a common beginning have the same pieces up to where they part. Each piece is one record of eight bytes, big-endian:

    upper 6 bytes of xxh3_64(piece, seed = the whole hash of the piece before)        length of the piece (2 bytes)

Equal leading hashes therefore mean equal beginnings. A piece ends

- behind an element of a JSON list of objects (`},{"`), which is where one message of a conversation ends and the
  next begins. These bytes cannot stand inside a JSON string, whose quotes are escaped;
- otherwise at fixed places in the prompt: each 256 bytes at its start, later after a 16th of what lies before
  them. What two prompts share is known to 6%, and a prompt of 48 kB has some 60 records;
- at the end of the prompt, so that a conversation's next prompt, which goes on from there, is known by it.

The chain begins with a secret of this process: no one can find a prompt by guessing it.
"""

import secrets
import sys
from array import array
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterator

import xxhash

from router.edge.api.parsed_request import ParsedRequest

MAX_PIECES = 512
"""Pieces of one prompt, the first ones; enough for 9 MB of text without messages."""
RECORD_BYTES = 8
_BOUNDARY = b'},{"'
_LEAST_BYTES = 256
"""Of a piece that no message ends; 64 token ids of 4 bytes, four KV blocks of vLLM."""
_MOST_BYTES = 32_768
_HASH_BITS = (1 << 64) - (1 << 16)
_SECRET = secrets.randbits(63)


def fingerprint(ask: ParsedRequest, line: str) -> str:
    """The records of the prompt's pieces in base64, at most `MAX_PIECES`; empty for an empty prompt."""
    prompt, digest, hash_bits = ask.prompt, xxhash.xxh3_64_intdigest, _HASH_BITS
    view, size = memoryview(prompt), len(prompt)
    ends = list(_PLACES[: bisect_left(_PLACES, size)])
    if ask.unit_width == 1:
        messages = _ends_of_messages(prompt)
        if messages:
            ends = sorted({*ends, *messages})
    ends.append(size)
    chain = digest(line.encode(), _SECRET)
    records = array("Q")
    at = 0
    for end in ends[:MAX_PIECES] if size else ():
        chain = digest(view[at:end], chain)
        records.append(chain & hash_bits | (end - at))
        at = end
    if sys.byteorder == "little":
        records.byteswap()
    return b64encode(records.tobytes()).decode()


def _ends_of_messages(prompt: bytes) -> list[int]:
    """Where elements of lists end before the prompt's end, the first `MAX_PIECES` of them."""
    # Words have no braces: to look for one byte first passes over them at the speed of memory.
    found = prompt.find(_BOUNDARY, prompt.find(b"}"))
    ends: list[int] = []
    while found > 0 and len(ends) < MAX_PIECES:
        ends.append(found + 1)
        found = prompt.find(_BOUNDARY, found + 1)
    return ends


def _places() -> Iterator[int]:
    """Where a text without messages is cut."""
    at = 0
    for _ in range(MAX_PIECES):
        at += min(max(_LEAST_BYTES, at >> 11 << 7), _MOST_BYTES)
        yield at


_PLACES = tuple(_places())
