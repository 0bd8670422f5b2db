"""What a running request has taken from its workers and the prefix trees, and gives back exactly once.

Taken together in `start`: room for its prefill, its sequences and their KV, a pin on its prompt's path. The
prefill is given back at the first token, the rest in `release`; a leg that never had a first token gives back
both there. Of a pair, the prefill worker gives room for the prefill and the prompt, with a pin of its own, all
of it until `prefill_done`; the decode worker gives the rest.
"""

from dataclasses import dataclass

from policies.estimates.answer_length import Lengths
from policies.fleet.fleet import Roster
from policies.fleet.leg import Leg
from policies.fleet.worker import Load
from policies.model import LegFailure, Matches, Placement, RequestView, Usage, WorkerId, reserve
from policies.prefixes.index import Pinned, Prefixes

_PREDICTED_TOKENS = 32
"""Per predicted event of an answer that is not streamed, all its sequences together."""
_MIN_STEP_S = 1e-3


@dataclass(slots=True, eq=False)
class Running:
    """One leg and those it has taken from."""

    leg: Leg
    prefiller: Load
    decoder: Load
    pinned: list[Pinned | None]
    """The prompt's path at the decode worker, then at the prefill worker of a pair as long as that holds it."""
    matches: Matches
    """Of the prompt, in the workers' caches at the start."""
    foreseen: int
    """Output tokens expected at the start: no more are predicted of an answer that is not seen."""

    @property
    def predictable(self) -> bool:
        """Whether a first token, or more of the expected answer, is still to come."""
        return self.leg.first_token_at is None or self.leg.output_tokens < self.foreseen

    def predicted_tokens(self) -> int:
        """Output tokens of the next predicted event."""
        return min(_PREDICTED_TOKENS, self.foreseen - self.leg.output_tokens)

    def next_prediction(self, due: float, now: float) -> float:
        """When the event after the one that was `due` is; a driver that asks late does not hear all it missed."""
        per_sequence = -(-_PREDICTED_TOKENS // self.leg.request.sequences)
        step = max(
            self.decoder.profile.decode_s(per_sequence, self.decoder.sequences, self.decoder.decode_tokens),
            _MIN_STEP_S,
        )
        return max(due, now - step) + step


class Taking:
    """Takes and gives back on behalf of requests; knows nothing of queues, tickets and policies."""

    def __init__(self, roster: Roster, prefixes: Prefixes, lengths: Lengths) -> None:
        self._roster = roster
        self._prefixes = prefixes
        self._lengths = lengths

    def start(self, request: RequestView, placement: Placement, matches: Matches, now: float) -> Running:
        computes = placement.prefill or placement.decode
        extend = max(1, request.input_tokens - matches.get(computes, 0))
        leg = Leg(request, placement, extend, reserve(request), now, request.input_tokens)
        prefiller, decoder = self._roster[computes], self._roster[placement.decode]
        prefiller.start_prefill(leg, now)
        decoder.start_sequences(leg)
        pinned = [self._pin(decoder, request, now)]
        if leg.pair:
            prefiller.start_prompt(leg)
            pinned.append(self._pin(prefiller, request, now))
        return Running(leg, prefiller, decoder, pinned, matches, leg.reserved)

    def end_prefill(self, running: Running, now: float, *, finished: bool) -> None:
        """The prompt is computed, or will never be, or that was not seen; nothing the second time."""
        leg = running.leg
        if not leg.prefilling:
            return
        leg.prefilling = False
        running.prefiller.end_prefill(leg, now, finished=finished)
        if leg.pair:
            running.prefiller.end_prompt(leg)
            self._unpin(running.prefiller, running.pinned.pop(), now)
            self._roster.rest(running.prefiller)
        else:
            self._roster.gave(running.prefiller)

    def prefill_done(self, running: Running, now: float) -> None:
        """The prefill worker of a pair has said that it is done; nothing the second time, or for one worker."""
        leg = running.leg
        if not leg.pair or not leg.prefilling:
            return
        self._roster.heard(running.prefiller, now)
        self.end_prefill(running, now, finished=True)
        leg.prefilled_at = now
        if leg.request.streams:
            running.decoder.expect_sign(now)

    def first_token(self, running: Running, now: float) -> None:
        leg = running.leg
        # Of a pair it comes from the other worker, and says nothing of when the prefill was done.
        self.end_prefill(running, now, finished=not leg.pair)
        self._no_first_token_due(running)
        if leg.request.streams:
            self.heard(running, now)
        leg.first_token_at = now
        running.decoder.start_decode(leg)

    def output(self, running: Running, tokens: int, now: float) -> None:
        """The answers have grown; once they are as long as expected, they are expected to be longer."""
        leg, request = running.leg, running.leg.request
        if request.streams:
            self.heard(running, now)
        running.decoder.saw_output(leg, tokens)
        self._roster.eases(running.decoder)
        if leg.output_tokens >= leg.reserved:
            already = leg.output_tokens // request.sequences
            length = self._lengths.given(
                request.client, request.line, request.input_tokens, request.max_output_tokens, already
            )
            running.decoder.expect_output(leg, length.expected * request.sequences)

    def heard(self, running: Running, now: float) -> None:
        """The worker that answers has given something back."""
        self._roster.heard(running.decoder, now)

    def release(self, running: Running, now: float, *, finished: bool) -> None:
        """Give back everything that is still held; the only place that does."""
        self.end_prefill(running, now, finished=finished and not running.leg.pair)
        self._no_first_token_due(running)
        running.decoder.end_sequences(running.leg, now)
        self._unpin(running.decoder, running.pinned.pop(), now)
        self._roster.rest(running.decoder)

    def found(self, running: Running, cached_tokens: int) -> None:
        """The worker has said how much of the prompt it found in its cache."""
        request, pinned = running.leg.request, running.pinned[0]
        self._prefixes.answered(running.decoder.facts.id, request, running.matches, cached_tokens)
        if pinned is not None:
            self._prefixes.continued(pinned, cached_tokens)

    def generated(self, running: Running, usage: Usage | None) -> None:
        """The answer stands behind the prompt in the cache of who gave it: before `release`."""
        leg, pinned = running.leg, running.pinned[0]
        if pinned is None:
            return
        if usage is None:
            self._prefixes.generated(pinned, leg.request.input_tokens, leg.output_tokens)
        else:
            self._prefixes.generated(pinned, usage.input_tokens, usage.output_tokens)

    def learn(self, running: Running, output_tokens: int, now: float) -> None:
        """The worker has answered in full, with so many tokens."""
        request = running.leg.request
        if output_tokens > 0:
            running.decoder.saw_answer(running.leg, output_tokens, now)
            tokens = output_tokens / request.sequences
            self._lengths.saw(request.client, request.line, request.input_tokens, tokens, request.length)

    def failed(self, running: Running, worker: WorkerId, reason: LegFailure) -> None:
        """What was taken to be in caches by now, and is not: after `release`.

        Who could not be reached has computed nothing, and what a failed prefill worker had was handed to nobody.
        """
        leg = running.leg
        if reason is LegFailure.CONNECT:
            self._forget(worker, running)
        if leg.pair and (worker == leg.placement.prefill or reason is LegFailure.HANDOVER):
            self._forget(leg.placement.decode, running)

    def _forget(self, worker: WorkerId, running: Running) -> None:
        self._prefixes.forget(worker, running.leg.request, running.matches.get(worker, 0))

    def _pin(self, load: Load, request: RequestView, now: float) -> Pinned | None:
        pinned = self._prefixes.insert(load.facts.id, request, now)
        load.pin(self._prefixes.pinned_tokens(load.facts.id))
        return pinned

    def _unpin(self, load: Load, pinned: Pinned | None, now: float) -> None:
        if pinned is not None:
            self._prefixes.release(pinned, now)
        load.pin(self._prefixes.pinned_tokens(load.facts.id))

    def _no_first_token_due(self, running: Running) -> None:
        leg = running.leg
        if leg.prefilled_at is not None and leg.request.streams and leg.first_token_at is None:
            running.decoder.expect_no_sign()
