"""Which worker does the head of this prompt hash to, and has that one not more than its share already?

Source: consistent hashing with bounded loads (arXiv 1608.01350), the 1.25 of HAProxy, Envoy and KubeAI.

Affinity without any knowledge of caches: equal heads go to equal workers, and no worker may hold more than
`ceil(load_factor * mean)` requests, the new one included; who is full passes to the next in its own order.

[ours] The order is a rendezvous (each pair of head and worker has a hash, highest first) instead of a ring with
virtual nodes: it needs no state, and the load of a full worker spreads over all others, not onto its neighbour.
What is hashed is the first `prefix_tokens` of the prompt; a request without a key goes by its session or client.

Invariants: a worker that leaves moves only the heads that were its own, and one that arrives takes only those that
become its own; some worker is always below the bound.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import xxhash

from policies.events import NONE, Event
from policies.model import Question, Ranked, Reason, RequestView
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    load_factor: float = 1.25
    """How far above the mean a worker's requests may go."""
    prefix_tokens: int = 256
    """Tokens at the head of the prompt that decide."""


class ConsistentHash(PlacementPolicy):
    """Rendezvous hashing under a bound; the policy keeps no state."""

    hears: ClassVar[frozenset[type[Event]]] = NONE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def rank(self, question: Question) -> list[Ranked]:
        head, matches = self._head(question.request), question.matches
        order = sorted(question.workers, key=lambda worker: weight(head, worker.id), reverse=True)
        requests = 1 + sum(worker.requests for worker in order)
        bound = math.ceil(self._settings.load_factor * requests / len(order))
        order.sort(key=lambda worker: worker.requests >= bound)  # stable: the full ones last, each in its place
        home = max(order, key=lambda worker: weight(head, worker.id))
        return [
            (
                worker,
                float(place),
                Reason.SPILL if worker is not home else Reason.HIT if matches.get(worker.id) else Reason.MISS,
            )
            for place, worker in enumerate(order)
        ]

    def _head(self, request: RequestView) -> bytes:
        key = request.key
        if not key.data:
            return (request.session or request.client).encode()
        return key.data[: max(1, int(self._settings.prefix_tokens / key.tokens_per_unit)) * key.width]


def weight(head: bytes, worker: str) -> int:
    """How much a head is drawn to a worker: 64 bits that depend on no other worker."""
    return xxhash.xxh3_64_intdigest(head, xxhash.xxh3_64_intdigest(worker.encode()))
