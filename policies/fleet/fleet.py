"""The workers of one pool, which of them could serve a request, and what each attempt takes from them.

Which workers could serve a request is asked for each request, so the answer is remembered by served name; what is
in flight changes a worker's view, not the answer. Suspect and stalled workers are in it only where there is no
other.

An attempt takes in `start`: room for its prefill, its sequences and their KV, and a pin on its prompt's path in
the prefix tree. The prefill is given back at the first token, the rest in `release`; an attempt without a first
token gives back both there. Of a pair, the prefill worker gives room for the prefill and the prompt, with a pin of
its own, all of it until `prefill_done`; the decode worker gives the rest.

Invariants: a worker id stands for one ledger, present or departed and never both, so that attempts still running
on a worker that left and came back are counted where they are; a departed one is kept only while something runs
there.
"""

import math
from functools import partial

from policies.estimates.answer_length import AnswerLengths
from policies.fleet.speed import PoolSpeed
from policies.fleet.worker import STALLED_S, Attempt, Worker
from policies.model import (
    AttemptFailure,
    Matches,
    Placement,
    RejectReason,
    RequestView,
    Usage,
    WorkerFacts,
    WorkerId,
    WorkerView,
)
from policies.prefixes.index import Pinned, Prefixes

MAX_SEQUENCES = 16384
"""Answers that one request may ask for: vLLM's own limit (`VLLM_MAX_N_SEQUENCES`)."""


