"""How many tokens a prompt has, estimated from its bytes and media: learned per model from what workers report.

Learned only from prompts whose key is all of them (`Facts.all_there`). Where a part lies on a worker (a stored
response), is cut off, or is no text, the count says nothing of how many tokens a byte of text has, and it would be
believed of all prompts. Of a prompt with media, what is left beside its text is what they cost.
"""

from dataclasses import dataclass, field

_TEXT = 0.25
"""Tokens per byte of English text in current vocabularies, about."""
_LEAST_TEXT, _MOST_TEXT = 0.02, 2.0
"""Whatever was reported, a byte is no more than two tokens."""
_LEAST_BYTES = 64
"""A shorter prompt is mostly what the chat template adds."""
_MEDIUM = 576.0
"""Tokens of an image, sound or file: one 336-pixel tile of a vision encoder with 14-pixel patches."""
_LEAST_MEDIUM, _MOST_MEDIUM = 1.0, 65_536.0
_RATE = 0.05
"""Weight of one report once there have been twenty; before, all count alike."""


@dataclass(slots=True)
class _Mean:
    """A mean that forgets slowly."""

    value: float
    reports: int = 0

    def learn(self, seen: float) -> None:
        self.reports += 1
        self.value += max(_RATE, 1 / self.reports) * (seen - self.value)


@dataclass(slots=True)
class _Scale:
    """Of one model."""

    text: _Mean = field(default_factory=lambda: _Mean(_TEXT))
    medium: _Mean = field(default_factory=lambda: _Mean(_MEDIUM))


class TokenRatio:
    """Tokens per byte of prompt key and per medium, by served name."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Scale] = {}

    def tokens_per_byte(self, served_name: str) -> float:
        scale = self._by_name.get(served_name)
        return _TEXT if scale is None else scale.text.value

    def tokens_per_medium(self, served_name: str) -> float:
        scale = self._by_name.get(served_name)
        return _MEDIUM if scale is None else scale.medium.value

    def saw(self, served_name: str, key_bytes: int, media: int, input_tokens: int) -> None:
        """A prompt of `media` media, whose key, all of it, has `key_bytes` bytes, had `input_tokens` tokens."""
        if not media and key_bytes < _LEAST_BYTES:
            return
        scale = self._by_name.setdefault(served_name, _Scale())
        if media:
            left = (input_tokens - key_bytes * scale.text.value) / media
            scale.medium.learn(min(max(left, _LEAST_MEDIUM), _MOST_MEDIUM))
        else:
            scale.text.learn(min(max(input_tokens / key_bytes, _LEAST_TEXT), _MOST_TEXT))
