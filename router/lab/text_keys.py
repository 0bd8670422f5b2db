"""What a gateway without a tokenizer sees of a prompt: its text, as bytes, and no exact length.

A piece of text of `t` tokens has some `4 t` bytes. How many exactly differs between prompts (languages, code,
prose) and a little between the pieces of one prompt; the gateway learns one mean per model, as it does for
real. The text is pseudo-random bytes made from the names of the prompt's segments: prompts share text where
they share segments.

The spreads are [ours]: English prose has 4 to 4.5 bytes per token in current vocabularies, code and other
languages 2.5 to 3.5.
"""

import numpy as np

from router.lab.workload import Request

MEAN_BYTES_PER_TOKEN = 4.0
PROMPT_SPREAD = 0.2
"""Largest deviation of a whole prompt from the mean, as a share of it; of one piece from its prompt a fourth."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def prompt_text(request: Request, block_tokens: int) -> bytes:
    """The text of a request's prompt. Equal beginnings of segments give equal beginnings."""
    segments = request.segments
    if not segments:
        units = np.frombuffer(request.key, dtype=np.uint64).tolist()
        segments = tuple((unit, block_tokens) for unit in units)
        rest = request.input_tokens - len(units) * block_tokens
        segments += ((hash((request.key, rest)), rest),) if rest else ()
    density = MEAN_BYTES_PER_TOKEN * (1 + PROMPT_SPREAD * _deviation(segments[0][0]))
    pieces = []
    for name, tokens in segments:
        size = round(tokens * density * (1 + PROMPT_SPREAD / 4 * _deviation(~name)))
        pieces.append(_noise(name, size))
    return b"".join(pieces)


def _deviation(name: int) -> float:
    """A number from -1 to 1, equal for equal names."""
    return int.from_bytes(_noise(name, 4), "little") / 2**31 - 1


def _noise(name: int, size: int) -> bytes:
    """Bytes made from a name (splitmix64, Steele, Lea and Flood 2014)."""
    start = np.uint64(name % 2**64)
    with np.errstate(over="ignore"):
        words = start * _MIX[1] + _GOLDEN * np.arange(1, size // 8 + 2, dtype=np.uint64)
        words = (words ^ (words >> np.uint64(30))) * _MIX[0]
        words = (words ^ (words >> np.uint64(27))) * _MIX[1]
        words ^= words >> np.uint64(31)
    return words.tobytes()[:size]
