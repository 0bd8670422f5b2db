"""How many tokens a text has, estimated from its bytes: learned per model from the usage that workers report."""

from dataclasses import dataclass

from policies.model import PrefixKey

_START = 0.25
"""Tokens per byte of English text in current vocabularies, about."""
_RATE = 0.05
"""Weight of one report once there have been twenty; before, all count alike."""
_LEAST, _MOST = 0.02, 2.0
"""Whatever was reported, a byte is no more than two tokens."""


@dataclass(slots=True)
class _Scale:
    tokens_per_byte: float = _START
    reports: int = 0


class TokenRatio:
    """Tokens per byte of prompt key, by line."""

    def __init__(self) -> None:
        self._by_line: dict[str, _Scale] = {}

    def tokens_per_byte(self, line: str) -> float:
        scale = self._by_line.get(line)
        return _START if scale is None else scale.tokens_per_byte

    def saw(self, line: str, key: PrefixKey, input_tokens: int) -> None:
        """A prompt of this key turned out to have so many tokens."""
        if key.width == 1 and len(key.data) >= 64:
            scale = self._by_line.setdefault(line, _Scale())
            scale.reports += 1
            seen = min(max(input_tokens / len(key.data), _LEAST), _MOST)
            scale.tokens_per_byte += max(_RATE, 1 / scale.reports) * (seen - scale.tokens_per_byte)
