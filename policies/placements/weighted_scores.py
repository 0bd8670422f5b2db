"""Which worker scores best, if cache, line and memory are each marked from 0 to 1 and weighed?

Source: llm-d inference scheduler, its prefix, queue and KV cache scorers with the weights 3, 2, 2.

    score = 3 * share of the prompt in its cache + 2 * queue headroom + 2 * (1 - share of its KV cache in use)

Headroom is relative to the workers asked: 1 for the shortest line, 0 for the longest, 1 for all if they are alike.
[ours] A line counts everything dispatched and not settled, as under late binding next to nothing waits inside an
engine; a worker that does not tell the size of its KV cache is taken to have `kv_tokens`; equal scores go to the
worker with less work in hand.

Invariant: every mark lies in [0, 1], so a score lies between 0 and the sum of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Event
from policies.model import Matches, Place, RequestView, WorkerView
from policies.placements.kit.cheapest import cheapest


@dataclass(frozen=True, slots=True)
class Settings:
    prefix: float = 3.0
    """Weight of the share of the prompt that is cached."""
    queue: float = 2.0
    """Weight of the headroom in the line."""
    kv: float = 2.0
    """Weight of the free share of the KV cache."""
    kv_tokens: int = 500_000
    """Size of a KV cache that is not known."""


class WeightedScores:
    """The highest score among the workers with room."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - no mark depends on time
    ) -> Place | None:
        lines = [worker.requests for worker in workers]
        shortest, longest = min(lines, default=0), max(lines, default=0)
        settings = self._settings

        def cost(worker: WorkerView, matched: int) -> tuple[float, float]:
            headroom = (longest - worker.requests) / (longest - shortest) if longest > shortest else 1.0
            cached = min(1.0, matched / max(1, request.input_tokens))
            free = max(0.0, 1.0 - worker.kv_reserved / (worker.facts.kv_tokens or settings.kv_tokens))
            score = settings.prefix * cached + settings.queue * headroom + settings.kv * free
            return -score, worker.load_s

        return cheapest(request, matches, workers, cost)

    def on(self, event: Event) -> None:
        """Matches and load are counted by the scheduler."""
