"""The port's answering half, in the same process: each message goes to those whom it concerns.

    admit ──► quota ──► scheduler of the model's pool ──► Dispatch, once there is room
    failed ─► worker health, metrics, log (`attempt_outcomes`) ──► scheduler ──► the next Dispatch

Invariants: `_requests` holds exactly the requests that have been admitted and have not ended; each of them counts
as open on at most one worker, and once in its account. Every one leaves by `_end`.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from policies import model as policies
from policies.fleet.fleet import MAX_SEQUENCES
from policies.model import AttemptFailure, Outcome, RequestView, Usage, WorkerId
from router.control.attempt_outcomes import OUTCOMES, Effect
from router.control.dispatcher import Admitted, Pool
from router.control.histories import Attempted, Histories, History
from router.control.pair_compatibility import PairCompatibility
from router.control.parties.identity import Clients
from router.control.parties.quotas import Lease
from router.control.pools import Member, Pools
from router.control.refused import Refused
from router.control.response_owners import ResponseOwners
from router.control.seams import Seams
from router.control.token_ratio import TokenRatio
from router.control.view import key_bytes, request_view
from router.port import (
    Dispatch,
    Facts,
    Failed,
    Identity,
    Reject,
    RejectKind,
    RouteTable,
    Settled,
    Unscheduled,
    shown,
)
from workers.fleet.attribution import Attribution
from workers.fleet.worker import State, Worker

_log = logging.getLogger("fairlead.gateway")

_LONGEST_ADAPTER = 256
_LONGEST_RESPONSE_ID = 256


class WorkerHealth(Protocol):
    """Hears how requests fare on a worker: the fleet."""

    def request_ok(self, worker_id: str) -> None: ...

    def request_failed(
        self, worker_id: str, why: str, *, refused: bool = False, connect: bool = False
    ) -> None: ...

    def request_at_fault(self, worker_id: str, why: str) -> None: ...

    async def look_again(self) -> None: ...

    def resolve_adapter(self, name: str) -> bool: ...

    def adapter_unknown(self, worker_id: str, name: str) -> None: ...


class _Request:
    """One request between `admit` and its end."""

    __slots__ = (
        "admitted",
        "attempt",
        "attribution",
        "decode",
        "facts",
        "history",
        "lease",
        "member",
        "pool",
        "prefill",
        "seam",
        "tried",
        "why",
    )

    def __init__(self, facts: Facts | Unscheduled, pool: Pool, lease: Lease, attribution: Attribution) -> None:
        self.facts = facts
        self.attribution = attribution
        """Whose fault its failed attempts are."""
        self.pool = pool
        self.lease = lease
        self.admitted: Admitted | None = None
        """Its place in the scheduler; None: it passes without."""
        self.attempt = 0
        self.decode: WorkerId = ""
        self.prefill: WorkerId | None = None
        """Of the present attempt, until the prompt is computed."""
        self.member: Member | None = None
        """The worker on which it counts as open."""
        self.seam = False
        """It has a place among the streams that change their worker."""
        self.tried: set[WorkerId] = set()
        """Workers that an unscheduled request has failed on."""
        self.why = ""
        """What the last failure said."""
        self.history: History | None = None
        """For operators; None: it passes without the scheduler."""


class ControlPlane:
    """Implements `port.Control`. `count_failure` is told of each failed attempt.

    `attempts`: how many workers a request that is not scheduled is tried on at most. `seams`: how many streams of
    dead workers may be on their way to another one.
    """

    def __init__(
        self,
        pools: Pools,
        clients: Clients,
        health: WorkerHealth,
        count_failure: Callable[[WorkerId, AttemptFailure], None],
        clock: Callable[[], float],
        *,
        attempts: int,
        seams: int = 64,
    ) -> None:
        self.attempts = attempts
        self.seams = Seams(seams)
        self.owners = ResponseOwners()
        self.pairs = PairCompatibility()
        self.histories = Histories()
        self.ratio = TokenRatio()
        self._pools = pools
        self._clients = clients
        self._health = health
        self._count_failure = count_failure
        self._clock = clock
        self._requests: dict[str, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def under_way(self) -> Iterator[tuple[History, Pool]]:
        """The requests that wait or run, by arrival, each with its pool."""
        for request in self._requests.values():
            if request.history is not None:
                yield request.history, request.pool

    # -- messages

    def identify(self, keys: tuple[bytes, ...], user: str | None, address: str | None = None) -> Identity | Reject:
        try:
            return self._clients.identify(keys, user, address, self._clock())
        except Refused as refused:
            return refused.reject

    def routes(self) -> RouteTable:
        return self._pools.routes()

    async def look_again(self, model: str) -> None:
        await self._health.look_again()
        known = self._pools.routes().find(model)
        if isinstance(known, Reject) and known.kind is RejectKind.NO_MODEL and _may_be_an_adapter(model):
            self._health.resolve_adapter(model)

    async def admit(self, facts: Facts | Unscheduled) -> Dispatch | Reject:
        try:
            request = self._schedule(facts) if isinstance(facts, Facts) else self._pass(facts)
        except Refused as refused:
            if isinstance(facts, Facts):
                self._keep_refused(facts, refused.reject)
            return refused.reject
        return await self._next(request)

    def _keep_refused(self, facts: Facts, reject: Reject) -> None:
        """The history of a request that was not let in."""
        now = self._clock()
        history = History(facts.id, facts.identity.client, facts.model, arrived=now - facts.age_s, queued_at=now)
        history.outcome, history.why, history.ended_at = Outcome.REJECTED, reject.message, now
        self.histories.keep(history)

    def first_token(self, request: str) -> None:
        found = self._requests.get(request)
        if found is not None and found.admitted is not None:
            found.attribution.decided()
            self._over_the_seam(found)
            found.admitted.first_token()
            if found.history is not None and found.history.attempts:
                found.history.attempts[-1].first_token_at = self._clock()

    def prefill_done(self, request: str) -> None:
        found = self._requests.get(request)
        if found is not None and found.admitted is not None and found.prefill is not None:
            self._health.request_ok(found.prefill)
            found.prefill = None
            self._occupy(found, found.decode)
            found.admitted.prefill_done()

    def output(self, request: str, tokens: int) -> None:
        found = self._requests.get(request)
        if found is not None and found.admitted is not None:
            found.admitted.output(tokens)

    def stored(self, request: str, response: str) -> None:
        found = self._requests.get(request)
        if found is not None:
            self.owners.keep(response, found.decode, found.facts.identity.key_owner)

    async def failed(self, failure: Failed) -> Dispatch | Reject | None:
        request = self._requests.get(failure.id)
        if request is None:
            return None
        worker, reason = self._judge(request, failure)
        row = OUTCOMES[reason]
        _log.log(row.level, "request %s: attempt %d on %s: %s", failure.id, request.attempt, worker, failure.why)
        at_fault = False
        if row.effect is Effect.FAILED:
            kind = reason.value if failure.status is None else f"{reason.value} {failure.status}"
            at_fault = request.attribution.failed(worker, kind, failure.why)
        elif row.effect is not Effect.NONE:
            self._health.request_failed(
                worker, failure.why, refused=row.effect is Effect.LEAVING, connect=row.effect is Effect.UNREACHABLE
            )
        self._count_failure(worker, reason)
        self._vacate(request)
        request.why = failure.why
        self._note_failure(request, worker, reason)
        admitted = request.admitted
        resumes = failure.resume_tokens is not None and admitted is not None
        if reason is AttemptFailure.CLIENTS_FAULT or (at_fault and (resumes or not failure.answering)):
            if admitted is not None:
                admitted.settle(Usage(0, 0), Outcome.FAILED if at_fault else Outcome.REFUSED)
            self._end(request, Outcome.FAILED if at_fault else Outcome.REFUSED)
            return _last_words(reason, failure)
        if resumes and admitted is not None:
            return await self._resume(request, admitted, failure, reason, worker)
        computed = self._computed(request) if failure.answering else 0
        if admitted is not None:
            # More than zero says that the client has seen a part of the answer, so that nothing may start anew.
            admitted.failed(reason, 1 if failure.answering else 0, worker)
        if failure.answering:
            self._end(request, Outcome.FAILED, computed)
            return None
        request.tried.add(worker)
        if admitted is None and not self._may_be_tried_elsewhere(request, reason):
            self._end(request, Outcome.FAILED)
            return _last_words(reason, failure)
        return await self._next(request)

    async def _resume(
        self, request: _Request, admitted: Admitted, failure: Failed, reason: AttemptFailure, worker: WorkerId
    ) -> Dispatch | Reject:
        """Where an answer goes on that has begun: decided as for any attempt, once the stream's turn has come."""
        if not request.seam:
            await self.seams.take()
            request.seam = True
        if request.facts.id not in self._requests:  # it has ended while it waited
            self._over_the_seam(request)
            return _reject_for(reason, failure.why)
        admitted.failed(reason, 0, worker, resume_tokens=failure.resume_tokens)
        return await self._next(request)

    def _over_the_seam(self, request: _Request) -> None:
        if request.seam:
            request.seam = False
            self.seams.give_back()

    def settled(self, end: Settled) -> None:
        request = self._requests.get(end.id)
        if request is None:
            return
        usage = end.usage
        computed = 0
        if request.admitted is not None:
            computed = usage.input_tokens + usage.output_tokens
            request.admitted.settle(usage, end.outcome)
            if end.exact:
                self._learn(request.facts, usage.input_tokens)
            if end.fetched and (dispatch := request.admitted.dispatch) is not None:
                placement = dispatch.place.placement
                if placement.prefill is not None:
                    self.pairs.worked(placement.prefill, placement.decode)
            if end.not_found:
                self._health.adapter_unknown(request.decode, request.admitted.view.served_name)
            self._health.request_ok(request.prefill or request.decode)
            if request.history is not None:
                request.history.usage = usage
        self._end(request, end.outcome, computed)

    def cancelled(self, request: str) -> None:
        found = self._requests.get(request)
        if found is not None:
            self._end(found, Outcome.CANCELLED, self._computed(found))

    def _learn(self, facts: Facts | Unscheduled, input_tokens: int) -> None:
        """What a worker reports of a prompt says how many tokens a byte has, if the bytes are all of it."""
        if isinstance(facts, Facts) and facts.unit_bytes == 1 and facts.all_there:
            self.ratio.saw(facts.model, key_bytes(facts), len(facts.media), input_tokens)

    # -- taking in

    def _schedule(self, facts: Facts) -> _Request:
        """Into the scheduler, past the client's own limits."""
        pool = self._pool(facts.model)
        now = self._clock()
        self._check_references(facts)
        holder = self.owners.find(facts.previous_response, facts.identity.key_owner)
        view = request_view(
            facts,
            pool.scheduler.lengths,
            ratio=self.ratio,
            pinned=holder if holder in self._pools.members else None,
            now=now,
        )
        each = view.max_output_tokens if view.max_output_tokens is not None else view.expected_output_tokens
        request = self._admit(facts, pool, view.input_tokens + each * view.sequences, now)
        history = request.history = History(
            facts.id, view.client, view.served_name, arrived=view.arrived, queued_at=now
        )
        history.input_tokens, history.exact = view.input_tokens, facts.input_tokens is not None
        request.admitted = pool.submit(view)
        return request

    def _pass(self, facts: Unscheduled) -> _Request:
        if facts.model is not None:
            pool = self._pool(facts.model)
        else:  # its holder decides, or without keys the 404 of any worker
            owner = facts.identity.key_owner
            holder = self.owners.find(facts.response, owner)
            if owner and holder is None:
                raise Refused(_not_stored("response_id", facts.response or ""))
            member = self._pools.members.get(holder or "")
            found = member.pool if member is not None else None
            first = next(iter(self._pools.by_model.values()), None)
            pool = found or first or self._pool("")
        return self._admit(facts, pool, 0, self._clock())

    def _check_references(self, facts: Facts) -> None:
        """Raises Refused where keys are needed and the request names what another key has stored.

        What is not known to be stored is refused in the same words: nothing says whose it is.
        """
        owner = facts.identity.key_owner
        if not owner:
            return
        for field, response in facts.references:
            if self.owners.find(response, owner) is None:
                raise Refused(_not_stored(field, response))
        if facts.response is None:
            return
        if len(facts.response) > _LONGEST_RESPONSE_ID:
            message = f"`request_id` has {len(facts.response)} characters; the most is {_LONGEST_RESPONSE_ID}."
            raise Refused(Reject(RejectKind.BAD_REQUEST, message, param="request_id"))
        if not self.owners.claim(facts.response, owner):
            message = "`request_id` is in use already; choose another one, or leave it out."
            raise Refused(Reject(RejectKind.BAD_REQUEST, message, param="request_id"))

    def _admit(self, facts: Facts | Unscheduled, pool: Pool, tokens: int, now: float) -> _Request:
        identity = facts.identity
        allowed = self._clients.models(identity.limits_of)
        if allowed is not None and facts.model is not None and facts.model not in allowed:
            self._check_allowed(facts.model, allowed)
        lease = self._clients.quota.admit(identity.account, self._clients.limits(identity.limits_of), tokens, now)
        request = self._requests[facts.id] = _Request(facts, pool, lease, Attribution(self._health))
        return request

    def _check_allowed(self, model: str, allowed: frozenset[str]) -> None:
        """Raises Refused for a model that stands in the list neither by itself nor by an alias."""
        if not any(self._pools.aliases.get(alias) == model for alias in allowed):
            known = ", ".join(sorted(allowed))
            message = f"This API key may not use the model `{shown(model)}`. It may use: {known}."
            raise Refused(Reject(RejectKind.NO_MODEL, message, param="model"))

    def _pool(self, served_name: str) -> Pool:
        pool = self._pools.find(served_name)
        if pool is None:
            raise Refused(_no_worker(served_name))
        return pool

    # -- deciding

    async def _next(self, request: _Request) -> Dispatch | Reject:
        if request.admitted is None:
            return self._pick(request)
        while True:
            decision = await request.admitted.place()
            if isinstance(decision, policies.Reject):
                rejection = _rejection(decision, request.why, request.pool)
                if request.history is not None:
                    history = request.history
                    history.reject, history.waits, history.why = decision.reason, decision.waits, rejection.message
                self._end(request, Outcome.REJECTED)
                return rejection
            placement, ticket = decision.place.placement, decision.ticket
            if placement.prefill is not None and self._misfit(
                request.admitted, placement.prefill, placement.decode
            ):
                continue
            request.attempt, request.decode, request.prefill = ticket.attempt, placement.decode, placement.prefill
            self._occupy(request, placement.prefill or placement.decode)
            view = decision.request
            if request.history is not None:
                request.history.attempts.append(Attempted(decision))
                request.history.output_tokens = view.expected_output_tokens * view.sequences
            return Dispatch(
                model=view.served_name,
                worker=placement.decode,
                prefill=placement.prefill,
                attempt=ticket.attempt,
                reason=decision.place.reason,
                matched_tokens=decision.place.matched_tokens,
                input_tokens=view.input_tokens,
                output_tokens=view.expected_output_tokens * view.sequences,
                waited_s=decision.waited_s,
                limits=request.lease.headers(self._clock()),
            )

    def _pick(self, request: _Request) -> Dispatch | Reject:
        """For a request that is not scheduled: the holder of its response, else the least busy worker."""
        facts = request.facts
        name = facts.model or request.pool.model
        response = facts.response if isinstance(facts, Unscheduled) else None
        holder = self._pools.members.get(self.owners.find(response, facts.identity.key_owner) or "")
        members = [m for m in self._usable(request) if m.worker.id not in request.tried]
        if holder is not None and holder.worker.id not in request.tried and _answers(holder.worker):
            members = [holder]
        if not members:
            self._end(request, Outcome.REJECTED)
            return _no_worker(name)
        member = min(members, key=lambda member: (member.worker.state is State.SUSPECT, member.open))
        request.attempt += 1
        request.decode = member.worker.id
        self._occupy(request, member.worker.id)
        limits = request.lease.headers(self._clock())
        return Dispatch(model=name, worker=member.worker.id, attempt=request.attempt, limits=limits)

    def _may_be_tried_elsewhere(self, request: _Request, reason: AttemptFailure) -> bool:
        """Whether a request that is not scheduled is given to another worker, as a scheduled one would be.

        A stored response whose worker is not known here is asked of each; without keys only, as nothing
        would say whose it is.
        """
        left = [m for m in self._usable(request) if m.worker.id not in request.tried]
        if reason is AttemptFailure.NOT_HERE:
            return bool(left) and not self._pools.keys_needed
        return bool(left) and (reason is AttemptFailure.CONNECT or request.attempt < self.attempts)

    def _usable(self, request: _Request) -> list[Member]:
        return self._pools.usable(request.facts.model or request.pool.model)

    def _misfit(self, admitted: Admitted, prefill: WorkerId, decode: WorkerId) -> bool:
        """Whether the two are known not to understand each other; then the request has been placed anew."""
        first, second = self._pools.members.get(prefill), self._pools.members.get(decode)
        if first is None or second is None:
            return False
        why = self.pairs.misfit(first.worker, second.worker, self._clock())
        if why is None:
            return False
        _log.debug("%s cannot hand KV over to %s: %s", prefill, decode, why)
        self._count_failure(decode, AttemptFailure.HANDOVER)
        admitted.failed(AttemptFailure.HANDOVER, 0, decode)
        return True

    def _judge(self, request: _Request, failure: Failed) -> tuple[WorkerId, AttemptFailure]:
        """Whose failure it is: a decode worker's error may be about KV that it could not fetch."""
        worker, reason = failure.worker, failure.reason
        dispatch = request.admitted.dispatch if request.admitted is not None else None
        prefill = None if dispatch is None else dispatch.place.placement.prefill
        if prefill is None or worker == prefill or reason is not AttemptFailure.ERROR:
            return worker, reason
        member = self._pools.members.get(prefill)
        if member is None or not member.worker.routable:
            return prefill, reason
        if failure.fetching and not failure.answering:
            self.pairs.failed(prefill, worker, failure.why, self._clock())
            return worker, AttemptFailure.HANDOVER
        return worker, reason

    # -- what a request holds

    def _occupy(self, request: _Request, worker: WorkerId) -> None:
        self._vacate(request)
        member = request.member = self._pools.members.get(worker)
        if member is not None:
            member.open += 1

    def _vacate(self, request: _Request) -> None:
        member, request.member = request.member, None
        if member is not None:
            self._pools.vacate(member)

    def _computed(self, request: _Request) -> int:
        """Tokens that have been computed for a request so far, prompt and answer; 0 while it waits."""
        if request.admitted is None:
            return 0
        return sum(request.pool.progress(request.admitted))

    def _note_failure(self, request: _Request, worker: WorkerId, reason: AttemptFailure) -> None:
        """For the history of the request's attempt."""
        if request.history is not None and request.history.attempts:
            attempt = request.history.attempts[-1]
            attempt.failed_at, attempt.failed_on = self._clock(), worker
            attempt.failure, attempt.why = reason, shown(request.why)

    def _end(self, request: _Request, outcome: Outcome, computed: int = 0) -> None:
        """Every path leads here, once: nothing of the request stays behind but its history.

        `computed`: the tokens that its client is charged in place of what was expected.
        """
        if self._requests.pop(request.facts.id, None) is None:
            return
        request.attribution.decided()
        self._over_the_seam(request)
        history = request.history
        if history is not None:
            history.outcome, history.ended_at = outcome, self._clock()
            if outcome is Outcome.CANCELLED:
                history.waits = request.pool.scheduler.waits(history.id)
            self.histories.keep(history)
        if request.admitted is not None:
            request.pool.forget(request.admitted)
        request.lease.settle(computed, self._clock())
        request.lease.release()
        self._vacate(request)


