"""Whose answer is the shortest even if every answer is as long as it may well be?

Source: A_max (arXiv 2508.14544).

MC-SF with the upper end of each length interval for the length: ascending upper bound, admitted while everything
fits to the end even so, stop at the first failure [paper]. Never an overflow while the intervals hold, at the
price of memory that stays unused: the ratio to the optimum grows with upper/lower [paper].

[ours] The upper end is the 95% quantile of the estimate (`policies.lengths`), so an answer may pass it; from
then on it is taken to end with its next token. Without an interval the mean is both ends. Several workers,
ageing, and bounded looks at the queue as in `within_memory`.

Invariants: as in `within_memory` and `residents`.
"""

from dataclasses import dataclass

from policies.events import Event
from policies.fleet.kv_fit import Batch
from policies.knowledge import Knowledge
from policies.model import RequestView, WorkerView
from policies.orders.kit.running_batch import Residents
from policies.orders.kit.within_memory import WithinMemory


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before shorter ones."""
    window: int = 64
    """Requests looked at per step, of the shortest and of the oldest."""


class AMax(WithinMemory):
    """MC-SF for the worst case."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            knowledge,
            size=_upper,
            answer=_upper,
            skips=False,
            patience_s=settings.patience_s,
            window=settings.window,
        )
        self._residents = Residents(lambda request, _: _upper(request))

    def batch(self, worker: WorkerView) -> Batch | None:
        return None if worker.room.idle else self._residents.batch(worker)

    def on(self, event: Event) -> None:
        self._residents.on(event)


def _upper(request: RequestView) -> int:
    return request.expected_output_tokens if request.length is None else request.length.upper
