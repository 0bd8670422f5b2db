"""Whose answer is expected to be the shortest, as long as everything fits into memory to its end?

Source: MC-SF, Memory-Constrained Shortest-First (arXiv 2502.07115).

Ascending predicted output; a request starts if it fits beside what runs until its expected end, and the first that
does not ends the step: a larger one behind it never takes the memory that it waits for [paper].

[ours] Several workers: the matcher makes the test of memory (`policies/fleet/kv_fit.py`) for each, and only the
first request of those that the same workers could run is offered. The prediction is the mean estimate; for what
runs it is refined as tokens stream past. Sizes age (`kit/sizes.py`).

Invariant: no request starts on a worker while one with a shorter (aged) answer that could run there waits.
"""

from dataclasses import dataclass

from policies.orders.kit.sizes import SizedOrder, expected


@dataclass(frozen=True, slots=True)
class Settings:
    halves_s: float = 120.0
    """An answer counts as half as long each time its request has waited this many seconds."""
    window: int = 64
    """Lanes of which the first request is offered per step."""


class McSf(SizedOrder):
    """Shortest answer first, up to the first that does not fit."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(expected, skips=False, halves_s=settings.halves_s, window=settings.window)
