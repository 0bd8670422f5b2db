"""The two interfaces: an order says who is next, a placement ranks the workers; one matcher joins them.

The scheduler owns the knowledge (which worker holds which prefix, load, profiles, length estimates) and hands it
to policies as read-only values. A policy owns its accounts (deficits, counters, cursors) and moves them only in
`on`, when it hears that something has happened: asking twice is harmless. The same events go to both policies.

Policies subclass these classes. Methods with a body are defaults; the others have to be written.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from policies.events import EVENTS, Event
from policies.model import Candidate, Question, Ranked, RequestView, WorkerView


class OrderPolicy(ABC):
    """Who is next among the requests that wait."""

    hears: ClassVar[frozenset[type[Event]]] = EVENTS
    """Kinds of events that `on` uses; others are not sent."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of waiting requests."""

    @abstractmethod
    def push(self, request: RequestView, *, again: bool = False) -> None:
        """Add a request; `again`: its attempt failed, so it returns to the place it had."""

    @abstractmethod
    def remove(self, request: RequestView) -> None:
        """Remove a request: it was placed, cancelled or rejected."""

    @abstractmethod
    def waiting(self) -> Iterator[RequestView]:
        """All waiting requests, in no particular order."""

    @abstractmethod
    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        """Waiting requests in the order in which they may start, best first, each once; bounded by the order.

        `workers` are those with room for something. Requests that none of them serves may be left out. The
        matcher starts the first candidate that has a worker, then asks afresh; it passes over candidates that
        have no room. A candidate says itself whether it may be passed over forever (`overdue`), and whether it
        may use room beside which an earlier candidate waits by choice (`may_pass`).
        """

    def estimate(self, request: RequestView) -> int:
        """Expected output tokens per sequence by which this order wants the request to be judged."""
        return request.expected_output_tokens

    def deficit(self, client: str) -> float | None:  # noqa: ARG002 - for orders that keep accounts
        """Service that a client is owed (positive) or owes; None where the order keeps no such account."""
        return None

    def sizes(self) -> dict[str, int]:
        """Entries of the tables here that grow with traffic, by name: for metrics."""
        return {}

    def on(self, event: Event) -> None:  # noqa: B027 - most policies keep no accounts
        """An event has happened: the only place where accounts move."""


class PlacementPolicy(ABC):
    """Which worker is best for a request."""

    hears: ClassVar[frozenset[type[Event]]] = EVENTS
    """Kinds of events that `on` uses; others are not sent."""

    costs_are_seconds: ClassVar[bool] = False
    """Whether the costs of a ranking are time. Then the matcher waits for a better worker only while that saves
    time; of rules in other units it keeps the first choice until the hold budget is used up."""

    @abstractmethod
    def rank(self, question: Question) -> list[Ranked]:
        """Every worker of the question with its cost and reason, best first.

        The workers are all that could ever serve the request, never none. Room and waiting are the matcher's
        business: a rule compares load, caches and prompts only. Asking commits nothing.
        """

    def sizes(self) -> dict[str, int]:
        """Entries of the tables here that grow with traffic, by name: for metrics."""
        return {}

    def on(self, event: Event) -> None:  # noqa: B027 - most policies keep no accounts
        """An event has happened: the only place where accounts move."""
