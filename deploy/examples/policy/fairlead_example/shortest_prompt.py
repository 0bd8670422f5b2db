"""Whose prompt is the shortest?

Source: shortest job first, by the size that is known in advance; an example of an order in its own package.
"""

from dataclasses import dataclass

from policies.model import RequestView
from policies.orders.kit.sizes import SizedOrder


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration can set."""

    halves_s: float = 60.0
    """A prompt counts as half as long each time its request has waited this many seconds."""
    window: int = 16
    """Requests offered per step."""


def prompt_tokens(request: RequestView) -> float:
    """Size: the tokens of the prompt."""
    return max(1, request.input_tokens)


class ShortestPrompt(SizedOrder):
    """Ascending prompt length, wherever it fits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(prompt_tokens, skips=True, halves_s=settings.halves_s, window=settings.window)
