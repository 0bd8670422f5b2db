"""A routed request: placed by the scheduler, run on a worker or a pair, and on others if that fails.

identify ─► place ─► run a leg ─► answered
▲          │
└── failed ┘   before anything has reached the client
"""

import logging
from random import getrandbits
from typing import Any

from policies.model import AttemptFailure, Outcome, Placement, Reject, RejectReason, RequestView, WorkerId
from router.control.dispatcher import Admitted
from router.control.parties.identity import Client
from router.control.pools import Member, Route
from router.control.state import Gateway
from router.edge.api.parsed_request import ParsedRequest, Surface, parse
from router.edge.api.rewrite import for_prefill, for_worker
from router.edge.errors import Dialect, Overloaded, RequestError, Unavailable, WorkerFailed, WorkerTimeout
from router.edge.execution.attempt import Attempt, AttemptFailed
from router.edge.execution.kv_release import is_pushed
from router.edge.execution.lifecycle import Lifecycle
from router.edge.execution.prefill_attempt import PrefillAttempt, divisible
from router.edge.headers import to_worker
from router.edge.response import Receive, Scope, Send

_log = logging.getLogger("fairlead.gateway")

_DIALECTS = {Surface.MESSAGES: Dialect.ANTHROPIC, Surface.RESPONSES: Dialect.RESPONSES}


