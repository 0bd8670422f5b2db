"""A routed request: placed by control, run on a worker or a pair, and on others if that fails.

identify ─► admit ─► run an attempt ─► answered
              ▲             │
              └── failed ───┘   before anything has reached the client
"""

import asyncio
from collections.abc import Mapping
from random import getrandbits
from typing import Any

from msgspec.structs import replace

from policies.model import AttemptFailure, Outcome, Usage, WorkerId
from router.edge.api.cache_salt import salted
from router.edge.api.continuable import Continuation, continuation_of
from router.edge.api.facts import facts_of
from router.edge.api.parsed_request import ParsedRequest, Surface
from router.edge.api.rewrite import for_prefill, for_worker
from router.edge.api.stream_record import NO_IDS, StreamRecord
from router.edge.errors import BadRequest, Dialect, WorkerFailed
from router.edge.execution.attempt import Attempt
from router.edge.execution.background import end_of
from router.edge.execution.continuations import BROKEN, CONTINUED, Continuations
from router.edge.execution.continued_attempt import TARGET, ContinuedAttempt, SeamFailed, closing
from router.edge.execution.heartbeat import Heartbeat
from router.edge.execution.kv_release import KvReleases, is_pushed
from router.edge.execution.lifecycle import ClientGone, Lifecycle
from router.edge.execution.prefill_attempt import PrefillAttempt
from router.edge.execution.recorder import Recorder
from router.edge.execution.stream_death import Death, death_of
from router.edge.execution.tokenizer import Tokenizer
from router.edge.execution.worker_answer import AttemptFailed, WholeAnswer
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.headers import to_worker
from router.edge.intake import Intake
from router.edge.pieces import Body
from router.edge.response import Receive, Scope, Send
from router.edge.trust import is_stored_id
from router.port import Control, Dispatch, Failed, Route, Settled

_STREAM_GRACE_S = 1.0
"""Between the end of a response in the background and that of its stream, which usually says so itself."""
_SILENT = "it gives no token ids although it is asked for them"
_DIALECTS = {Surface.MESSAGES: Dialect.ANTHROPIC, Surface.RESPONSES: Dialect.RESPONSES}


