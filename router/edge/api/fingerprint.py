"""A prompt as a chain of hashes: enough to replay yesterday's traffic with its prefixes, and no word of it.

The prompt's key is cut into pieces at positions that depend only on the text before them, so that two prompts with
a common beginning have the same pieces up to where they part. Each piece is one record of eight bytes, big-endian:

    upper 6 bytes of xxh3_64(piece, seed = the whole hash of the piece before)        length of the piece (2 bytes)

Equal leading hashes therefore mean equal beginnings. A piece ends

- behind an element of a JSON list of objects (`},{"`), which is where one message of a conversation ends and the
  next begins. These bytes cannot stand inside a JSON string, whose quotes are escaped;
- otherwise after 128 bytes at the start of the prompt, later after a 32nd of what lies before it: what two prompts
  share is known to 3%, and a prompt of 48 kB has some 130 records;
- at the end of the prompt, so that a conversation's next prompt, which goes on from there, is known by it.

The chain begins with a secret of this process: no one can find a prompt by guessing it.
"""

import secrets
import sys
from array import array
from base64 import b64encode

import xxhash

from router.edge.api.parsed_request import ParsedRequest

MAX_PIECES = 512
"""Pieces of one prompt, the first ones; enough for 9 MB of text without messages."""
RECORD_BYTES = 8
_BOUNDARY = b'},{"'
_LEAST_BYTES = 128
"""Of a piece that no message ends; 32 token ids of 4 bytes, two KV blocks of vLLM."""
_MOST_BYTES = 32_768
_HASH_BITS = (1 << 64) - (1 << 16)
_SECRET = secrets.randbits(63)


def fingerprint(ask: ParsedRequest, line: str) -> str:
    """The records of the prompt's pieces in base64, at most `MAX_PIECES`; empty for an empty prompt."""
    prompt, digest = ask.prompt, xxhash.xxh3_64_intdigest
    view, size = memoryview(prompt), len(prompt)
    chain = digest(line.encode(), _SECRET)
    boundary = _boundary(prompt, 0) if ask.unit_width == 1 else size
    records = array("Q")
    at = 0
    while at < size and len(records) < MAX_PIECES:
        end = at + (_LEAST_BYTES if at < 8192 else min(at >> 12 << 7, _MOST_BYTES))
        if end >= boundary:
            end = boundary
            boundary = _boundary(prompt, end) if end < size else size
        chain = digest(view[at:end], chain)
        records.append(chain & _HASH_BITS | (end - at))
        at = end
    if sys.byteorder == "little":
        records.byteswap()
    return b64encode(records.tobytes()).decode()


def _boundary(prompt: bytes, start: int) -> int:
    """Where the next element of a list ends behind `start`, or the prompt."""
    found = prompt.find(_BOUNDARY, start)
    return found + 1 if found >= 0 else len(prompt)
