"""How many tokens a text has, estimated from its bytes: learned per model from the usage that workers report."""

from policies.model import PrefixKey

_START = 0.25
"""Tokens per byte of English text in current vocabularies, about."""
_RATE = 0.05
_LEAST, _MOST = 0.02, 2.0
"""Whatever was reported, a byte is no more than two tokens."""


class TokenScale:
    """Tokens per byte of prompt key, by line."""

    def __init__(self) -> None:
        self._by_line: dict[str, float] = {}

    def tokens_per_byte(self, line: str) -> float:
        return self._by_line.get(line, _START)

    def saw(self, line: str, key: PrefixKey, input_tokens: int) -> None:
        """A prompt of this key turned out to have so many tokens."""
        if key.width == 1 and len(key.data) >= 64:
            before = self._by_line.get(line, _START)
            seen = min(max(input_tokens / len(key.data), _LEAST), _MOST)
            self._by_line[line] = before + _RATE * (seen - before)
