"""Whose answer may be the shortest, and what do the answers that run turn out to be?

Source: A_min (arXiv 2508.14544).

Every estimate starts at the lower end of its length interval; ascending estimates, admitted while everything
fits by these estimates, stop at the first failure. An answer that reaches its estimate raises it [paper]. Bold
at first and corrected by what is seen: the ratio to the optimum is logarithmic in upper/lower [paper].

[ours] The paper evicts on overflow, in ascending estimate, and starts the evicted again with what they had
generated as their estimate. A router cannot evict inside a worker, which preempts by itself; so estimates refine
as tokens stream past, and the test of memory uses the refined ones. `raises` says to what: to the lower end
given what has been generated, learned from other answers, or token by token as printed. Several workers, ageing,
and bounded looks at the queue as in `within_memory`. The lower end is the 10% quantile; without an interval, the
mean. The scheduler takes it as the request's estimate, so that a worker's room is as bold as this order; under
early binding, where each worker has a line of its own, the room tests the mean.

Invariants: as in `within_memory` and `residents`; estimates only rise.
"""

from dataclasses import dataclass
from typing import Literal

from policies.events import Event
from policies.fleet.kv_fit import Batch
from policies.knowledge import Knowledge
from policies.model import RequestView, WorkerView
from policies.orders.kit.running_batch import Residents
from policies.orders.kit.within_memory import WithinMemory


@dataclass(frozen=True, slots=True)
class Settings:
    raises: Literal["learned", "stepwise"] = "learned"
    """An answer that has reached its estimate: the lower end given that it is so long, or its next token."""
    patience_s: float = 10.0
    """From here on a request comes before shorter ones."""
    window: int = 64
    """Requests looked at per step, of the shortest and of the oldest."""


class AMin(WithinMemory):
    """MC-SF for the best case, corrected as answers grow."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        super().__init__(
            knowledge,
            size=_lower,
            answer=_lower,
            skips=False,
            patience_s=settings.patience_s,
            window=settings.window,
        )
        self._learned = settings.raises == "learned"
        self._residents = Residents(self._estimate)

    def batch(self, worker: WorkerView) -> Batch | None:
        return None if worker.room.idle else self._residents.batch(worker)

    def on(self, event: Event) -> None:
        self._residents.on(event)

    def answer(self, request: RequestView) -> int:
        """How long this order takes the answer of a newcomer to be, per sequence."""
        return _lower(request)

    def _estimate(self, request: RequestView, generated: int) -> int:
        if generated == 0 or not self._learned:
            return max(_lower(request), generated + 1)
        most, lengths = request.max_output_tokens, self._knowledge.lengths
        return lengths.estimate_longer(
            request.client, request.served_name, request.input_tokens, most, generated
        ).lower


def _lower(request: RequestView) -> int:
    return request.expected_output_tokens if request.length is None else request.length.lower
