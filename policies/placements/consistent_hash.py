"""Which worker does the head of this prompt hash to, and has that one not more than its share already?

Source: consistent hashing with bounded loads (arXiv 1608.01350), the 1.25 of HAProxy, Envoy and KubeAI.

Affinity without any knowledge of caches: equal heads go to equal workers, and nobody may hold more than
`ceil(load_factor * mean)` requests, the new one included; who is full passes to the next in its own order.

[ours] The order is a rendezvous (each pair of head and worker has a hash, highest first) instead of a ring with
virtual nodes: it needs no state, and the load of a full worker spreads over all others, not onto its neighbour.
What is hashed is the first `prefix_tokens` of the prompt; a request without a key goes by its session or client.

Invariants: a worker that leaves moves only the heads that were its own, and one that arrives takes only those that
become its own; some worker is always below the bound, but where those have no room the first in order that has
room takes the request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from policies.events import Event
from policies.model import Matches, Place, Placement, Reason, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    load_factor: float = 1.25
    """How far above the mean a worker's requests may go."""
    prefix_tokens: int = 256
    """Tokens at the head of the prompt that decide."""


class ConsistentHash:
    """Rendezvous hashing under a bound; the policy keeps no state."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def choose(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        now: float,  # noqa: ARG002 - hashes do not depend on time
    ) -> Place | None:
        head = self._head(request)
        order = sorted(workers, key=lambda worker: weight(head, worker.id), reverse=True)
        able = [worker for worker in order if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        requests = 1 + sum(worker.requests for worker in workers)
        bound = math.ceil(self._settings.load_factor * requests / len(workers))
        chosen = next((worker for worker in able if worker.requests < bound), able[0])
        matched = matches.get(chosen.id, 0)
        reason = Reason.SPILL if chosen is not order[0] else Reason.HIT if matched else Reason.MISS
        return Place(Placement(chosen.id), reason, matched)

    def on(self, event: Event) -> None:
        """Hashes have no memory."""

    def _head(self, request: RequestView) -> bytes:
        key = request.key
        if not key.data:
            return (request.session or request.client).encode()
        return key.data[: max(1, int(self._settings.prefix_tokens / key.tokens_per_unit)) * key.width]


def weight(head: bytes, worker: str) -> int:
    """How much a head is drawn to a worker: 64 bits that depend on nobody else."""
    return xxhash.xxh3_64_intdigest(head, xxhash.xxh3_64_intdigest(worker.encode()))
