"""A prompt as a chain of block hashes: enough to replay yesterday's traffic with its prefixes, and no word of it.

`prefix[i] = xxh3_64(block i, seed = prefix[i-1])`, cut to 48 bits, so equal lists mean equal beginnings. A block
is the part of the prefix key that stands for 512 tokens, by a fixed scale: what the gateway learns about tokens
per byte must not make equal prompts unequal. The chain begins with a secret of this process, so that nobody can
find a prompt by guessing it.
"""

import secrets

import xxhash

from router.edge.api.parsed_request import ParsedRequest

PREFIX_TOKENS = 512
"""Tokens per block, about."""
_BLOCK_BYTES = {1: 4 * PREFIX_TOKENS, 4: 4 * PREFIX_TOKENS}
"""Bytes of text at a quarter of a token each; ids of four bytes."""
_MOST_BLOCKS = 128
_MASK = (1 << 48) - 1
_SECRET = secrets.randbits(63)


def fingerprint(ask: ParsedRequest, line: str) -> list[int]:
    """The hashes of the prompt's full blocks, at most `_MOST_BLOCKS`."""
    size = _BLOCK_BYTES[ask.unit_width]
    prompt = memoryview(ask.prompt)
    chain: list[int] = []
    last = xxhash.xxh3_64_intdigest(line.encode(), _SECRET)
    for start in range(0, min(len(prompt) - size + 1, size * _MOST_BLOCKS), size):
        last = xxhash.xxh3_64_intdigest(prompt[start : start + size], last) & _MASK
        chain.append(last)
    return chain
