"""Whose life takes the least memory for the least time?

Source: SVF, Smallest Volume First (arXiv 2606.22327).

Ascending volume `s*o + o*(o+1)/2`, the KV tokens of a prompt s and a growing answer o summed over its steps; first
fit: a request that does not fit is passed by the next that does [paper]. The ratio to the optimum is constant,
`1 + 2/(1-a)` where no request alone holds more than the share a of the memory at its end [paper].

[ours] Several workers, each with its own test of memory (`policies/fleet/kv_fit.py`), made by the matcher. The
volume is that of the mean estimate and of the whole prompt, as printed; cached tokens count in the test of
memory only. Sizes age (`kit/sizes.py`).
"""

from dataclasses import dataclass

from policies.orders.kit.sizes import SizedOrder, kv_over_life


@dataclass(frozen=True, slots=True)
class Settings:
    halves_s: float = 120.0
    """A request counts as half as large each time it has waited this many seconds."""
    window: int = 64
    """Requests offered per step."""


class Svf(SizedOrder):
    """Smallest volume first, wherever it fits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(kv_over_life, skips=True, halves_s=settings.halves_s, window=settings.window)
