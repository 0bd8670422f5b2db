"""A thin ASGI callable that sees every request first.

Inference goes straight to its execution, past FastAPI and its middleware, which would cost more than the routing
does; everything else is FastAPI's, which also documents all of it.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from starlette.types import ASGIApp

from router.edge.api.parsed_request import Surface
from router.edge.errors import NoSuchRoute, RequestError, Unsupported, WrongMethod
from router.edge.execution.continuations import Continuations
from router.edge.execution.kv_release import KvReleases
from router.edge.execution.lifecycle import request_id
from router.edge.execution.passthrough import PassthroughRequest
from router.edge.execution.recorder import Recorder
from router.edge.execution.scheduled import ScheduledRequest
from router.edge.execution.tokenizer import Tokenizer
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.intake import Intake
from router.edge.proxies import TrustedProxies
from router.edge.response import Message, Receive, ResponseWriter, Scope, Send
from router.edge.trust import PATHS, Path, Use, find
from router.port import Control, shown

DOCUMENTED = tuple(
    (each.path, "inference" if each.use is not Use.PASSED_THROUGH else each.use.value, each.what)
    for each in PATHS
    if each.use in (Use.SCHEDULED, Use.ESTIMATED, Use.PASSED_THROUGH)
)
"""Paths, tags and summaries of what is served here, for the documentation."""


_SERVER = "*"
"""The target of a request about the server as a whole (RFC 9112, 3.2.4)."""


class Routes:
    """The ASGI application. `inner` answers what is not inference.

    `proxies`: those that say whose request they pass on. `root_path`: the path under which a proxy in front shows
    the gateway, whether it takes it off or not.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        control: Control,
        intake: Intake,
        recorder: Recorder,
        connections: WorkerConnections,
        continuations: Continuations,
        tokenizers: Mapping[str, Tokenizer],
        explains: bool = False,
        heartbeat_s: float | None = None,
        root_path: str = "",
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._inner = inner
        self._root_path = root_path
        self._proxies = proxies or None
        self._control = control
        self._intake = intake
        self._recorder = recorder
        self._connections = connections
        self._continuations = continuations
        self._tokenizers = tokenizers
        self._releases = KvReleases(connections)
        self.explains = explains
        """Whether answers say which worker gave them, and why; may change between requests."""
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (_no_websocket(send) if scope["type"] == "websocket" else self._inner(scope, receive, send))
            return
        if self._proxies is not None:
            scope["client"] = self._proxies.client(scope) or scope.get("client")
        if self._root_path:
            scope = _below(scope, self._root_path)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body of its answer out
        known = find(scope["path"], scope.get("raw_path") or b"")
        error = _refused(scope, known)
        if scope["method"] == "OPTIONS" and (known is not None or scope["path"] == _SERVER):
            await _allow(_options(known), request_id(scope).encode(), send)
        elif error is not None:
            await ResponseWriter(send, request_id(scope).encode()).refuse(error)
        elif known is None or known.use is Use.OWN:
            await self._page(scope, receive, send)
        else:
            scope["path"], scope["raw_path"] = known.path, known.path.encode()
            if known.use is Use.SCHEDULED:
                await self._schedule(scope, receive, send, Surface(known.path))
            else:
                await self._pass(scope, receive, send, known)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page of the gateway's own; a slash at the end of its path makes no difference."""
        request = request_id(scope).encode()
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        page = {**scope, "path": self._root_path + path, "root_path": self._root_path}
        asks = scope["method"] == "OPTIONS"
        answered = False

        async def named(message: Message) -> None:
            nonlocal answered
            if answered:
                return
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                if asks and message["status"] == HTTPStatus.METHOD_NOT_ALLOWED:
                    answered = True
                    methods = dict(headers).get(b"allow", b"").decode().split(", ")
                    await _allow(methods, request, send)
                    return
                message = {**message, "headers": [*headers, (b"x-request-id", request)]}
            await send(message)

        await self._inner(page, receive, named)

    async def _schedule(self, scope: Scope, receive: Receive, send: Send, surface: Surface) -> None:
        request = ScheduledRequest(
            control=self._control,
            intake=self._intake,
            recorder=self._recorder,
            connections=self._connections,
            continuations=self._continuations,
            tokenizers=self._tokenizers,
            releases=self._releases,
            surface=surface,
            scope=scope,
            receive=receive,
            send=send,
            explains=self.explains,
            heartbeat_s=self._heartbeat_s,
        )
        await request.run()

    async def _pass(self, scope: Scope, receive: Receive, send: Send, known: Path) -> None:
        request = PassthroughRequest(
            control=self._control,
            intake=self._intake,
            recorder=self._recorder,
            connections=self._connections,
            scope=scope,
            receive=receive,
            send=send,
            response=known.what if known.use is Use.STORED else None,
            scheduled=known.use is Use.ESTIMATED,
        )
        await request.run()


def _refused(scope: Scope, known: Path | None) -> RequestError | None:
    """What is answered with an error, whichever client asks."""
    if known is not None and known.use is Use.SCHEDULED and scope["method"] == "POST":
        return None
    if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]):
        return Unsupported("WebSockets are not supported; stream over HTTP with `stream: true`.")
    if known is None:
        return _doubled(scope["path"]) if "//" in scope["path"] else None
    if known.use is Use.REFUSED:
        return NoSuchRoute(f"{known.path} is not served: it {known.what}.")
    if known.use is not Use.OWN and scope["method"] not in known.methods:
        error = WrongMethod(f"{known.path} takes {' or '.join(known.methods)}, not {scope['method']}.")
        error.allow = ", ".join(known.methods)
        return error
    return None


def _doubled(path: str) -> RequestError | None:
    """A path with doubled slashes is another path (RFC 3986); the error says which one there is."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    known = find(plain, plain.encode())
    if known is None or known.use is Use.REFUSED:
        return None
    return NoSuchRoute(f"There is no {shown(path)}; without doubled slashes there is {known.path}.")


def _options(known: Path | None) -> tuple[str, ...]:
    """The methods of a path; None: of the server as a whole."""
    if known is None:
        return ("GET", "POST", "DELETE")
    return () if known.use is Use.REFUSED else known.methods


async def _allow(methods: Iterable[str], request: bytes, send: Send) -> None:
    """Answer OPTIONS. What a browser's preflight asks beyond that, the connection adds (`cors`)."""
    allowed = [*methods, "HEAD", "OPTIONS"] if "GET" in methods else [*methods, "OPTIONS"]
    headers = [(b"allow", ", ".join(allowed).encode()), (b"x-request-id", request)]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _below(scope: Scope, root_path: str) -> Scope:
    """The scope as seen below this path."""
    if not scope["path"].startswith(root_path + "/"):
        return scope
    raw = (scope.get("raw_path") or b"").removeprefix(root_path.encode())
    return {**scope, "path": scope["path"].removeprefix(root_path), "raw_path": raw}


async def _no_websocket(send: Send) -> None:
    """Refuse the handshake; servers that can say why do it with a response."""
    await send({"type": "websocket.http.response.start", "status": 501, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"WebSockets are not supported."})