def _answers(worker: Worker) -> bool:
    """Whether it can be asked for what it stores: nothing new goes to a worker that drains, but this does."""
    return worker.routable or worker.state is State.DRAINING


def _may_be_an_adapter(name: str) -> bool:
    return len(name) <= _LONGEST_ADAPTER and name.isprintable()


def _no_worker(served_name: str) -> Reject:
    message = f"No worker can serve the model `{served_name}` now."
    return Reject(RejectKind.UNAVAILABLE, message, retry_after_s=2)


def _not_stored(field: str, response: str) -> Reject:
    """In vLLM's words. The same for what another client has stored and for what does not exist."""
    return Reject(RejectKind.NOT_FOUND, f"Response with id '{shown(response)}' not found.", param=field)


def _last_words(reason: AttemptFailure, failure: Failed) -> Reject:
    """What the client is told after the last attempt; what the worker answered, if it did, says it best."""
    if failure.status is not None:
        return Reject(RejectKind.RELAY, failure.why)
    return _reject_for(reason, failure.why)


def _reject_for(reason: AttemptFailure, why: str) -> Reject:
    row = OUTCOMES[reason]
    message = f"{row.last_words}: {why}" if row.tells else row.last_words
    return Reject(row.answer, message, retry_after_s=row.retry_after_s)