class ScheduledRequest(Lifecycle):
    """One request to one of the routed entry points. `explains`: answers say which worker gave them, and why.

    `heartbeat_s`: how often a stream that waits is sent a comment; None: never.
    """

    __slots__ = (
        "_background",
        "_broke_at",
        "_connections",
        "_continuations",
        "_death",
        "_explains",
        "_heartbeat",
        "_heartbeat_s",
        "_last",
        "_releases",
        "_sent_as",
        "_surface",
        "_tokenizers",
    )

    def __init__(
        self,
        *,
        control: Control,
        intake: Intake,
        recorder: Recorder,
        connections: WorkerConnections,
        continuations: Continuations,
        tokenizers: Mapping[str, Tokenizer],
        releases: KvReleases,
        surface: Surface,
        scope: Scope,
        receive: Receive,
        send: Send,
        explains: bool,
        heartbeat_s: float | None,
    ) -> None:
        super().__init__(
            control=control,
            intake=intake,
            recorder=recorder,
            scope=scope,
            receive=receive,
            send=send,
            dialect=_DIALECTS.get(surface, Dialect.OPENAI),
        )
        self._connections = connections
        self._continuations = continuations
        self._tokenizers = tokenizers
        self._releases = releases
        self._surface = surface
        self._explains = explains
        self._heartbeat_s = heartbeat_s
        self._heartbeat: Heartbeat | None = None
        self._last: Attempt | None = None
        self._death: Death | None = None
        """How the last attempt's worker died, if it did."""
        self._broke_at: float | None = None
        """When a stream broke off that is on its way to another worker."""
        self._background = False
        """The worker goes on with it although the client may leave."""
        self._sent_as = self._id.encode()
        """The request's id as workers hear it."""

    async def _serve(self, body: Body) -> None:
        ask = await self._intake.bodies.read(self._surface, body)
        del body  # `ask` has it, for as long as it may be sent
        self._holding.add_request(len(ask.prompt))
        self._background = self._is_background(ask)
        self._named(ask.request_id)
        if self._heartbeat_s is not None and ask.stream:
            self._heartbeat = Heartbeat(self._answer, self._heartbeat_s, self._loop)
        identity = self._identify(ask.user)
        if identity.cache_group:
            salted(ask, identity.cache_group)
        route = await self._route(ask.model)
        self._record.asked(ask, route.served_name, self._recorder.log)
        tokenizer = self._tokenizers.get(route.model)
        if tokenizer is not None and ask.ids is None:
            ask.ids = await tokenizer.ids(ask)
        if (
            ask.continuation is None
            and ask.stream
            and ask.fields is not None
            and self._continuations.mode != "off"
        ):
            ask.continuation = continuation_of(self._surface, ask.fields)
        ask.fields = None  # what waits is bytes
        facts = facts_of(
            ask,
            request=self._key,
            identity=identity,
            served_name=route.served_name,
            age_s=self._loop.time() - self._record.arrived,
            whole=not ask.divisible or ask.max_output_tokens == 1,
        )
        dispatch: Dispatch | None = await self._admit(facts)
        del facts  # control has what it needs of the prompt
        while dispatch is not None:
            dispatch = await self._attempted(dispatch, ask, route)

    def _end(self, now: float) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._last is not None:
            self._record.answered(self._last)
        super()._end(now)

    # -- attempts, one after the other until one answers

    async def _attempted(self, dispatch: Dispatch, ask: ParsedRequest, route: Route) -> Dispatch | None:
        """Perform what control has decided; what follows if it fails, or None."""
        self._record.placed(dispatch)
        if self._explains:
            self._answer.explain(dispatch)
        failed = await self._perform(dispatch, ask, route)
        if failed is None:
            return None
        if failed[0].answering and ask.stream:
            return await self._after_death(failed[0], ask)
        return await self._after(*failed)

    async def _perform(
        self, dispatch: Dispatch, ask: ParsedRequest, route: Route
    ) -> "tuple[Failed, WholeAnswer | None] | None":
        """One attempt. How it failed is a value, so that no exception keeps a body alive while others run."""
        try:
            if self._broke_at is not None:
                await self._run_rest(dispatch, ask)
            elif dispatch.prefill is not None:
                await self._run_pair(dispatch, dispatch.prefill, ask, route)
            else:
                await self._run_alone(dispatch, ask, route)
        except AttemptFailed as failure:
            self._death = death_of(failure.reason, failure.code)
            return self._failed(failure), failure.answer
        return None

    async def _run_alone(self, dispatch: Dispatch, ask: ParsedRequest, route: Route) -> None:
        """One worker does all of it."""
        record = self._continuations.record(ask, dispatch.worker)
        attempt = self._last = Attempt(
            self._key,
            dispatch,
            ask,
            self._answer,
            self._control,
            self._loop.time,
            for_worker(ask, route.rewrite, ids=record is not None),
            record=record,
        )
        self._sent_as = self._id.encode()
        if self._background:
            await self._run_in_background(attempt, dispatch.worker)
        else:
            await self._run(attempt, dispatch.worker)
        if attempt.pending is not None:
            await self._follow(attempt, attempt.pending, dispatch.worker)
        self._count(attempt, ask, route)

    # -- responses in the background

    def _is_background(self, ask: ParsedRequest) -> bool:
        """Whether the worker will go on without the client. Raises BadRequest where that is not allowed."""
        if not ask.background:
            return False
        if self._intake.limits.background_responses == "refused":
            message = "Responses in the background are not served here; leave `background` out."
            raise BadRequest(message, param="background")
        if ask.response is not None and not is_stored_id(ask.response):
            message = "The `request_id` of a response in the background may have letters, digits, `-` and `_`."
            raise BadRequest(message, param="request_id")
        return True

    async def _run_in_background(self, attempt: Attempt, worker: WorkerId) -> None:
        """Perform an attempt that does not end with its client. Raises AttemptFailed, or ClientGone after that.

        A stream tells of its end by itself, but not where the response is cancelled, or fails: so the worker is
        asked as well.
        """
        watching: list[asyncio.Task[None]] = []

        def watch(response: str) -> None:
            if attempt.ask.stream:
                watching.append(self._loop.create_task(self._end_stream(attempt, response, worker)))

        attempt.on_stored = watch
        task, self._task = self._task, None
        try:
            await self._run(attempt, worker)
        except AttemptFailed:
            if self._gone:
                raise ClientGone from None
            self._task = task
            raise
        finally:
            for one in watching:
                one.cancel()

    async def _end_stream(self, attempt: Attempt, response: str, worker: WorkerId) -> None:
        """End a stream whose response has ended without a word in it."""
        end = await end_of(response, worker, self._connections, clock=self._loop.time)
        await asyncio.sleep(_STREAM_GRACE_S)
        if attempt.outcome is None:
            attempt.conclude(end)
        if attempt.exchange is not None:
            attempt.exchange.abort()

    async def _follow(self, attempt: Attempt, response: str, worker: WorkerId) -> None:
        """The client has its answer, which says that the response is queued: keep its place until it has ended."""
        self._detach()
        try:
            attempt.conclude(await end_of(response, worker, self._connections, clock=self._loop.time))
        except asyncio.CancelledError:
            attempt.outcome = Outcome.CANCELLED
            raise

    async def _run_pair(self, dispatch: Dispatch, prefill: WorkerId, ask: ParsedRequest, route: Route) -> None:
        """An attempt that computes the prompt, then one that goes on from there, unless the answer is over."""
        # NIXL finds what it pushes by the request's id, which a client may have given to several requests.
        self._sent_as = f"{self._id}.{getrandbits(48):012x}".encode()
        parts = (self._key, dispatch, ask, self._answer, self._control, self._loop.time)
        first = self._last = PrefillAttempt(*parts, for_prefill(ask, route.rewrite))
        second = Attempt(*parts)
        try:
            await self._run(first, prefill)
            if first.outcome is None:
                self._control.prefill_done(self._key)
                self._last, second.prompt_cached = second, first.prompt_cached
                second.fetching = first.params is not None
                second.record = self._continuations.record(ask, dispatch.worker)
                second.body = for_worker(ask, route.rewrite, first.params, ids=second.record is not None)
                await self._run(second, dispatch.worker)
        finally:
            if first.params is not None and _is_left(first.params, second):
                self._releases.release(route.served_name, first.params, prefill=prefill, decode=dispatch.worker)
        self._count(self._last, ask, route)

    # -- streams that outlive their worker

    async def _after_death(self, failure: Failed, ask: ParsedRequest) -> Dispatch | None:
        """A worker has died under a stream, of which the client has a part: where it goes on.

        Raises WorkerFailed where it does not, which ends the stream with an error event.
        """
        last, death, continuations = self._last, self._death, self._continuations
        record = None if last is None else last.record
        why = self._obstacle(ask, record, failure.worker)
        if why is not None or last is None or record is None or death is None:
            if why is not None:
                continuations.count(BROKEN, why)
            return await self._after(failure, None)
        if self._broke_at is None:
            self._broke_at = self._loop.time()
        if record.finish is not None:
            await self._close(last, record, ask)
            return None
        tokens = len(record.ids())
        decided = await self._control.failed(replace(failure, resume_tokens=tokens))
        if not isinstance(decided, Dispatch):
            continuations.count(BROKEN, "no_worker")
            told = "" if decided is None else f" It cannot go on elsewhere: {decided.message}"
            raise WorkerFailed(f"The worker broke off in mid-answer: {failure.why}.{told}")
        return decided

    def _obstacle(self, ask: ParsedRequest, record: StreamRecord | None, worker: WorkerId) -> str | None:
        """Why a stream cannot go on elsewhere; None: it can."""
        why = self._continuations.obstacle(ask)
        if why is not None or record is None:
            return why or "distrusted"
        if self._death is None:
            return "requests_fault"
        if record.spoiled is None and record.size and record.prompt():
            return None
        why = record.spoiled or NO_IDS
        if why == NO_IDS:
            self._continuations.distrust(worker, _SILENT)
        return why

    async def _close(self, last: Attempt, record: StreamRecord, ask: ParsedRequest) -> None:
        """Nothing but the end was missing: say it in the worker's place."""
        usage = Usage(len(record.prompt()), len(record.ids()))
        withheld = b"" if last.monitor is None else last.monitor.rest()
        last.outcome, last.usage, last.exact = Outcome.COMPLETED, usage, True
        self._control.settled(Settled(self._key, Outcome.COMPLETED, usage, exact=True))
        self._went_on()
        await self._answer.body(withheld + closing(record, usage, {}, wanted=ask.wants_usage), more=False)

    async def _run_rest(self, dispatch: Dispatch, ask: ParsedRequest) -> None:
        """The rest of an answer that has begun. Raises AttemptFailed, or WorkerFailed where nothing more helps."""
        before, wanted = self._last, ask.continuation
        if before is None or not isinstance(wanted, Continuation):
            raise WorkerFailed("The worker broke off in mid-answer.")
        connection = self._connections.get(dispatch.worker)
        attempt = self._last = ContinuedAttempt(
            self._key,
            dispatch,
            ask,
            self._answer,
            self._control,
            self._loop.time,
            first_byte_at=before.first_byte_at,
            record=before.record,
            on_begun=self._went_on,
            continuation=wanted.salted(ask.salt),
            max_model_len=None if connection is None else connection.address.max_model_len,
            model=dispatch.model,
        )
        try:
            await self._run(attempt, dispatch.worker, TARGET)
        except SeamFailed as failure:
            self._continuations.count(BROKEN, failure.why)
            if failure.source:
                self._continuations.distrust(before.dispatch.worker, failure.told)
            raise WorkerFailed(f"The worker broke off in mid-answer, which cannot go on: {failure.told}") from None

    def _went_on(self) -> None:
        """A stream that had broken off has its next token."""
        if self._broke_at is not None:
            self._continuations.gap(self._loop.time() - self._broke_at)
        self._continuations.count(CONTINUED, "" if self._death is None else self._death.value)

    async def _run(self, attempt: Attempt, worker: WorkerId, target: bytes | None = None) -> None:
        """On this worker. Raises AttemptFailed, which names it."""
        connection = self._connections.get(worker)
        if connection is None:
            raise AttemptFailed(AttemptFailure.CONNECT, f"{worker} has left the fleet", worker)
        headers = to_worker(self._scope, self._sent_as, connection.headers)
        try:
            await attempt.run(connection.upstream, target or self._target(), headers)
        except AttemptFailed as failure:
            failure.worker, failure.fetching = worker, attempt.fetching
            raise

    def _count(self, attempt: Attempt, ask: ParsedRequest, route: Route) -> None:
        """Whether the prompt had as many tokens as were counted here."""
        if attempt.record is not None and attempt.record.spoiled == NO_IDS:
            self._continuations.distrust(attempt.dispatch.worker, _SILENT)
        tokenizer = self._tokenizers.get(route.model)
        if tokenizer is not None and attempt.exact and attempt.usage is not None and ask.ids is not None:
            tokenizer.saw(ask.surface, attempt.dispatch.input_tokens, attempt.usage.input_tokens)


def _is_left(params: dict[str, Any], second: Attempt) -> bool:
    """Whether the prefill worker still holds its KV: one that refuses to go on says so, unless it is pushed to."""
    return second.exchange is None or (second.outcome is Outcome.REFUSED and is_pushed(params))
