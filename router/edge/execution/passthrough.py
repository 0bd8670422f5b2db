"""A request that is not scheduled: passed through to a worker of its model, or to the one that holds a response.

Tokenizing and the like cost a worker little, so they do not wait in the queue; the worker with the fewest open
requests takes them. Bytes pass as they come, both ways. If a worker cannot be reached another one is tried; once
it has the request, its answer is the answer.
"""

import re
from typing import Any

import orjson

from policies.model import Outcome
from router.control.pools import Member, Route
from router.control.state import Gateway
from router.edge.errors import BadRequest, Unavailable, WorkerFailed, WorkerTimeout
from router.edge.execution.lifecycle import Lifecycle
from router.edge.headers import content_type, to_worker
from router.edge.response import Receive, Scope, Send
from workers.http.upstream import NotConnected, TimedOut, UpstreamError

_FORM_MODEL = re.compile(rb'\bname="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n')
"""The `model` part of a multipart form (audio)."""


class PassthroughRequest(Lifecycle):
    """One request that passes through. `response`: the stored response that it is about."""

    __slots__ = ("_response",)

    def __init__(
        self, gateway: Gateway, scope: Scope, receive: Receive, send: Send, *, response: str | None = None
    ) -> None:
        super().__init__(gateway, scope, receive, send)
        self._response = response

    async def _serve(self, body: bytes) -> None:
        gateway = self._gateway
        form_type = content_type(self._scope["headers"])
        fields = _fields(body, form_type)
        user = fields.get("user")
        client = self._client(user if isinstance(user, str) else None)
        self._lease = gateway.clients.quota.admit(client.account, client.limits, 0, gateway.loop.time())
        route = self._route(_model(fields, body, form_type))
        self._record.line = route.line
        if route.rewrite is not None and "model" in fields:
            body = orjson.dumps({**fields, "model": route.rewrite})
        tried: list[Member] = []
        while True:
            member = self._choose(route.line, tried)
            tried.append(member)
            try:
                await self._pass(member, body)
            except NotConnected as error:
                gateway.fleet.request_failed(member.worker.id, str(error), connect=True)
            except UpstreamError as error:
                gateway.fleet.request_failed(member.worker.id, str(error))
                failed = WorkerTimeout if isinstance(error, TimedOut) else WorkerFailed
                raise failed(f"The worker failed: {error}") from error
            else:
                return

    def _route(self, model: str | None) -> Route:
        """Where it goes by its model; a stored response names none, so its holder decides, or anybody's 404."""
        pools = self._gateway.pools
        if self._response is None or not pools.by_model:
            return pools.route(model)
        member = pools.members.get(self._gateway.holders.find(self._response) or "")
        pool = member.pool if member is not None else None
        return pools.route((pool or next(iter(pools.by_model.values()))).model)

    def _choose(self, line: str, tried: list[Member]) -> Member:
        """The worker that holds the response, else the one with the fewest open requests."""
        members = [m for m in self._gateway.pools.usable(line) if m not in tried]
        if not members:
            raise Unavailable(f"No worker can serve the model `{line}` now.", retry_after_s=2)
        holder = self._gateway.holders.find(self._response)
        held = [member for member in members if member.worker.id == holder]
        return min(held or members, key=lambda member: member.open)

    async def _pass(self, member: Member, body: bytes) -> None:
        headers = to_worker(self._scope, self._id.encode(), member.headers)
        method = self._scope["method"].encode()
        with self._gateway.pools.busy(member):
            exchange = await member.upstream.send(method, self._target(), headers, body)
            try:
                await exchange.head()
                piece = await exchange.read()
                self._record.outcome = _outcome(exchange.status)
                whole = len(piece) if exchange.at_end else None
                await self._answer.start(exchange.status, exchange.headers, whole)
                while piece and not exchange.at_end:
                    await self._answer.body(piece, more=True)
                    piece = await exchange.read()
                await self._answer.body(piece, more=False)
            finally:
                exchange.abort()


def _outcome(status: int) -> Outcome:
    if status < 400:
        return Outcome.COMPLETED
    return Outcome.REFUSED if status < 500 else Outcome.FAILED


def _fields(body: bytes, kind: bytes) -> dict[str, Any]:
    """The members of a JSON body; nothing of any other kind of body."""
    if not body or kind.startswith((b"multipart/", b"application/x-www-form-urlencoded", b"application/octet")):
        return {}
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", param="body") from None
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.", param="body")
    return fields


def _model(fields: dict[str, Any], body: bytes, kind: bytes) -> str | None:
    if kind.startswith(b"multipart/"):
        found = _FORM_MODEL.search(body)
        return found.group(1).decode("utf-8", "replace") if found else None
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest(f"`model` must be a str, not {type(model).__name__}.", param="model")
    return model
