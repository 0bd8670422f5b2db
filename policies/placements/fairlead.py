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


_COST = itemgetter(1)


class Fairlead(PlacementPolicy):
    """Marginal cost in seconds over all workers; the policy keeps no state."""

    hears: ClassVar[frozenset[type[Event]]] = NONE
    costs_are_seconds: ClassVar[bool] = True

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._prefixes = knowledge.prefixes
        self._seed = knowledge.rng.getrandbits(64)

    def rank(self, question: Question) -> list[Ranked]:
        request, matches, workers, _ = question
        longest = max(matches.values(), default=0)
        ranking = self._ranking(question, longest)
        ranking.sort(key=_COST)
        if longest and self._is_for_warming(request) and (cold := self._cold(workers)) is not None:
            place = next(place for place, (worker, *_) in enumerate(ranking) if worker is cold)
            _, cost, _ = ranking.pop(place)
            ranking.insert(0, (cold, cost, Reason.WARM_UP))
        return ranking

    def _ranking(self, question: Question, longest: int) -> list[Ranked]:
        """All workers with what the request adds there, in seconds, as they come; `longest`: the longest match.

        This loop is most of what a decision costs: `Profile.prefill_s` and `Profile.step_s` are written out, and
        what is zero for most workers (a match, a batch) is left out of their sums.
        """
        request, matches, workers, now = question
        prompt, answer, sequences = request.input_tokens, request.expected_output_tokens, request.sequences
        decode, prompts = self._settings.decode, prompt * sequences
        extend = max(1, prompt)
        pairs, elsewhere = extend * (extend / 2), Reason.SPILL if longest else Reason.MISS
        ranking: list[Ranked] = []
        for worker in workers:
            profile, batch, reason = worker.profile, worker.sequences, elsewhere
            if worker.id in matches:
                matched = matches[worker.id]
                fresh = prompt - matched if prompt > matched else 1
                of_pairs = profile.per_pair_s * (fresh * (matched + fresh / 2))
                cost = profile.base_s + profile.per_token_s * fresh + of_pairs
                if matched == longest > 0:
                    reason = Reason.HIT
            else:
                cost = profile.base_s + profile.per_token_s * extend + profile.per_pair_s * pairs
            step, of_sequence, of_token = profile.step_base_s, profile.per_sequence_s, profile.per_context_token_s
            if batch:
                before = step + of_sequence * batch + of_token * worker.decode_tokens
                after = step + of_sequence * (batch + sequences) + of_token * (worker.decode_tokens + prompts)
                pace = answer * after + batch * answer * (after - before)
                cost = cost * (1 + batch) + decode * pace
            else:
                cost += decode * (answer * (step + of_sequence * sequences + of_token * prompts))
            if worker.prefill_due > now:
                cost += worker.prefill_due - now
            ranking.append((worker, cost, reason))
        return ranking

    def _is_for_warming(self, request: RequestView) -> bool:
        return draw(request, self._seed) < self._settings.warm_up * 2**64

    def _cold(self, workers: Sequence[WorkerView]) -> WorkerView | None:
        """The worker that holds the least, if that is next to nothing."""
        held = [(self._prefixes.held_tokens(worker.id), worker) for worker in workers]
        most = max(tokens for tokens, _ in held)
        tokens, coldest = min(held, key=lambda entry: entry[0])
        return coldest if tokens < self._settings.cold_share * most else None
