"""The two interfaces: a queue says who is next, a placement says where it runs.

The scheduler owns the knowledge (which worker holds which prefix, load, profiles, length estimates) and hands it
to policies as read-only values. A policy owns its accounts (deficits, counters, cursors) and moves them only in
`on`, when it hears that something has happened: asking twice is harmless. The same events go to both policies.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from policies.events import Event
from policies.model import Candidate, Hold, Matches, Place, RequestView, WorkerView


class QueuePolicy(Protocol):
    """Who is next among the requests that wait."""

    def __len__(self) -> int: ...

    def push(self, request: RequestView, *, again: bool = False) -> None:
        """Take a request in; `again`: an attempt failed, so it goes to the head."""

    def remove(self, request: RequestView) -> None:
        """Let a request go: it was placed, cancelled or turned away."""

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        """Requests that may start now, best first: few, whatever the length of the queue.

        The scheduler places the first one that the placement policy accepts, then asks afresh. Every order
        ages: a request that has waited long enough keeps others off the workers that it could use.
        """

    def waiting(self) -> Iterator[RequestView]:
        """Everybody in the queue, in no particular order."""

    def on(self, event: Event) -> None: ...


@runtime_checkable
class HearsOnly(Protocol):
    """What a policy has in addition that has no use for most events: it is told of these kinds, at least."""

    hears: frozenset[type[Event]]


@runtime_checkable
class KeepsDeficits(Protocol):
    """What a queue policy has in addition whose accounts are deficits, for people to look at."""

    def deficit(self, client: str) -> float | None:
        """What a client is owed (positive) or owes; None for one without an account."""


@runtime_checkable
class EstimatesAnswers(Protocol):
    """What a queue policy has in addition that holds a request to an estimate of its own, not to the mean."""

    def answer(self, request: RequestView) -> int:
        """How long it takes the request's answer to be, in tokens per sequence."""


class PlacementPolicy(Protocol):
    """Where a request runs."""

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        """Pick among `workers`, all of which could serve the request; not all have room for it.

        A `Place` must name a worker that admits the request. `Hold` waits for a better worker than those with
        room; None means that nobody has room.
        """

    def on(self, event: Event) -> None: ...
