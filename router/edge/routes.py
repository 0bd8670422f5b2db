"""The door: a thin ASGI callable that sees every request first.

Inference goes straight to its life, past FastAPI and its middleware, which would cost more than the routing does;
everything else is FastAPI's, which also documents all of it.
"""

import re

from starlette.types import ASGIApp

from router.control.state import Gateway
from router.edge.api.parsed_request import Surface
from router.edge.errors import NoSuchRoute, RequestError, Unsupported, WrongMethod
from router.edge.execution.lifecycle import request_id
from router.edge.execution.passthrough import PassthroughRequest
from router.edge.execution.scheduled import ScheduledRequest
from router.edge.response import Receive, ResponseWriter, Scope, Send

_ROUTED = {surface.value: surface for surface in Surface}
_RESPONSE = re.compile(r"/v1/responses/([^/]+)(?:/cancel|/input_items)?")
_VLLM_OWN = frozenset(
    (
        "/tokenize",
        "/detokenize",
        "/rerank",
        "/v2/rerank",
        "/v2/embed",
        "/score",
        "/pooling",
        "/classify",
        "/generative_scoring",
        "/invocations",
    )
)
"""vLLM's entry points outside /v1/ that are safe in anybody's hands; /pause, /sleep and the like are not."""
_ONE_WORKER_ONLY = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))
"""They change one worker, and a client must not choose which by accident."""


class Routes:
    """The ASGI application. `inner` answers what is not inference."""

    def __init__(self, gateway: Gateway, inner: ASGIApp) -> None:
        self._gateway = gateway
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (_no_websocket(send) if scope["type"] == "websocket" else self._inner(scope, receive, send))
            return
        path = scope["path"]
        method = scope["method"]
        surface = _ROUTED.get(path)
        if surface is not None and method == "POST":
            await ScheduledRequest(self._gateway, surface, scope, receive, send).live()
            return
        error = _refused(scope)
        if error is not None:
            await ResponseWriter(send, request_id(scope).encode()).refuse(error)
            return
        stored = _RESPONSE.fullmatch(path)
        if stored and method in ("GET", "POST", "DELETE"):
            await PassthroughRequest(self._gateway, scope, receive, send, response=stored.group(1)).live()
        elif method == "POST" and (path.startswith("/v1/") or path in _VLLM_OWN):
            await PassthroughRequest(self._gateway, scope, receive, send).live()
        else:
            await self._inner(scope, receive, send)


def _refused(scope: Scope) -> RequestError | None:
    """What is answered with an error whoever asks."""
    if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]):
        return Unsupported("WebSockets are not supported; stream over HTTP with `stream: true`.")
    if scope["path"] in _ONE_WORKER_ONLY:
        return NoSuchRoute(f"{scope['path']} is not routed: it would change one worker. Call each worker itself.")
    if scope["method"] != "POST" and (scope["path"] in _ROUTED or scope["path"] in _VLLM_OWN):
        return WrongMethod(f"{scope['path']} takes POST, not {scope['method']}.")
    return None


async def _no_websocket(send: Send) -> None:
    """Refuse the handshake; servers that can say why do it with a response."""
    await send({"type": "websocket.http.response.start", "status": 501, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"WebSockets are not supported."})
