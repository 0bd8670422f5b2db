"""Whose answer is expected to be the shortest?

Source: SF, shortest-first (the baseline of arXiv 2508.06133 and 2606.22327).

Ascending predicted output, ties by arrival [paper]. Good for the mean latency while memory is no concern; blind to
the prompt, so where memory is tight long prompts with short answers crowd out many small requests, and its
competitive ratio is unbounded [paper].

[ours] The prediction is the mean estimate on arrival. A request too large for the room that is left is passed by
the next that fits. Sizes age (`kit/sizes.py`).
"""

from dataclasses import dataclass

from policies.orders.kit.sizes import SizedOrder, expected


@dataclass(frozen=True, slots=True)
class Settings:
    halves_s: float = 120.0
    """An answer counts as half as long each time its request has waited this many seconds."""
    window: int = 16
    """Requests offered per step."""


class ShortestFirst(SizedOrder):
    """Ascending predicted output, wherever it fits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(expected, skips=True, halves_s=settings.halves_s, window=settings.window)
