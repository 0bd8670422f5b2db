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

from policies.events import Event
from policies.knowledge import Knowledge
from policies.model import Hold, Matches, Place, Placement, Reason, RequestView, WorkerView
from policies.placement.random_choice import draw


@dataclass(frozen=True, slots=True)
class Settings:
    harm: float = 0.1
    """Weight of what the request does to others against its own latency."""
    decode: float = 0.03
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

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._prefixes = knowledge.prefixes
        self._seed = knowledge.rng.getrandbits(64)

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        open_cost, open_worker = float("inf"), None
        held_cost, held_worker = float("inf"), None
        for worker in workers:
            matched = matches.get(worker.id, 0)
            if worker.admits(request, matched):
                cost = max(0.0, worker.room.expected_at - now) + self._cost(request, worker, matched)
                if cost < open_cost:
                    open_cost, open_worker = cost, worker
            elif matched and self._settings.hold:
                cost = _wait(worker, now) + self._cost(request, worker, matched)
                if cost < held_cost:
                    held_cost, held_worker = cost, worker
        if open_worker is None:
            return None
        if held_worker is not None and held_cost < open_cost:
            wait = _wait(held_worker, now)
            saved = _prefill(request, matches.get(open_worker.id, 0), open_worker) - _prefill(
                request, matches[held_worker.id], held_worker
            )
            if saved > self._settings.hold_gain * wait:
                return Hold(held_worker.id, now + wait)
        return self._place(request, matches, workers, open_worker, open_cost)

    def on(self, event: Event) -> None:
        """Everything it needs is the scheduler's knowledge."""

    def _cost(self, request: RequestView, worker: WorkerView, matched: int) -> float:
        """Seconds that the request would add to the sum of all completion times, from when it starts."""
        profile = worker.profile
        prefill = _prefill(request, matched, worker)
        batch, context = worker.sequences, worker.decode_tokens
        answer = request.expected_output_tokens
        before = profile.step_s(batch, context)
        after = profile.step_s(batch + request.sequences, context + request.input_tokens * request.sequences)
        pace = answer * after + self._settings.harm * batch * answer * (after - before)
        return prefill * (1 + self._settings.harm * batch) + self._settings.decode * pace

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
