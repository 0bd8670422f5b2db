"""Who runs on each worker, and how long their answers will be by an order's own estimate.

The scheduler keeps the same with mean estimates (`Room.batch`). An order that is more careful or bolder than the
mean keeps its own: taken at `Placed`, grown by `Output`, given back at `Left`.

Invariants: one entry per attempt that runs; an estimate never falls, and is always above what has been
generated.
"""

from collections.abc import Callable
from dataclasses import dataclass

from policies.events import Event, Left, Output, Placed
from policies.fleet.kv_fit import Batch, Member
from policies.model import RequestView, WorkerId, WorkerView

Estimate = Callable[[RequestView, int], int]
"""Tokens of an answer, per sequence, of which so many have been generated: asked at the start, and each time that
an answer has reached its estimate."""


@dataclass(slots=True, eq=False)
class _Resident:
    request: RequestView
    worker: WorkerId
    answer: int
    """The estimate."""
    output: int = 0
    """Tokens so far, of all its sequences."""

    @property
    def generated(self) -> int:
        """Tokens so far, per sequence."""
        return self.output // self.request.sequences


class _Memo:
    """The batches as last built: worth keeping, since a step asks for each and few have changed."""

    __slots__ = ("batches",)

    def __init__(self) -> None:
        self.batches: dict[WorkerId, Batch] = {}


class Residents:
    """Running requests by worker. Under a pair of workers a request counts where it is decoded."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._by_id: dict[str, _Resident] = {}
        self._by_worker: dict[WorkerId, dict[str, _Resident]] = {}
        self._memo = _Memo()

    def __len__(self) -> int:
        return len(self._by_id)

    def on(self, event: Event) -> None:
        """The only place that moves anything."""
        if isinstance(event, Placed):
            answer = max(1, self._estimate(event.request, 0))
            self._take(_Resident(event.request, event.placement.decode, answer))
        elif isinstance(event, Output):
            if (resident := self._by_id.get(event.request.id)) is not None:
                resident.output += event.tokens
                if resident.generated >= resident.answer:
                    estimate = self._estimate(resident.request, resident.generated)
                    resident.answer = max(estimate, resident.generated + 1)
                self._memo.batches.pop(resident.worker, None)
        elif isinstance(event, Left) and (resident := self._by_id.pop(event.request.id, None)) is not None:
            self._give_back(resident)

    def batch(self, worker: WorkerView) -> Batch | None:
        """What runs there; None where the memory of the worker is not known."""
        known = worker.room.batch
        if known is None:
            return None
        batch = self._memo.batches.get(worker.id)
        if batch is None or (batch.capacity, batch.pinned) != (known.capacity, known.pinned):
            members = [_member(one) for one in self._by_worker.get(worker.id, {}).values()]
            batch = self._memo.batches[worker.id] = Batch(members, known.capacity, known.pinned)
        return batch

    def _take(self, resident: _Resident) -> None:
        self._by_id[resident.request.id] = resident
        self._by_worker.setdefault(resident.worker, {})[resident.request.id] = resident
        self._memo.batches.pop(resident.worker, None)

    def _give_back(self, resident: _Resident) -> None:
        here = self._by_worker[resident.worker]
        del here[resident.request.id]
        if not here:
            del self._by_worker[resident.worker]
        self._memo.batches.pop(resident.worker, None)


def _member(resident: _Resident) -> Member:
    request, left = resident.request, resident.answer - resident.generated
    return Member(request.input_tokens, resident.output, left, request.sequences)
