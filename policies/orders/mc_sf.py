"""Whose answer is expected to be the shortest, as long as everything fits into memory to its end?

Source: MC-SF, Memory-Constrained Shortest-First (arXiv 2502.07115).

Ascending predicted output; a request starts if it fits beside what runs until its expected end, and the first
that does not ends the step: a larger one behind it never takes the memory that it waits for [paper].

[ours] Several workers, ageing, and bounded looks at the queue as in `within_memory`. The prediction is the mean
estimate; for what runs it is the scheduler's, refined as tokens stream past.

Invariants: as in `within_memory`; on a worker nobody starts while a shorter answer that could start there does
not.
"""

from dataclasses import dataclass

from policies.knowledge import Knowledge
from policies.orders.kit.within_memory import WithinMemory, expected


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before shorter ones."""
    window: int = 64
    """Requests looked at per step, of the shortest and of the oldest."""


class McSf(WithinMemory):
    """Shortest answer first, up to the first that does not fit."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            knowledge, size=expected, skips=False, patience_s=settings.patience_s, window=settings.window
        )
