"""On which worker does this request cost all requests together the least time?

Source: this project; after LMetric (arXiv 2603.15202), in measured seconds instead of tokens.

The cost of a worker is what the request adds to the completion of all requests, in seconds, by that worker's own
measured profile:

    owed       until the prefill in flight there is done
  + prefill    of what is not cached, attention over what is (quadratic in length)
  + decode     its expected answer, at the pace of the batch it joins
  + harm       its prefill holds up every sequence that decodes there, and it slows their steps: second for second

A holder of the prefix wins as long as the prefill it saves outweighs its queue, so a prefix that is too hot spills
by itself: its holders' batches grow until another worker is cheaper, computes it, and becomes a holder too. A
worker that holds next to nothing gets a small slice of the requests that would be hits elsewhere, so that it is
warm when it is needed. Load and locality are thus one number; nothing switches between modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import ClassVar

from policies.events import NONE, Event
from policies.knowledge import Knowledge
from policies.model import Question, Ranked, Reason, RequestView, WorkerView
from policies.placements.kit.draw import draw
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    decode: float = 0.01
    """Weight of the pace of decoding, its own and that of the sequences it joins, against time to first token."""
    warm_up: float = 0.02
    """Share of requests that a cold worker gets although another one holds their prefix."""
    cold_share: float = 0.1
    """A worker is cold that holds less than this share of what the fullest one holds."""


class Fairlead(PlacementPolicy):
    """Marginal cost in seconds over all workers; the policy keeps no state."""

    hears: ClassVar[frozenset[type[Event]]] = NONE
    costs_are_seconds: ClassVar[bool] = True

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._prefixes = knowledge.prefixes
        self._seed = knowledge.rng.getrandbits(64)

    def rank(self, question: Question) -> list[Ranked]:
        request, matches, workers, now = question
        longest = max(matches.values(), default=0)
        equal: dict[tuple[object, ...], float] = {}  # workers that look alike cost alike: an idle fleet is cheap
        ranking: list[Ranked] = []
        for worker in workers:
            matched = matches.get(worker.id, 0)
            looks = id(worker.profile), worker.sequences, worker.decode_tokens, matched
            cost = equal.get(looks)
            if cost is None:
                cost = equal[looks] = self._cost(request, worker, matched)
            if worker.prefill_due > now:
                cost += worker.prefill_due - now
            reason = Reason.MISS if not longest else Reason.HIT if matched == longest else Reason.SPILL
            ranking.append(Ranked(worker, cost, reason))
        ranking.sort(key=itemgetter(1))
        if longest and self._is_for_warming(request) and (cold := self._cold(workers)) is not None:
            ranking.sort(key=lambda ranked: ranked.worker is not cold)
            ranking[0] = ranking[0]._replace(reason=Reason.WARM_UP)
        return ranking

    def _cost(self, request: RequestView, worker: WorkerView, matched: int) -> float:
        """Seconds that the request would add to the sum of all completion times, from when it starts."""
        profile, batch, context = worker.profile, worker.sequences, worker.decode_tokens
        prompt, answer = request.input_tokens, request.expected_output_tokens
        prefill = profile.prefill_s(prompt - matched if prompt > matched else 1, matched)
        after = profile.step_s(batch + request.sequences, context + prompt * request.sequences)
        pace = answer * after
        if batch:
            pace += batch * answer * (after - profile.step_s(batch, context))
        return prefill * (1 + batch) + self._settings.decode * pace

    def _is_for_warming(self, request: RequestView) -> bool:
        return draw(request, self._seed) < self._settings.warm_up * 2**64

    def _cold(self, workers: Sequence[WorkerView]) -> WorkerView | None:
        """The worker that holds the least, if that is next to nothing."""
        held = [(self._prefixes.held_tokens(worker.id), worker) for worker in workers]
        most = max(tokens for tokens, _ in held)
        tokens, coldest = min(held, key=lambda entry: entry[0])
        return coldest if tokens < self._settings.cold_share * most else None