def _too_large(request: RequestView, pool: Pool) -> str:
    """As vLLM says it."""
    if request.sequences > MAX_SEQUENCES:
        return f"{request.sequences} answers are asked for; at most {MAX_SEQUENCES} are possible (`n`, prompts)."
    facts = [view.facts for view in pool.scheduler.able(request)]
    limits = [min(limit for limit in (one.max_model_len, one.kv_tokens) if limit) for one in facts]
    return (
        f"This model's maximum context length is {max(limits, default=0)} tokens. However, your prompt contains "
        f"{request.input_tokens} input tokens. Please reduce the length of the input prompt."
    )


def _rejection(reject: policies.Reject, why: str, pool: Pool) -> Reject:
    """What a client is told of the scheduler's reasons; `why` is what the last failed attempt said."""
    match reject.reason:
        case policies.RejectReason.QUEUE_FULL:
            return Reject(
                RejectKind.OVERLOADED, "Too many requests are waiting; come back later.", retry_after_s=5
            )
        case policies.RejectReason.WAITED_TOO_LONG:
            message = f"Timed out after {reject.waited_s:.3g} s waiting for a free worker."
            return Reject(RejectKind.OVERLOADED, message, retry_after_s=10)
        case policies.RejectReason.NO_WORKER:
            return _no_worker(reject.request.served_name)
        case policies.RejectReason.TOO_LARGE:
            return Reject(RejectKind.BAD_REQUEST, _too_large(reject.request, pool))
    return _reject_for(reject.last_failure or AttemptFailure.LOST, why)
