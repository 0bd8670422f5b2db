"""Which worker scores best, if cache, queue and memory are each marked from 0 to 1 and weighed?

Source: llm-d inference scheduler, its prefix, queue and KV cache scorers with the weights 3, 2, 2.

    score = 3 * share of the prompt in its cache + 2 * queue headroom + 2 * (1 - share of its KV cache in use)

Headroom is relative to the workers asked: 1 for the fewest requests, 0 for the most, 1 for all if they are equal.
[ours] A queue counts all requests dispatched and not settled, as under late binding next to nothing waits inside
an engine; a worker that does not report the size of its KV cache is taken to have `kv_tokens`; equal scores go to
the worker with less work in hand.

Invariant: every mark lies in [0, 1], so a score lies between 0 and the sum of the weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from policies.events import NONE, Event
from policies.model import Question, Ranked, WorkerView
from policies.placements.kit.ranking import by_cost
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    prefix: float = 3.0
    """Weight of the share of the prompt that is cached."""
    queue: float = 2.0
    """Weight of the headroom in the queue."""
    kv: float = 2.0
    """Weight of the free share of the KV cache."""
    kv_tokens: int = 500_000
    """Size of a KV cache that is not known."""


class WeightedScores(PlacementPolicy):
    """The highest score wins; the cost is the score with its sign changed."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        settings, prompt = self._settings, max(1, question.request.input_tokens)
        queues = [worker.requests for worker in question.workers]
        shortest, longest = min(queues), max(queues)

        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            headroom = (longest - worker.requests) / (longest - shortest) if longest > shortest else 1.0
            cached = min(1.0, matched / prompt)
            free = max(0.0, 1.0 - worker.kv_reserved / (worker.facts.kv_tokens or settings.kv_tokens))
            return -(settings.prefix * cached + settings.queue * headroom + settings.kv * free), worker.load_s

        return by_cost(question, cost)
