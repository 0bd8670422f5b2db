"""The worker with room where a request costs least: what most placement rules come down to."""

from collections.abc import Callable, Sequence

from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView

Cost = Callable[[WorkerView, int], tuple[float, ...]]
"""Of a worker that holds so many tokens of the prompt: what is compared first, then what breaks ties."""


def cheapest(request: RequestView, matches: Matches, workers: Sequence[WorkerView], cost: Cost) -> Place | None:
    """Place the request where `cost` is least, the earliest of equals; None if nobody has room."""
    best: tuple[float, ...] | None = None
    chosen: WorkerView | None = None
    for worker in workers:
        matched = matches.get(worker.id, 0)
        if worker.admits(request, matched):
            here = cost(worker, matched)
            if best is None or here < best:
                best, chosen = here, worker
    if chosen is None or best is None:
        return None
    matched = matches.get(chosen.id, 0)
    return Place(Placement(chosen.id), Reason.HIT if matched else Reason.MISS, matched, best[0])
