"""Whose answer is expected to be the shortest?

Source: SF, shortest-first (the baseline of arXiv 2508.06133 and 2606.22327).

Ascending predicted output, ties by arrival [paper]. Good for the mean latency while memory is no concern; blind
to the prompt, so where memory is tight long prompts with short answers crowd out many small requests, and its
competitive ratio is unbounded [paper].

[ours] The prediction is the mean estimate at arrival. It ages, because short answers could keep coming for ever;
and a shortest request too large for the room that is left lets others pass until then.

Invariants: among those who have not waited `patience_s`, a shorter one is offered first; a request is offered
before everybody younger from then on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Candidate, RequestView, WorkerView
from policies.orders.kit.ageing import aged_first
from policies.orders.kit.sized import SizedBacklog


@dataclass(frozen=True, slots=True)
class Settings:
    patience_s: float = 10.0
    """From here on a request comes before shorter ones."""
    window: int = 16
    """Requests offered per step, of the shortest and of the oldest; the placement is asked about each."""


class ShortestFirst:
    """One line by predicted output."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting = SizedBacklog(lambda request: request.expected_output_tokens)

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: RequestView, *, again: bool = False) -> None:  # noqa: ARG002 - its size is its place
        self._waiting.push(request)

    def remove(self, request: RequestView) -> None:
        self._waiting.remove(request)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        patience_s, window = self._settings.patience_s, self._settings.window
        return aged_first(self._waiting.in_order(workers, now, patience_s, window), workers, now, patience_s)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._waiting)

    def on(self, event: Event) -> None:
        """Sizes come with the requests; there are no accounts."""