class ScheduledRequest(Lifecycle):
    """One request to one of the routed entry points."""

    __slots__ = ("_admitted", "_leg", "_route", "_sent_as", "_surface", "_why")

    def __init__(self, gateway: Gateway, surface: Surface, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(gateway, scope, receive, send, _DIALECTS.get(surface, Dialect.OPENAI))
        self._surface = surface
        self._route: Route | None = None
        self._admitted: Admitted | None = None
        self._leg: Attempt | None = None
        self._sent_as = self._id.encode()
        """The request's id as workers hear it."""
        self._why = ""
        """What the last failed leg said."""

    async def _serve(self, body: bytes) -> None:
        ask = parse(self._surface, body)
        del body  # `ask` has it, for as long as it may be sent
        client = self._client(ask.user)
        route = self._route = self._gateway.pools.route(ask.model)
        self._record.asked(ask, route.line, self._gateway.request_log)
        desk = self._gateway.tokenization.desks.get(route.pool.model)
        if desk is not None and ask.ids is None:
            ask.ids = await desk.ids(ask)
        await self._until_answered(self._place(ask, client, route), ask, route)

    def _end(self, now: float) -> None:
        if self._leg is not None:
            self._record.answered(self._leg)
        if self._admitted is not None and self._route is not None:
            self._route.pool.forget(self._admitted)
        super()._end(now)

    # -- placing

    def _place(self, ask: ParsedRequest, client: Client, route: Route) -> Admitted:
        """Into the scheduler, past the client's own limits."""
        view = self._view(ask, client, route)
        each = view.max_output_tokens if view.max_output_tokens is not None else view.expected_output_tokens
        self._lease = self._gateway.clients.quota.admit(
            client.account, client.limits, view.input_tokens + each * ask.sequences, self._gateway.loop.time()
        )
        self._admitted = route.pool.submit(view)
        return self._admitted

    def _view(self, ask: ParsedRequest, client: Client, route: Route) -> RequestView:
        gateway = self._gateway
        per_byte = gateway.scale.tokens_per_byte(route.line)
        input_tokens = ask.input_tokens(per_byte)
        lengths = route.pool.scheduler.lengths
        length = lengths.estimate(client.path, route.line, input_tokens, ask.max_output_tokens)
        holder = gateway.holders.find(ask.previous_response)
        return RequestView(
            id=f"{self._id}/{id(self):x}",  # two clients may choose the same id at the same time
            client=client.path,
            served_name=route.line,
            key=ask.key(per_byte),
            input_tokens=input_tokens,
            expected_output_tokens=length.expected,
            length=length,
            arrived=self._record.arrived,
            max_output_tokens=ask.max_output_tokens,
            sequences=ask.sequences,
            streams=ask.stream,
            weight=client.weight,
            priority=ask.priority,
            session=ask.session,
            media=ask.media,
            whole=not divisible(ask) or ask.max_output_tokens == 1,
            pinned=holder if holder in gateway.pools.members else None,
        )

    # -- legs, one after the other until one answers

    async def _until_answered(self, admitted: Admitted, ask: ParsedRequest, route: Route) -> None:
        while True:
            decision = await admitted.place()
            if isinstance(decision, Reject):
                raise _rejection(decision, self._why)
            self._record.placed(decision)
            if self._gateway.decision_headers:
                self._answer.explain(decision.place)
            try:
                await self._run(admitted, ask, route, decision.place.placement)
            except AttemptFailed as failure:
                level = logging.DEBUG if failure.reason is AttemptFailure.HANDOVER else logging.WARNING
                _log.log(level, "request %s: attempt %d: %s", self._id, decision.ticket.attempt, failure.why)
                self._failed(admitted, failure)
                if self._answer.started:
                    raise WorkerFailed(f"The worker broke off in mid-answer: {failure.why}") from failure
            else:
                return

    async def _run(self, admitted: Admitted, ask: ParsedRequest, route: Route, placement: Placement) -> None:
        """One attempt, from the decision to its answer."""
        if placement.prefill is not None:
            await self._run_pair(admitted, ask, route, placement.prefill, placement.decode)
        else:
            leg = self._leg = Attempt(admitted, ask, self._answer, self._gateway.holders, self._gateway.loop)
            self._sent_as = self._id.encode()
            leg.body = for_worker(ask, route.rewrite)
            await self._perform(leg, placement.decode)
            self._saw(leg, ask, route)

    async def _run_pair(
        self, admitted: Admitted, ask: ParsedRequest, route: Route, prefill: WorkerId, decode: WorkerId
    ) -> None:
        """A leg that computes the prompt, and one that goes on from there, unless the answer is over by then."""
        gateway = self._gateway
        self._fit(prefill, decode)
        # NIXL finds what it pushes by the request's id, which a client may have given to several requests.
        self._sent_as = f"{self._id}.{getrandbits(48):012x}".encode()
        first = self._leg = PrefillAttempt(admitted, ask, self._answer, gateway.holders, gateway.loop)
        second = Attempt(admitted, ask, self._answer, gateway.holders, gateway.loop)
        try:
            first.body = for_prefill(ask, route.rewrite)
            await self._perform(first, prefill)
            if first.outcome is None:
                admitted.prefill_done()
                self._leg, second.prompt_cached = second, first.prompt_cached
                second.body = for_worker(ask, route.rewrite, first.params)
                await self._perform(second, decode)
        except AttemptFailed as failure:
            if failure.worker == decode and failure.reason is AttemptFailure.ERROR and not failure.busy:
                self._not_fetched(failure, first, prefill)
            raise
        else:
            if first.params is not None and first.outcome is None:
                gateway.handovers.worked(prefill, decode)
        finally:
            if first.params is not None and _is_left(first.params, second):
                gateway.releases.release(route.line, first.params, prefill=prefill, decode=decode)
        self._saw(self._leg, ask, route)

    def _fit(self, prefill: WorkerId, decode: WorkerId) -> None:
        """Raises AttemptFailed where the two are known not to understand each other."""
        gateway = self._gateway
        misfit = gateway.handovers.misfit(
            self._member(prefill).worker, self._member(decode).worker, gateway.loop.time()
        )
        if misfit is not None:
            why = f"{prefill} cannot hand KV over to {decode}: {misfit}"
            failure = AttemptFailed(AttemptFailure.HANDOVER, why)
            failure.worker = decode
            raise failure

    def _not_fetched(self, failure: AttemptFailed, first: PrefillAttempt, prefill: WorkerId) -> None:
        """The decode worker answers with an error what it should have fetched from the prefill worker."""
        if not self._serves(prefill):
            failure.worker = prefill
        elif first.params is not None and not self._answer.started:
            failure.reason = AttemptFailure.HANDOVER
            gateway = self._gateway
            gateway.handovers.failed(prefill, failure.worker, failure.why, gateway.loop.time())

    async def _perform(self, leg: Attempt, worker: WorkerId) -> None:
        """One leg. Raises AttemptFailed, which names the worker."""
        gateway = self._gateway
        try:
            member = self._member(worker)
            headers = to_worker(self._scope, self._sent_as, member.headers)
            with gateway.pools.busy(member):
                await leg.run(member, self._target(), headers)
        except AttemptFailed as failure:
            failure.worker = worker
            raise
        gateway.fleet.request_ok(worker)

    def _member(self, worker: WorkerId) -> Member:
        member = self._gateway.pools.members.get(worker)
        if member is None:
            raise AttemptFailed(AttemptFailure.CONNECT, f"{worker} has left the fleet")
        return member

    def _saw(self, leg: Attempt, ask: ParsedRequest, route: Route) -> None:
        """Learn from what the worker reports how many tokens such a prompt has."""
        if leg.exact and leg.usage is not None:
            gateway = self._gateway
            gateway.scale.saw(route.line, leg.admitted.view.key, leg.usage.input_tokens)
            desk = gateway.tokenization.desks.get(route.pool.model)
            if desk is not None and ask.ids is not None:
                desk.saw(ask.surface, leg.admitted.view.input_tokens, leg.usage.input_tokens)

    def _serves(self, worker: WorkerId) -> bool:
        member = self._gateway.pools.members.get(worker)
        return member is not None and member.worker.routable

    def _failed(self, admitted: Admitted, failure: AttemptFailed) -> None:
        """Tell everybody concerned that an attempt has come to nothing."""
        self._why = failure.why
        if not failure.busy and failure.reason is not AttemptFailure.HANDOVER:
            self._gateway.fleet.request_failed(
                failure.worker,
                failure.why,
                refused=failure.reason is AttemptFailure.SHUTDOWN,
                connect=failure.reason is AttemptFailure.CONNECT,
            )
        self._gateway.metrics.leg_failed(failure.worker, failure.reason)
        # More than zero says that the client has seen a part of the answer, so that nobody may start anew.
        admitted.failed(failure.reason, 1 if self._answer.started else 0, failure.worker)


def _is_left(params: dict[str, Any], second: Attempt) -> bool:
    """Whether the prefill worker still holds its KV. Who refuses to go on says so, unless it is pushed to."""
    return second.exchange is None or (second.outcome is Outcome.REFUSED and is_pushed(params))


def _rejection(reject: Reject, why: str) -> RequestError:
    """What a client is told of the scheduler's reasons; `why` is what the last failed leg said."""
    if reject.reason is RejectReason.QUEUE_FULL:
        return Overloaded("Too many requests are waiting; come back later.", retry_after_s=5)
    if reject.reason is RejectReason.WAITED_TOO_LONG:
        return Overloaded(f"No worker had room for {reject.waited_s:.0f} s.", retry_after_s=10)
    if reject.reason is RejectReason.NO_WORKER:
        return Unavailable(f"No worker can serve the model `{reject.request.served_name}` now.", retry_after_s=2)
    if reject.last_failure is AttemptFailure.TIMEOUT:
        return WorkerTimeout(f"No worker answered in time; the last one: {why}")
    if reject.last_failure in (AttemptFailure.CONNECT, AttemptFailure.SHUTDOWN):
        return Unavailable(f"No worker could take the request; the last one: {why}", retry_after_s=2)
    return WorkerFailed(f"Every attempt failed; the last one: {why}")
