"""`binding: early`: the workers that waiting requests were named on arrival, and what that means for later ones.

This is how most routers work, and how D²LPM is printed (arXiv 2501.14312, Algorithm 2): placement on arrival, then
a queue order. Late binding keeps the choice open until a worker has room; early binding is for comparing.

To a placement that ranks on arrival every worker has room; what waits for a worker counts as its load, and prompts
that wait there count as cached: requests that arrive later find them computed.

Invariants: a waiting request is named at most one placement; with no request waiting every count is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policies.fleet.fleet import Fleet
from policies.model import Matches, Placement, RequestView, Stage, WorkerId, WorkerView
from policies.prefixes.index import Pinned, Prefixes


@dataclass(frozen=True, slots=True)
class _Named:
    request: RequestView
    placement: Placement
    prefill_tokens: int
    """Of the prompt, as far as they will not be cached where it is computed."""
    pinned: tuple[tuple[WorkerId, Pinned | None], ...]
    """The prompt among those that wait, at each of its workers."""
    counted: bool = True
    """Its worker counts it as load; false once that has left."""


class NamedWorkers:
    """Placements of waiting requests under early binding."""

    def __init__(self, fleet: Fleet, prefixes: Prefixes) -> None:
        self._fleet = fleet
        self._prefixes = prefixes
        self._coming = Prefixes()
        """Prompts that wait, by the worker that was named."""
        self._named: dict[str, _Named] = {}

    def __len__(self) -> int:
        return len(self._named)

    def workers(self, request: RequestView, now: float) -> Sequence[WorkerView]:
        """The workers that could serve the request, as they will be after what waits for them."""
        return [self._fleet[view.id].view_with_named(now) for view in self._fleet.eligible(request)]

    def matches(self, request: RequestView) -> Matches:
        """Tokens of the prompt that each worker holds, or will by the time the request starts there."""
        held, coming = self._prefixes.match(request), self._coming.match(request)
        return {worker: max(held.get(worker, 0), coming.get(worker, 0)) for worker in {**held, **coming}}

    def add(self, request: RequestView, placement: Placement, matched_tokens: int, now: float) -> None:
        """The request waits for this placement; `matched_tokens` of its prompt will be cached there."""
        tokens = max(1, request.input_tokens - matched_tokens)
        workers = [worker for worker in (placement.decode, placement.prefill) if worker is not None]
        pinned = tuple((worker, self._coming.insert(worker, request, now)) for worker in workers)
        self._named[request.id] = _Named(request, placement, tokens, pinned)
        self._fleet[placement.ranked].name(request, tokens)

    def remove(self, request: RequestView) -> None:
        """The request waits no longer, or is named anew; nothing if it was not named."""
        named = self._named.pop(request.id, None)
        if named is None:
            return
        if named.counted:
            self._fleet[named.placement.ranked].unname(request, named.prefill_tokens)
        for worker, pinned in named.pinned:
            if pinned is not None:
                self._coming.release(pinned, 0.0)
                self._coming.forget(worker, request, 0)

    def remove_worker(self, worker: WorkerId) -> None:
        """The worker is about to leave the fleet."""
        for name, named in self._named.items():
            if named.placement.ranked == worker and named.counted:
                self._fleet[worker].unname(named.request, named.prefill_tokens)
                self._named[name] = replace(named, counted=False)
        self._coming.remove_worker(worker)

    def stands(self, request: RequestView) -> bool:
        """Whether the request may still be served where it was named, and is counted there."""
        named = self._named.get(request.id)
        if named is None:
            return True
        if not named.counted:
            return False
        eligible = {view.id: view.facts.stages for view in self._fleet.eligible(request)}
        decode, prefill, _ = named.placement
        if prefill is None:
            return decode in eligible
        return Stage.DECODE in eligible.get(decode, ()) and Stage.PREFILL in eligible.get(prefill, ())
