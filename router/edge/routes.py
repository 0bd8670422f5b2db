"""A thin ASGI callable that sees every request first.

Inference goes straight to its execution, past FastAPI and its middleware, which would cost more than the routing
does; everything else is FastAPI's, which also documents all of it.
"""

import re
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
from router.port import Control

DOCUMENTED = (
    (Surface.CHAT.value, "inference", "Chat completion"),
    (Surface.COMPLETIONS.value, "inference", "Text completion"),
    (Surface.RESPONSES.value, "inference", "Response (OpenAI's Responses API)"),
    (Surface.MESSAGES.value, "inference", "Message (Anthropic's Messages API)"),
    (Surface.EMBEDDINGS.value, "inference", "Embeddings"),
    ("/tokenize", "passed through", "Tokens of a text or chat, from a worker"),
    ("/detokenize", "passed through", "Text of tokens, from a worker"),
    (
        "/rerank",
        "passed through",
        "Passed through to a worker, as are /score, /pooling, /classify and every other POST below /v1/",
    ),
)
"""Paths, tags and summaries of what is served here, for the documentation."""
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
        self._explains = explains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (_no_websocket(send) if scope["type"] == "websocket" else self._inner(scope, receive, send))
            return
        path = scope["path"]
        method = scope["method"]
        surface = _ROUTED.get(path)
        if surface is not None and method == "POST":
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
                explains=self._explains,
            )
            await request.run()
            return
        error = _refused(scope)
        if error is not None:
            await ResponseWriter(send, request_id(scope).encode()).refuse(error)
            return
        stored = _RESPONSE.fullmatch(path)
        if stored and method in ("GET", "POST", "DELETE"):
            await self._pass(scope, receive, send, stored.group(1))
        elif method == "POST" and (path.startswith("/v1/") or path in _VLLM_OWN):
            await self._pass(scope, receive, send, None)
        else:
            await self._inner(scope, receive, send)

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
