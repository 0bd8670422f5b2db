"""What a running request has taken from its workers and the prefix trees, and gives back exactly once.

Taken together in `start`: room for its prefill, its sequences and their KV, a pin on its prompt's path. The
prefill is given back at the first token, the rest in `release`; a leg that never had a first token gives back
both there.
"""

from dataclasses import dataclass

from policies.lengths import Lengths
from policies.load import Leg, Load
from policies.model import Matches, Placement, RequestView, reserve
from policies.prefixes import Pinned, Prefixes
from policies.roster import Roster

_PREDICTED_TOKENS = 32
"""Per predicted event of an answer that is not streamed, all its sequences together."""
_MIN_STEP_S = 1e-3


@dataclass(slots=True, eq=False)
class Running:
    """One leg and those it has taken from."""

    leg: Leg
    prefiller: Load
    decoder: Load
    pinned: Pinned | None
    matched_tokens: int
    """Of the prompt, in the decode worker's cache at the start."""

    @property
    def predictable(self) -> bool:
        """Whether a first token, or more of the expected answer, is still to come."""
        return self.leg.first_token_at is None or self.leg.output_tokens < self.leg.reserved

    def predicted_tokens(self) -> int:
        """Output tokens of the next predicted event."""
        return min(_PREDICTED_TOKENS, self.leg.reserved - self.leg.output_tokens)

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
        pinned = self._prefixes.insert(placement.decode, request, now)
        decoder.pin(self._prefixes.pinned_tokens(placement.decode))
        return Running(leg, prefiller, decoder, pinned, matches.get(placement.decode, 0))

    def end_prefill(self, running: Running, now: float, *, finished: bool) -> None:
        """The prompt is computed, or will never be; nothing the second time."""
        if running.leg.prefilling:
            running.leg.prefilling = False
            running.prefiller.end_prefill(running.leg, now, finished=finished)

    def first_token(self, running: Running, now: float) -> None:
        self.end_prefill(running, now, finished=True)
        running.leg.first_token_at = now
        running.decoder.start_decode(running.leg)

    def release(self, running: Running, now: float, *, finished: bool) -> None:
        """Give back everything that is still held; the only place that does."""
        self.end_prefill(running, now, finished=finished)
        running.decoder.end_sequences(running.leg, now)
        if running.pinned is not None:
            self._prefixes.release(running.pinned, now)
        running.decoder.pin(self._prefixes.pinned_tokens(running.leg.placement.decode))
        self._roster.rest(running.prefiller)
        self._roster.rest(running.decoder)

    def learn(self, running: Running, output_tokens: int, now: float) -> None:
        """The worker has answered in full, with so many tokens."""
        request = running.leg.request
        if output_tokens > 0:
            running.decoder.saw_answer(running.leg, output_tokens, now)
            tokens = output_tokens / request.sequences
            self._lengths.saw(request.client, request.line, request.input_tokens, tokens, request.length)

    def forget(self, running: Running) -> None:
        """The decode worker has not computed the prompt beyond what it held before."""
        leg = running.leg
        self._prefixes.forget(leg.placement.decode, leg.request, running.matched_tokens)
