"""A request whose body and answer pass as they come, to the worker that control names.

Tokenizing and the like cost a worker little, so they do not wait in the queue. What makes a model compute is
scheduled and charged like a routed request, by estimates of its tokens where nothing says how many they are.
Attempts that fail are judged and followed by others as those of scheduled requests are.
"""

from http import HTTPStatus

import orjson

from policies.model import AttemptFailure, Outcome, Usage, WorkerId
from router.edge.api import estimates
from router.edge.api.cache_salt import salted
from router.edge.api.multipart_form import MultipartForm
from router.edge.api.passed_body import PassedBody
from router.edge.api.rewrite import with_changes
from router.edge.api.stream_monitor import whole_usage
from router.edge.execution.lifecycle import Lifecycle
from router.edge.execution.recorder import Recorder
from router.edge.execution.worker_answer import AttemptFailed, WholeAnswer, check_success, read_refusal
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.headers import EVENT_STREAM, content_type, to_worker
from router.edge.intake import Intake
from router.edge.pieces import Body, Payload, payload_of
from router.edge.response import Receive, Scope, Send
from router.port import Control, Dispatch, Facts, Failed, Settled, Unscheduled
from workers.http.upstream import ConnectFailed, Response, UpstreamError

_LONGEST_EVENT = 1 << 20
_NOT_JSON = (b"application/x-www-form-urlencoded", b"application/octet")


