"""A request that is not scheduled: passed through to the worker that control names.

Tokenizing and the like cost a worker little, so they do not wait in the queue. Bytes pass as they come, both ways.
Attempts that fail are judged and followed by others as those of scheduled requests are.
"""

from http import HTTPStatus
from typing import Any

import orjson

from policies.model import AttemptFailure, Outcome, Usage, WorkerId
from router.edge.api.multipart_form import MultipartForm
from router.edge.errors import BadRequest
from router.edge.execution.lifecycle import Lifecycle
from router.edge.execution.recorder import Recorder
from router.edge.execution.worker_answer import AttemptFailed, WholeAnswer, check_success, read_refusal
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.headers import content_type, to_worker
from router.edge.intake import Intake
from router.edge.response import Receive, Scope, Send
from router.edge.trust import forwardable
from router.port import Control, Dispatch, Failed, Settled, Unscheduled
from workers.http.upstream import ConnectFailed, Response, UpstreamError

_NOT_JSON = (b"application/x-www-form-urlencoded", b"application/octet")


class PassthroughRequest(Lifecycle):
    """One request that passes through. `response`: the stored response that it is about."""

    __slots__ = ("_connections", "_response")

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
    ) -> None:
        super().__init__(
            control=control, intake=intake, recorder=recorder, scope=scope, receive=receive, send=send
        )
        self._connections = connections
        self._response = response

    async def _serve(self, body: bytes) -> None:
        kind = content_type(self._scope["headers"])
        form: MultipartForm | None = None
        fields: dict[str, Any] = {}
        if kind.lower().startswith(b"multipart/"):
            form = await MultipartForm.parse(body, kind)
            named, user, streams = form.text("model"), form.text("user"), form.streams
        else:
            fields, body = forwardable(_fields(body, kind), body)
            named, user, streams = _model(fields), fields.get("user"), fields.get("stream") is True
        identity = self._identify(user if isinstance(user, str) else None)
        model: str | None = None
        if self._response is None:
            route = await self._route(named)
            model = self._record.served_name = route.served_name
            if route.rewrite is not None and named is not None:
                if form is not None:
                    body = form.with_model(body, route.rewrite)
                else:
                    body = orjson.dumps({**fields, "model": route.rewrite})
        dispatch: Dispatch | None = await self._admit(Unscheduled(self._key, identity, model, self._response))
        while dispatch is not None:
            self._record.served_name = dispatch.model
            failed = await self._perform(dispatch.worker, body, streams=streams)
            dispatch = None if failed is None else await self._after(*failed)

    async def _perform(
        self, worker: WorkerId, body: bytes, *, streams: bool
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
            piece = await exchange.read()
            whole = len(piece) if exchange.at_end else None
            await self._answer.start(exchange.status, exchange.headers, whole)
            while piece and not exchange.at_end:
                await self._answer.body(piece, more=True)
                piece = await exchange.read()
            self._end_with(Outcome.COMPLETED)
            await self._answer.body(piece, more=False)
        finally:
            exchange.abort()

    def _end_with(self, outcome: Outcome) -> None:
        self._record.outcome = outcome
        self._control.settled(Settled(self._key, outcome, Usage(0, 0)))


def _fields(body: bytes, kind: bytes) -> dict[str, Any]:
    """The members of a JSON body; nothing of any other kind of body."""
    if not body or kind.lower().startswith(_NOT_JSON):
        return {}
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", param="body") from None
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.", param="body")
    return fields


def _model(fields: dict[str, Any]) -> str | None:
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest(f"`model` must be a str, not {type(model).__name__}.", param="model")
    return model
