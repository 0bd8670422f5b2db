"""A thin ASGI callable that sees every request first.

Inference goes straight to its execution, past FastAPI and its middleware, which would cost more than the routing
does; everything else is FastAPI's, which also documents all of it.
"""

from collections.abc import Mapping

from starlette.types import ASGIApp

from router.edge.api.parsed_request import Surface
from router.edge.errors import NoSuchRoute, RequestError, Unsupported, WrongMethod
from router.edge.execution.kv_release import KvReleases
from router.edge.execution.lifecycle import request_id
from router.edge.execution.passthrough import PassthroughRequest
from router.edge.execution.recorder import Recorder
from router.edge.execution.scheduled import ScheduledRequest
from router.edge.execution.tokenizer import Tokenizer
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.intake import Intake
from router.edge.response import Receive, ResponseWriter, Scope, Send
from router.edge.trust import PATHS, Path, Use, find
from router.port import Control

DOCUMENTED = tuple(
    (each.path, "inference" if each.use is Use.SCHEDULED else each.use.value, each.what)
    for each in PATHS
    if each.use in (Use.SCHEDULED, Use.PASSED_THROUGH)
)
"""Paths, tags and summaries of what is served here, for the documentation."""


class Routes:
    """The ASGI application. `inner` answers what is not inference."""

    def __init__(
        self,
        inner: ASGIApp,
        *,
        control: Control,
        intake: Intake,
        recorder: Recorder,
        connections: WorkerConnections,
        tokenizers: Mapping[str, Tokenizer],
        explains: bool = False,
    ) -> None:
        self._inner = inner
        self._control = control
        self._intake = intake
        self._recorder = recorder
        self._connections = connections
        self._tokenizers = tokenizers
        self._releases = KvReleases(connections)
        self.explains = explains
        """Whether answers say which worker gave them, and why; may change between requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (_no_websocket(send) if scope["type"] == "websocket" else self._inner(scope, receive, send))
            return
        known = find(scope["path"], scope.get("raw_path") or b"")
        error = _refused(scope, known)
        if error is not None:
            await ResponseWriter(send, request_id(scope).encode()).refuse(error)
        elif known is None:
            await self._inner(scope, receive, send)
        else:
            scope["path"], scope["raw_path"] = known.path, known.path.encode()
            if known.use is Use.SCHEDULED:
                await self._schedule(scope, receive, send, Surface(known.path))
            else:
                await self._pass(scope, receive, send, known.what if known.use is Use.STORED else None)

    async def _schedule(self, scope: Scope, receive: Receive, send: Send, surface: Surface) -> None:
        request = ScheduledRequest(
            control=self._control,
            intake=self._intake,
            recorder=self._recorder,
            connections=self._connections,
            tokenizers=self._tokenizers,
            releases=self._releases,
            surface=surface,
            scope=scope,
            receive=receive,
            send=send,
            explains=self.explains,
        )
        await request.run()

    async def _pass(self, scope: Scope, receive: Receive, send: Send, response: str | None) -> None:
        request = PassthroughRequest(
            control=self._control,
            intake=self._intake,
            recorder=self._recorder,
            connections=self._connections,
            scope=scope,
            receive=receive,
            send=send,
            response=response,
        )
        await request.run()


def _refused(scope: Scope, known: Path | None) -> RequestError | None:
    """What is answered with an error whoever asks."""
    if known is not None and known.use is Use.SCHEDULED and scope["method"] == "POST":
        return None
    if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]):
        return Unsupported("WebSockets are not supported; stream over HTTP with `stream: true`.")
    if known is None:
        return None
    if known.use is Use.REFUSED:
        return NoSuchRoute(f"{known.path} is not served: it {known.what}.")
    if scope["method"] not in known.methods:
        error = WrongMethod(f"{known.path} takes {' or '.join(known.methods)}, not {scope['method']}.")
        error.allow = ", ".join(known.methods)
        return error
    return None


async def _no_websocket(send: Send) -> None:
    """Refuse the handshake; servers that can say why do it with a response."""
    await send({"type": "websocket.http.response.start", "status": 501, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"WebSockets are not supported."})
