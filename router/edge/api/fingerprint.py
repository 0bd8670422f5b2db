"""A prompt as a chain of hashes: enough to replay yesterday's traffic with its prefixes, and no word of it.

The prompt's key is cut into pieces at positions that depend only on the text before them, so that two prompts with
a common beginning have the same pieces up to where they part. Each piece is one record of eight bytes, big-endian:

    hash (6 bytes) = xxh3_64(piece, seed = hash of the piece before) mod 2**48        length of the piece (2 bytes)

Equal leading hashes therefore mean equal beginnings. A piece ends

- behind an element of a JSON list of objects (`},{"`), which is where one message of a conversation ends and the
  next begins. These bytes cannot stand inside a JSON string, whose quotes are escaped;
- otherwise after 64 bytes at the start of the prompt, later after a 32nd of what lies before it: what two prompts
  share is known to 3%, and a prompt of 48 kB has some 150 records;
- at the end of the prompt, so that a conversation's next prompt, which goes on from there, is known by it.

The chain begins with a secret of this process: nobody can find a prompt by guessing it.
"""

import secrets
from base64 import b64encode

import xxhash

from router.edge.api.parsed_request import ParsedRequest

MAX_PIECES = 512
"""Pieces of one prompt, the first ones; enough for 9 MB of text without messages."""
RECORD_BYTES = 8
_BOUNDARY = b'},{"'
_LEAST_BYTES = 64
"""Of a piece that no message ends; 16 token ids of 4 bytes, one KV block of vLLM."""
_MOST_BYTES = 32_704
_SECRET = secrets.randbits(63)


def fingerprint(ask: ParsedRequest, line: str) -> str:
    """The records of the prompt's pieces in base64, at most `MAX_PIECES`; empty for an empty prompt."""
    prompt, has_messages = ask.prompt, ask.unit_width == 1
    view = memoryview(prompt)
    chain = xxhash.xxh3_64_intdigest(line.encode(), _SECRET)
    boundary = prompt.find(_BOUNDARY) if has_messages else -1
    records: list[bytes] = []
    at = 0
    while at < len(prompt) and len(records) < MAX_PIECES:
        end = min(at + max(_LEAST_BYTES, min(at // 2048 * 64, _MOST_BYTES)), len(prompt))
        while 0 <= boundary < at:
            boundary = prompt.find(_BOUNDARY, boundary + 1)
        if at <= boundary < end:
            end = boundary + 1
        chain = xxhash.xxh3_64_intdigest(view[at:end], chain)
        records.append((chain >> 16 << 16 | end - at).to_bytes(RECORD_BYTES, "big"))
        at = end
    return b64encode(b"".join(records)).decode()
