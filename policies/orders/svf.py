"""Whose life takes the least memory for the least time?

Source: SVF, Smallest Volume First (arXiv 2606.22327).

Ascending volume `s*o + o*(o+1)/2`, the KV tokens of a prompt s and a growing answer o summed over its steps;
first fit: who does not fit is passed by the next that does [paper]. The ratio to the optimum is constant, `1 +
2/(1-a)` where no request alone holds more than the share a of the memory at its end [paper].

[ours] Several workers, ageing, and bounded looks at the queue as in `within_memory`. The volume is that of the
mean estimate and of the whole prompt, as printed; what is cached already counts in the test of memory alone.

Invariants: as in `within_memory`.
"""

from dataclasses import dataclass

from policies.knowledge import Knowledge
from policies.orders.kit.within_memory import WithinMemory, expected, occupancy


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before smaller ones."""
    window: int = 64
    """Requests looked at per step, of the smallest and of the oldest."""


class Svf(WithinMemory):
    """Smallest volume first, wherever it fits."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            knowledge,
            size=lambda request: occupancy(request, expected(request)),
            skips=True,
            patience_s=settings.patience_s,
            window=settings.window,
        )
