"""What is not inference: liveness, readiness, metrics, the list of models, and the documentation of all of it."""

import time
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from router.control.state import Gateway
from router.edge.api.parsed_request import Surface
from router.edge.errors import NoSuchRoute, RequestError, WrongMethod, to_http

_SUMMARIES = {
    Surface.CHAT: "Chat completion",
    Surface.COMPLETIONS: "Text completion",
    Surface.RESPONSES: "Response (OpenAI's Responses API)",
    Surface.MESSAGES: "Message (Anthropic's Messages API)",
    Surface.EMBEDDINGS: "Embeddings",
}
_PASSED = (
    ("/tokenize", "Tokens of a text or chat, from a worker"),
    ("/detokenize", "Text of tokens, from a worker"),
    ("/rerank", "Passed through to a worker, as are /score, /pooling, /classify and every other POST below /v1/"),
)


def pages(gateway: Gateway, version: str) -> FastAPI:  # noqa: C901 - a list of small pages
    """The FastAPI application behind the door."""
    app = FastAPI(title="fairlead", version=version, summary="A serving router in front of vLLM workers.")
    started = int(time.time())

    @app.get("/health", tags=["gateway"], summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", tags=["gateway"], summary="Every known model has a routable worker")
    async def ready() -> JSONResponse:
        missing = not_ready(gateway)
        content = {"ready": not missing, "missing": missing}
        return JSONResponse(content, HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK)

    @app.get("/version", tags=["gateway"], summary="Versions of the gateway and its workers")
    async def versions() -> dict[str, Any]:
        workers = {member.worker.id: member.worker.version for member in gateway.pools.members.values()}
        return {"version": version, "workers": workers}

    @app.get("/metrics", tags=["gateway"], summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(gateway.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["models"], summary="Models of the whole fleet")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": model_cards(gateway, started)}

    @app.get("/v1/models/{model:path}", tags=["models"], summary="One model")
    async def model(model: str) -> dict[str, Any]:
        for card in model_cards(gateway, started):
            if card["id"] == model:
                return card
        gateway.pools.route(model)  # raises, in vLLM's words
        raise NoSuchRoute(f"The model `{model}` is not listed.")

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: {error.detail}. See /docs for what there is."
        wrong_method = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        refused = (WrongMethod if wrong_method else NoSuchRoute)(what)
        content = {"error": {**refused.body()["error"], "code": error.status_code}}
        return JSONResponse(content, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:  # noqa: ARG001 - Starlette's signature
        status, headers, body = to_http(error)
        return Response(body, status, {k.decode(): v.decode() for k, v in headers})

    _document(app)
    return app


def not_ready(gateway: Gateway) -> list[str]:
    """Why the gateway is not ready; empty if it is."""
    if gateway.draining:
        return ["the gateway is shutting down"]
    members = list(gateway.pools.members.values())
    if not members:
        return ["there are no workers"]
    routable = {member.worker.model for member in members if member.worker.routable}
    wanted = {m.worker.spec.model or m.worker.model for m in members} - {None}
    missing = [f"no routable worker for {model}" for model in sorted(wanted - routable, key=str)]
    if missing or not routable:
        missing += [
            f"{member.worker.id}: {member.worker.state.value}{f' ({why})' if (why := member.worker.why) else ''}"
            for member in members
            if not member.worker.routable
        ]
    return missing


def model_cards(gateway: Gateway, created: int) -> list[dict[str, Any]]:
    """Every name that a client may use, in the shape of OpenAI's list with vLLM's additions."""
    cards: dict[str, dict[str, Any]] = {}
    for member in gateway.pools.members.values():
        worker = member.worker
        if worker.model is None:
            continue
        for line in sorted(worker.lines):
            adapter = line in worker.adapters
            cards.setdefault(line, _card(line, worker.model, created, None if adapter else worker.max_model_len))
            if adapter:
                cards[line]["parent"] = worker.model
    for alias, target in gateway.pools.aliases.items():
        if target in cards:
            cards.setdefault(alias, {**cards[target], "id": alias})
    return sorted(cards.values(), key=lambda card: (card["parent"] or card["id"], card["parent"] is not None))


def _card(line: str, root: str, created: int, max_model_len: int | None) -> dict[str, Any]:
    return {
        "id": line,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
    }


def _document(app: FastAPI) -> None:
    """Add what the door serves itself to the documentation."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        for surface, summary in _SUMMARIES.items():
            schema["paths"][surface.value] = {"post": _operation("inference", summary)}
        for path, summary in _PASSED:
            schema["paths"][path] = {"post": _operation("passed through", summary)}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _operation(tag: str, summary: str) -> dict[str, Any]:
    anything = {"application/json": {"schema": {"type": "object", "additionalProperties": True}}}
    return {
        "tags": [tag],
        "summary": summary,
        "description": "The body is forwarded as it came; the worker's answer comes back as it is.",
        "requestBody": {"required": True, "content": anything},
        "responses": {"200": {"description": "The worker's answer, as JSON or as server-sent events"}},
    }
