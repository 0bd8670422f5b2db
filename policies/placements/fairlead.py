"""Where does this request cost everybody together the least time?

Source: this project; after LMetric (arXiv 2603.15202), in measured seconds instead of tokens.

The cost of a worker is what the request adds to the completion of all requests, in seconds, by that worker's own
measured profile:

    wait       until the prefill in flight there is done, and a slot free
  + prefill    of what is not cached, attention over what is (quadratic in length)
  + decode     its expected answer, at the pace of the batch it joins
  + harm       its prefill holds up every sequence that decodes there, and it slows their steps

A holder of the prefix wins as long as the prefill it saves outweighs its queue, so a prefix that is too hot spills
by itself: its holders' batches grow until another worker is cheaper, computes it, and becomes a holder too.

If the best worker has no room now, but soon, waiting for it can be cheaper than starting elsewhere: `Hold`. The
worker that could start at once stands by meanwhile, so what the wait saves in prefill has to be worth it. A worker
that holds next to nothing gets a small slice of the requests that would be hits elsewhere, so that it is
warm when it is needed. Load and locality are thus one number; nothing switches between modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import NONE, Event
from policies.knowledge import Knowledge
from policies.model import Hold, Matches, Place, Placement, Reason, RequestView, WorkerView
from policies.placements.random_choice import draw


@dataclass(frozen=True, slots=True)
class Settings:
    harm: float = 0.1
    """Weight of what the request does to others against its own latency."""
    decode: float = 0.01
    """Weight of the pace of decoding, its own and that of the sequences it joins, against time to first token."""
    hold: bool = True
    """May wait for a worker without room (the scheduler bounds it by `hold_ms`)."""
    hold_gain: float = 0.5
    """Seconds of prefill that each second of waiting has to save at least."""
    warm_up: float = 0.02
    """Share of requests that a cold worker gets although another one holds their prefix."""
    cold_share: float = 0.1
    """A worker is cold that holds less than this share of what the fullest one holds."""


class Fairlead:
    """Marginal cost in seconds over all workers, with room or without; the policy keeps no state."""

    hears = NONE

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._prefixes = knowledge.prefixes
        self._seed = knowledge.rng.getrandbits(64)

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        best_cost, best, full = float("inf"), None, []
        for worker in workers:
            matched = matches.get(worker.id, 0)
            if worker.room.open and worker.admits(request, matched):
                cost = max(0.0, worker.room.expected_at - now) + self._cost(request, worker, matched)
                if cost < best_cost:
                    best_cost, best = cost, worker
            elif matched:
                full.append(worker)
        if best is None:
            return None
        if full and self._settings.hold and (hold := self._hold(request, matches, full, best, best_cost, now=now)):
            return hold
        return self._place(request, matches, workers, best, best_cost)

    def _hold(
        self,
        request: RequestView,
        matches: Matches,
        full: Sequence[WorkerView],
        best: WorkerView,
        best_cost: float,
        *,
        now: float,
    ) -> Hold | None:
        """Wait for the cheapest of the full workers, if that is cheaper than the best with room and worth it."""
        cheapest, chosen, chosen_wait = best_cost, None, 0.0
        for worker in full:
            wait = _wait(worker, now)
            if wait < cheapest:
                cost = wait + self._cost(request, worker, matches[worker.id])
                if cost < cheapest:
                    cheapest, chosen, chosen_wait = cost, worker, wait
        if chosen is None:
            return None
        there, here = matches[chosen.id], matches.get(best.id, 0)
        saved = _prefill(request, here, best) - _prefill(request, there, chosen)
        return Hold(chosen.id, now + chosen_wait) if saved > self._settings.hold_gain * chosen_wait else None

    def on(self, event: Event) -> None:
        """Everything it needs is the scheduler's knowledge."""

    def _cost(self, request: RequestView, worker: WorkerView, matched: int) -> float:
        """Seconds that the request would add to the sum of all completion times, from when it starts."""
        profile, batch, context = worker.profile, worker.sequences, worker.decode_tokens
        prompt, answer, harm = request.input_tokens, request.expected_output_tokens, self._settings.harm
        prefill = profile.prefill_s(prompt - matched if prompt > matched else 1, matched)
        after = profile.step_s(batch + request.sequences, context + prompt * request.sequences)
        pace = answer * after
        if batch:
            pace += harm * batch * answer * (after - profile.step_s(batch, context))
        return prefill * (1 + harm * batch) + self._settings.decode * pace

    def _place(
        self,
        request: RequestView,
        matches: Matches,
        workers: Sequence[WorkerView],
        best: WorkerView,
        cost: float,
    ) -> Place:
        matched = matches.get(best.id, 0)
        if matched and self._lucky(request) and (cold := self._cold(request, matches, workers)):
            return Place(Placement(cold.id), Reason.WARM_UP, matches.get(cold.id, 0), cost)
        longest = max(matches.values(), default=0)
        if not longest:
            reason = Reason.MISS
        elif matched == longest:
            reason = Reason.HIT
        else:
            reason = Reason.SPILL
        return Place(Placement(best.id), reason, matched, cost)

    def _lucky(self, request: RequestView) -> bool:
        return draw(request, self._seed) < self._settings.warm_up * 2**64

    def _cold(self, request: RequestView, matches: Matches, workers: Sequence[WorkerView]) -> WorkerView | None:
        """A worker with room that holds next to nothing, the emptiest one."""
        held = {worker.id: self._prefixes.held_tokens(worker.id) for worker in workers}
        bound = self._settings.cold_share * max(held.values())
        cold = [w for w in workers if held[w.id] < bound and w.admits(request, matches.get(w.id, 0))]
        return min(cold, key=lambda worker: held[worker.id], default=None)


def _wait(worker: WorkerView, now: float) -> float:
    """Seconds until a worker without room is expected to have some.

    What is overdue has been predicted too short, and is taken to last as long again; at least to the next step.
    """
    return max(abs(worker.room.expected_at - now), worker.profile.step_s(worker.sequences, worker.decode_tokens))


def _prefill(request: RequestView, matched: int, worker: WorkerView) -> float:
    """Seconds of computing what of its prompt the worker does not hold."""
    return worker.profile.prefill_s(max(1, request.input_tokens - matched), matched)
