"""Nobody waits for ever: what every order does with requests that have waited long.

An order may prefer short or cached prompts as long as it likes; a request that has waited `patience_s` comes
before all of that, oldest first. And because a large request could still be overtaken by small ones that fit into
room too small for it, everybody younger keeps off the workers that could serve it.
"""

from collections.abc import Iterable, Iterator, Sequence

from policies.model import Candidate, RequestView, WorkerView


def aged_first(
    ordered: Iterable[RequestView], workers: Sequence[WorkerView], now: float, patience_s: float
) -> Iterator[Candidate]:
    """The candidates of an order: the impatient by age, then the others as ordered."""
    patient: list[RequestView] = []
    impatient: list[RequestView] = []
    for request in ordered:
        (impatient if now - request.arrived > patience_s else patient).append(request)
    impatient.sort(key=arrival)
    kept: frozenset[str] = frozenset()
    room = {worker.id for worker in workers if worker.room.open} if impatient else kept
    for request in impatient:
        yield Candidate(request, kept)
        kept |= {worker.id for worker in workers if worker.facts.serves(request)}
        if room <= kept:  # nothing is left for anybody younger
            return
    for request in patient:
        yield Candidate(request, kept)


def arrival(request: RequestView) -> tuple[float, str]:
    """Order of arrival, the same for every run."""
    return request.arrived, request.id