class Fleet:
    """The workers of one pool.

    `window_s` and `window_tokens` bound the prefill in flight on each worker; `kv_margin` is the share of its KV
    cache that is left free. `prefixes` and `lengths` are told what attempts show.
    """

    def __init__(
        self,
        window_s: float,
        window_tokens: int | None,
        kv_margin: float = 0.0,
        *,
        prefixes: Prefixes | None = None,
        lengths: AnswerLengths | None = None,
    ) -> None:
        self._make = partial(
            Worker, window_s=window_s, window_tokens=window_tokens, kv_margin=kv_margin, pool=PoolSpeed()
        )
        self._prefixes = prefixes or Prefixes()
        self._lengths = lengths or AnswerLengths()
        self._workers: dict[WorkerId, Worker] = {}
        self._departed: dict[WorkerId, Worker] = {}
        self._by_served_name: dict[str, list[Worker]] = {}
        self.check_at = -math.inf
        """When to look for stalled workers again."""
        self.membership = 0
        """Counts changes of which workers may serve which requests."""

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._workers

    def __getitem__(self, worker: WorkerId) -> Worker:
        return self._workers[worker]

    # -- workers come, change and leave

    def update_facts(self, facts: WorkerFacts) -> bool:
        """Take in a worker, or replace what is known of it; returns whether it now serves or holds less."""
        worker = self._workers.get(facts.id)
        if worker is None:
            self._join(facts)
            return False
        before = worker.facts
        worker.update_facts(facts)
        if _service(before) != _service(facts):
            self._regroup()
        serves_less = (before.usable and not facts.usable) or not before.served_names <= facts.served_names
        return serves_less or _prompt_limit(facts) < _prompt_limit(before)

    def remove(self, worker_id: WorkerId) -> bool:
        """Let a worker leave; returns whether it was here."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return False
        worker.leave()
        if not worker.idle:
            self._departed[worker_id] = worker
        self._regroup()
        return True

    def _join(self, facts: WorkerFacts) -> None:
        worker = self._departed.pop(facts.id, None)
        if worker is None:
            worker = self._make(facts)
        else:
            worker.update_facts(facts)
        self._workers[facts.id] = worker
        self._regroup()

    def _regroup(self) -> None:
        """Forget which workers could serve what, after a change to that."""
        self._by_served_name.clear()
        self.membership += 1

    # -- attempts: what they take, and what they give back exactly once

    def start(self, request: RequestView, placement: Placement, matches: Matches, now: float) -> Attempt:
        """Dispatch a request: take what the attempt needs from its workers and the prefix trees."""
        computes = placement.prefill or placement.decode
        extend = max(1, request.input_tokens - matches.get(computes, 0))
        prefiller, decoder = self._workers[computes], self._workers[placement.decode]
        attempt = Attempt(request, placement, extend, now, prefiller=prefiller, decoder=decoder, matches=matches)
        prefiller.start_prefill(attempt, now)
        decoder.start_sequences(attempt)
        attempt.pinned.append(self._pin(decoder, request, now))
        if attempt.pair:
            prefiller.start_prompt(attempt)
            attempt.pinned.append(self._pin(prefiller, request, now))
        return attempt

    def prefill_done(self, attempt: Attempt, now: float) -> None:
        """The prefill worker of a pair is done; does nothing the second time, or for a single worker."""
        if not attempt.pair or not attempt.prefilling:
            return
        self.record_response(attempt.prefiller, now)
        self._end_prefill(attempt, now, finished=True)
        attempt.prefilled_at = now
        if attempt.request.streams:
            attempt.decoder.expect_response(now)

    def first_token(self, attempt: Attempt, now: float) -> None:
        """The first token has arrived, or is predicted to have."""
        # Of a pair it comes from the other worker, and says nothing of when the prefill was done.
        if attempt.prefilling:
            self._end_prefill(attempt, now, finished=not attempt.pair)
        if attempt.prefilled_at is not None:
            self._first_token_not_due(attempt)
        if attempt.request.streams:
            self.record_response(attempt.decoder, now)
        attempt.first_token_at = now
        attempt.decoder.start_decode(attempt)

    def record_output(self, attempt: Attempt, tokens: int, now: float) -> None:
        """The answers have grown by `tokens`; once they are as long as expected, expect them to be longer."""
        request, decoder = attempt.request, attempt.decoder
        if request.streams:
            self.record_response(decoder, now)
        decoder.record_output(attempt, tokens)
        if attempt.output_tokens >= attempt.reserved:
            already = attempt.output_tokens // request.sequences
            length = self._lengths.estimate_longer(
                request.client, request.served_name, request.input_tokens, request.max_output_tokens, already
            )
            decoder.expect_output_tokens(attempt, length.expected * request.sequences)

    def release(self, attempt: Attempt, now: float, *, finished: bool) -> None:
        """Give back everything that is still held: the only place that does."""
        if attempt.prefilling:
            self._end_prefill(attempt, now, finished=finished and not attempt.pair)
        if attempt.prefilled_at is not None:
            self._first_token_not_due(attempt)
        decoder = attempt.decoder
        decoder.end_sequences(attempt, now)
        self._unpin(decoder, attempt.pinned.pop(), now)
        if self._departed:
            self._drop_departed(decoder)

    def _end_prefill(self, attempt: Attempt, now: float, *, finished: bool) -> None:
        """The prompt is computed (`finished`), or will never be, or that was not seen: once per attempt."""
        attempt.prefilling = False
        prefiller = attempt.prefiller
        prefiller.end_prefill(attempt, now, finished=finished)
        if attempt.pair:
            prefiller.end_prompt(attempt)
            self._unpin(prefiller, attempt.pinned.pop(), now)
            self._drop_departed(prefiller)

    def _first_token_not_due(self, attempt: Attempt) -> None:
        """The decode worker of a pair whose prefill is done no longer owes a first token."""
        if attempt.request.streams and attempt.first_token_at is None:
            attempt.decoder.expect_no_response()

    def _pin(self, worker: Worker, request: RequestView, now: float) -> Pinned | None:
        pinned = self._prefixes.insert(worker.facts.id, request, now)
        worker.set_pinned(self._prefixes.pinned_tokens(worker.facts.id))
        return pinned

    def _unpin(self, worker: Worker, pinned: Pinned | None, now: float) -> None:
        if pinned is not None:
            self._prefixes.release(pinned, now)
        worker.set_pinned(self._prefixes.pinned_tokens(worker.facts.id))

    def _drop_departed(self, worker: Worker) -> None:
        """Forget a worker that has left once nothing runs there."""
        if worker.idle:
            self._departed.pop(worker.facts.id, None)

    # -- attempts: what is learned from them

    def record_cached(self, attempt: Attempt, cached_tokens: int) -> None:
        """The worker reports how much of the prompt it found in its cache."""
        request, pinned = attempt.request, attempt.pinned[0]
        self._prefixes.record_cached(attempt.decoder.facts.id, request, attempt.matches, cached_tokens)
        if pinned is not None and pinned.answer is not None:
            self._prefixes.record_continuation(pinned, cached_tokens)

    def record_answer(self, attempt: Attempt, usage: Usage | None) -> None:
        """The answer stands behind the prompt in the cache of the worker that gave it: call before `release`."""
        pinned = attempt.pinned[0]
        if pinned is None:
            return
        if usage is None:
            self._prefixes.record_answer(pinned, attempt.request.input_tokens, attempt.output_tokens)
        else:
            self._prefixes.record_answer(pinned, usage.input_tokens, usage.output_tokens)

    def learn(self, attempt: Attempt, output_tokens: int, now: float) -> None:
        """Learn speed and answer length from a complete answer of `output_tokens`, all its sequences together."""
        request = attempt.request
        if output_tokens > 0:
            if not request.resume_tokens:  # else another worker has computed some of it
                attempt.decoder.learn_from_answer(attempt, output_tokens, now)
            tokens, prompt = output_tokens / request.sequences, request.input_tokens - request.resume_tokens
            self._lengths.record(request.client, request.served_name, prompt, tokens, request.length)

    def record_failure(self, attempt: Attempt, worker: WorkerId, reason: AttemptFailure) -> None:
        """Correct what was believed to be in caches by now and is not: call after `release`.

        A worker that could not be reached has computed nothing, and what a failed prefill worker had was not
        handed over.
        """
        if reason is AttemptFailure.CONNECT:
            self._forget(worker, attempt)
        if attempt.pair and (worker == attempt.placement.prefill or reason is AttemptFailure.HANDOVER):
            self._forget(attempt.placement.decode, attempt)

    def _forget(self, worker: WorkerId, attempt: Attempt) -> None:
        self._prefixes.forget(worker, attempt.request, attempt.matches.get(worker, 0))

    # -- stalled workers

    def record_response(self, worker: Worker, now: float) -> None:
        """A worker has sent something: it is not stalled."""
        worker.record_response(now)
        if worker.stalled:
            self._update_stalled(worker, now)

    def check_stalled(self, now: float) -> None:
        """Find the workers that are stalled by now; nothing before `check_at`."""
        if now < self.check_at:
            return
        # A worker that falls silent from now on cannot be stalled before `STALLED_S` have passed.
        self.check_at = now + STALLED_S
        for worker in self._workers.values():
            if worker.responses_due or worker.stalled:  # all others are not, and most often those are most
                self._update_stalled(worker, now)
                if not worker.stalled:
                    self.check_at = min(self.check_at, worker.stalls_at())

    def next_check(self) -> float | None:
        """When to call `check_stalled` again; None: no worker owes a response."""
        return self.check_at if any(worker.responses_due for worker in self._workers.values()) else None

    def _update_stalled(self, worker: Worker, now: float) -> None:
        if worker.update_stalled(now):
            self._regroup()

    # -- questions

    def workers(self) -> list[Worker]:
        """Every worker on which something may be running, departed ones last."""
        return [*self._workers.values(), *self._departed.values()]

    def open_views(self) -> list[WorkerView]:
        """The workers that may be given requests and have room for something."""
        return [
            view
            for worker in self._workers.values()
            if worker.facts.usable and (view := worker.current_view or worker.view()).room.open
        ]

    def can_serve(self, request: RequestView) -> bool:
        """Whether any worker could serve the request, with room or without."""
        if request.pinned is None and not request.excluded:
            return bool(self._by_served_name.get(request.served_name) or self._serving(request.served_name))
        return any(worker.facts.serves(request) for worker in self._workers.values())

    def obstacle(self, request: RequestView) -> RejectReason | None:
        """Why no worker will ever run the request, with room or without; None if one may.

        Only prompts that are known exactly are judged by their length: an estimate leaves that to the engine,
        which refuses what is too long without computing anything. A suspect or stalled worker may recover, so it
        counts. If only a worker that is down could hold the prompt, no worker is there, but it is not too large.
        """
        if not self.can_serve(request):
            return RejectReason.NO_WORKER
        if request.sequences > MAX_SEQUENCES:
            return RejectReason.TOO_LARGE
        if not request.exact:
            return None
        prompt, serve_later = request.input_tokens, False
        for worker in self._workers.values():
            if prompt < _prompt_limit(worker.facts):
                if worker.facts.serves(request):
                    return None
                serve_later = serve_later or worker.facts.suits(request)
        return RejectReason.NO_WORKER if serve_later else RejectReason.TOO_LARGE

    def eligible(self, request: RequestView) -> list[WorkerView]:
        """The workers that could serve the request, with room or without."""
        if request.pinned is None and not request.excluded:
            workers = self._by_served_name.get(request.served_name) or self._serving(request.served_name)
            return [worker.current_view or worker.view() for worker in workers]
        serving = [worker for worker in self._workers.values() if worker.facts.serves(request)]
        return [worker.view() for worker in _trusted(serving)]

    def _serving(self, served_name: str) -> list[Worker]:
        """Find and remember the workers for a served name."""
        serving = [w for w in self._workers.values() if w.facts.usable and served_name in w.facts.served_names]
        workers = _trusted(serving)
        if workers:  # names that no worker serves are not collected
            self._by_served_name[served_name] = workers
        return workers


def _prompt_limit(facts: WorkerFacts) -> float:
    """What a prompt has to be shorter than, in tokens: the model's context and the KV cache."""
    return min((limit for limit in (facts.max_model_len, facts.kv_tokens) if limit is not None), default=math.inf)


def _service(facts: WorkerFacts) -> tuple[object, ...]:
    """What of a worker decides which workers may serve a request, and in which pairs."""
    return facts.usable, facts.suspect, facts.served_names, facts.stages


def _trusted(workers: list[Worker]) -> list[Worker]:
    """Those that are neither suspect nor stalled; all of them if there is no such worker."""
    return [worker for worker in workers if not (worker.facts.suspect or worker.stalled)] or workers