class PassthroughRequest(Lifecycle):
    """One request that passes through. `response`: the stored response that it is about.

    `scheduled`: a model computes it, so it waits for room, and counts.
    """

    __slots__ = ("_connections", "_dispatch", "_response", "_scheduled")

    def __init__(
        self,
        *,
        control: Control,
        intake: Intake,
        recorder: Recorder,
        connections: WorkerConnections,
        scope: Scope,
        receive: Receive,
        send: Send,
        response: str | None = None,
        scheduled: bool = False,
    ) -> None:
        super().__init__(
            control=control, intake=intake, recorder=recorder, scope=scope, receive=receive, send=send
        )
        self._connections = connections
        self._response = response
        self._scheduled = scheduled
        self._dispatch: Dispatch | None = None

    async def _serve(self, body: Body) -> None:
        kind = content_type(self._scope["headers"])
        form: MultipartForm | None = None
        if kind.lower().startswith(b"multipart/"):
            form = await MultipartForm.parse(body, kind)
            named, user, streams = form.text("model"), form.text("user"), form.streams
        else:
            read = await self._read(body, kind)
            is_json = bool(body) and not kind.lower().startswith(_NOT_JSON)
            named, user, streams = read.model, read.user, read.stream
        identity = self._identify(user)
        if self._scheduled and identity.cache_group and form is None and is_json:
            salted(read, identity.cache_group)
        model: str | None = None
        rewrite: str | None = None
        if self._response is None:
            route = await self._route(named)
            model, rewrite = route.served_name, None if named is None else route.rewrite
            self._record.served_name = model
        if form is not None:
            payload = payload_of(body) if rewrite is None else form.with_model(body, rewrite)
        else:
            changes = read.changes if rewrite is None else {**read.changes, "model": orjson.dumps(rewrite)}
            payload = with_changes(read, changes)
        facts: Facts | Unscheduled = Unscheduled(self._key, identity, model, self._response)
        if self._scheduled and model is not None:
            tokens = estimates.prompt_tokens(self._scope["path"], len(body))
            output = estimates.most_output_tokens(self._scope["path"])
            age_s = self._loop.time() - self._record.arrived
            facts = Facts(
                id=self._key,
                identity=identity,
                model=model,
                age_s=age_s,
                input_tokens=tokens,
                max_output_tokens=output,
                streams=streams,
                whole=True,
            )
        dispatch: Dispatch | None = await self._admit(facts)
        while dispatch is not None:
            self._record.served_name = dispatch.model
            if self._scheduled:
                self._dispatch = dispatch
                self._record.placed(dispatch)
            failed = await self._perform(dispatch.worker, payload, streams=streams)
            dispatch = None if failed is None else await self._after(*failed)

    async def _read(self, body: Body, kind: bytes) -> PassedBody:
        """What is read of a JSON body; nothing of any other kind of body."""
        if not body or kind.lower().startswith(_NOT_JSON):
            return PassedBody(body)
        return await self._intake.bodies.read_passed(body)

    async def _perform(
        self, worker: WorkerId, body: Payload, *, streams: bool
    ) -> tuple[Failed, WholeAnswer | None] | None:
        """One attempt; how it failed, or None."""
        connection = self._connections.get(worker)
        try:
            if connection is None:
                raise ConnectFailed(worker, "it has left the fleet")
            headers = to_worker(self._scope, self._id.encode(), connection.headers)
            method = self._scope["method"].encode()
            sent = connection.upstream.send(method, self._target(), headers, body, whole=not streams)
            await self._pass(await sent)
        except UpstreamError as error:
            failure = AttemptFailed.of(error)
        except AttemptFailed as error:
            failure = error
        else:
            return None
        failure.worker = worker
        return self._failed(failure), failure.answer

    async def _pass(self, exchange: Response) -> None:
        """Pass the answer on as it comes. Raises AttemptFailed where it is none."""
        try:
            await exchange.head()
            if exchange.status >= 400:
                refusal = await read_refusal(exchange)
                if self._response is not None and refusal.status == HTTPStatus.NOT_FOUND:
                    raise AttemptFailed(AttemptFailure.NOT_HERE, "the worker does not store it", answer=refusal)
                self._end_with(Outcome.REFUSED)
                await self._answer.whole(refusal.status, list(refusal.headers), refusal.body)
                return
            check_success(exchange, empty=self._scope["method"] != "POST")
            if content_type(exchange.headers).lower().startswith(EVENT_STREAM):
                await self._pass_events(exchange)
            else:
                await self._pass_bytes(exchange)
        finally:
            exchange.abort()

    async def _pass_bytes(self, exchange: Response) -> None:
        piece = await exchange.read()
        self._begun()
        size, whole = len(piece), len(piece) if exchange.at_end else None
        await self._answer.start(exchange.status, exchange.headers, whole)
        while piece and not exchange.at_end:
            await self._answer.body(piece, more=True)
            piece = await exchange.read()
            size += len(piece)
        self._end_with(Outcome.COMPLETED, self._usage(whole_usage(piece), size, 0))
        await self._answer.body(piece, more=False)

    async def _pass_events(self, exchange: Response) -> None:
        """Pass on whole events, so that an error can follow the last of them."""
        held, count = b"", 0
        while piece := await exchange.read():
            if not self._answer.started:
                self._begun()
                await self._answer.start(exchange.status, exchange.headers)
            events, gap, held = (held + piece).rpartition(b"\n\n")
            if len(held) > _LONGEST_EVENT:
                raise AttemptFailed(AttemptFailure.LOST, f"an event of more than {_LONGEST_EVENT} bytes")
            if gap:
                count += events.count(b"data: ")
                await self._answer.body(events + gap, more=True)
        if not self._answer.started:
            await self._answer.start(exchange.status, exchange.headers)
        self._end_with(Outcome.COMPLETED, self._usage(None, 0, count))
        await self._answer.body(held, more=False)

    def _begun(self) -> None:
        """The first of the answer is there."""
        if self._scheduled:
            self._control.first_token(self._key)

    def _usage(self, said: Usage | None, size: int, events: int) -> Usage | None:
        """What the answer says of its tokens, else an estimate; None if it is not charged."""
        dispatch = self._dispatch
        if dispatch is None or (said is not None and said.input_tokens + said.output_tokens > 0):
            return None if dispatch is None else said
        output = estimates.output_tokens(self._scope["path"], size, events, expected=dispatch.output_tokens)
        return Usage(dispatch.input_tokens, output)

    def _end_with(self, outcome: Outcome, usage: Usage | None = None) -> None:
        self._record.outcome = outcome
        self._record.usage = usage
        self._control.settled(Settled(self._key, outcome, usage or Usage(0, 0)))
