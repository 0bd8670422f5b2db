"""What is not inference: liveness, readiness, metrics, the list of models, and the documentation of all of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from router.control.pages.documented_bodies import body_of
from router.control.pages.json_page import json_page
from router.control.pages.render import Render, response
from router.control.pools import Pools
from router.control.refused import Refused
from router.port import Reject, RejectKind, shown

_EXAMPLE_MODEL = "Qwen/Qwen3-8B"
_WAIT_FOR_MODELS_S = 0.5
"""For the list of models: workers that take longer are listed as they were."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the status pages show."""

    pools: Pools
    version: str
    metrics_page: Callable[[], Awaitable[bytes]]
    missing: Callable[[], list[str]]
    """Why the gateway is not ready."""
    serves: Callable[[], bool]
    """Whether new requests for any model can be served."""
    open_requests: Callable[[], int]
    """How many are open."""
    render: Render
    """A rejection in the API's own shape."""


def status_pages(status: Status) -> FastAPI:
    """The status pages by themselves, for a listener of their own, on which they are shown without a key."""
    app = FastAPI(title="fairlead status", version=status.version, docs_url=None, redoc_url=None, openapi_url=None)
    _add_status(app, status, lambda _: None)
    _add_errors(app, status.render)
    return app


def _add_status(app: FastAPI, status: Status, hidden: Callable[[Request], Reject | None]) -> None:
    """Add the status pages. `hidden`: why a request may not see names of workers and clients; None: it may."""

    @app.get("/health", tags=["gateway"], summary="The process is alive")
    @app.get("/healthz", include_in_schema=False)
    @app.get("/livez", include_in_schema=False)
    @app.get("/ping", include_in_schema=False)
    @app.post("/ping", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", tags=["gateway"], summary="Every known model has a routable worker")
    async def ready(request: Request) -> JSONResponse:
        lacking = status.missing()
        content: dict[str, Any] = {"ready": not lacking}
        if hidden(request) is None:
            content["missing"] = lacking
        return JSONResponse(content, HTTPStatus.SERVICE_UNAVAILABLE if lacking else HTTPStatus.OK)

    @app.get("/readyz", tags=["gateway"], summary="Any model can be served, and the gateway is not leaving")
    async def readyz() -> JSONResponse:
        ready = status.serves()
        return JSONResponse({"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/load", tags=["gateway"], summary="Open requests")
    async def load() -> dict[str, int]:
        return {"server_load": status.open_requests()}

    @app.get("/version", tags=["gateway"], summary="Versions of the gateway and its workers")
    async def versions(request: Request) -> dict[str, Any]:
        content: dict[str, Any] = {"version": status.version}
        if hidden(request) is None:
            members = status.pools.members.values()
            content["workers"] = {member.worker.id: member.worker.version for member in members}
        return content

    @app.get("/metrics", tags=["gateway"], summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        reject = hidden(request)
        if reject is not None:
            raise Refused(reject)
        return Response(await status.metrics_page(), media_type=CONTENT_TYPE_LATEST)


def pages(
    status: Status,
    *,
    documented: Sequence[tuple[str, str, str]],
    look_again: Callable[[], Awaitable[None]],
    hidden: Callable[[Request], Reject | None],
    visible: Callable[[Request], Reject | frozenset[str] | None],
    usage: Callable[[Request], dict[str, Any] | Reject],
) -> FastAPI:
    """The FastAPI application behind the edge's routes.

    `documented`: path, tag and summary of what the edge serves itself. `look_again`: asks the workers what they
    serve now. `hidden`: why a request may not see what names workers and clients; None: it may. `visible`: the
    models that its client may see, None for all, or why it may see nothing that is for clients. `usage`: what its
    client has used and may use.
    """
    pools, version = status.pools, status.version
    app = FastAPIOffline(
        title="fairlead",
        version=version,
        summary="A serving router in front of vLLM workers.",
        redirect_slashes=False,
    )
    started = int(time.time())

    async def up_to_date() -> None:
        """List what was loaded a moment ago, without waiting for workers that are slow to say."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_FOR_MODELS_S):
                await look_again()

    _add_status(app, status, hidden)

    async def allowed(request: Request) -> frozenset[str] | None:
        """The models that the client of a request may use; None: all."""
        found = visible(request)
        if isinstance(found, Reject):
            raise Refused(found)
        return found

    Allowed = Annotated[frozenset[str] | None, Depends(allowed)]  # noqa: N806 - a type

    @app.get("/v1/models", tags=["models"], summary="Models of the fleet that the key may use")
    async def models(allowed: Allowed) -> Response:
        await up_to_date()
        cards = [card for card in model_cards(pools, started) if allowed is None or card["id"] in allowed]
        return json_page({"object": "list", "data": cards})

    @app.get("/v1/models/{model:path}", tags=["models"], summary="One model")
    async def model(model: str, allowed: Allowed) -> Response:
        await up_to_date()
        for card in model_cards(pools, started):
            if card["id"] == model and (allowed is None or model in allowed):
                return json_page(card)
        found = pools.routes().find(model)
        unlisted = Reject(RejectKind.NOT_FOUND, f"The model `{shown(model)}` is not listed.")
        raise Refused(found if isinstance(found, Reject) else unlisted)

    @app.get("/v1/usage", tags=["models"], summary="What the key that is sent has used and may use")
    async def used(request: Request) -> Response:
        told = usage(request)
        if isinstance(told, Reject):
            raise Refused(told)
        return json_page(told)

    _add_errors(app, status.render)
    _document(app, documented)
    return app


def _add_errors(app: FastAPI, render: Render) -> None:
    """Answer errors in the API's own shape."""

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {shown(request.url.path)}: {error.detail}. See /docs for what there is."
        wrong_method = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        kind = RejectKind.WRONG_METHOD if wrong_method else RejectKind.NOT_FOUND
        answer = response(render(Reject(kind, what)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:  # noqa: ARG001 - Starlette's signature
        return response(render(error.reject))


def can_serve(pools: Pools) -> bool:
    """Whether any worker takes requests."""
    return any(member.worker.routable for member in pools.members.values())


def not_ready(pools: Pools) -> list[str]:
    """Which models lack a worker; empty if none does."""
    members = list(pools.members.values())
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


def model_cards(pools: Pools, created: int) -> list[dict[str, Any]]:
    """Every name that a client may use, in the shape of OpenAI's list with vLLM's additions."""
    cards: dict[str, dict[str, Any]] = {}
    for member in pools.members.values():
        worker = member.worker
        if worker.model is None:
            continue
        for name in sorted(worker.served_names - cards.keys()):
            adapter = name in worker.adapters
            root = worker.roots.get(name, name if adapter else worker.model)
            cards[name] = _card(name, root, created, None if adapter else worker.max_model_len)
            if adapter:
                cards[name]["parent"] = worker.model
    for alias, target in pools.aliases.items():
        if target in cards:
            cards.setdefault(alias, {**cards[target], "id": alias})
    return sorted(cards.values(), key=lambda card: (card["parent"] or card["id"], card["parent"] is not None))


def _card(name: str, root: str, created: int, max_model_len: int | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
    }


def _document(app: FastAPI, documented: Sequence[tuple[str, str, str]]) -> None:
    """Add what the edge serves itself to the documentation."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        for path, tag, summary in documented:
            schema["paths"][path] = {"post": _operation(path, tag, summary)}
        schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    openapi()  # before requests come: to make it takes longer than the event loop may stop


def _operation(path: str, tag: str, summary: str) -> dict[str, Any]:
    return {
        "tags": [tag],
        "summary": summary,
        "description": "The body is forwarded as it came; the worker's answer comes back as it is.",
        "requestBody": {"required": True, "content": body_of(path, _EXAMPLE_MODEL)},
        "responses": {"200": {"description": "The worker's answer, as JSON or as server-sent events"}},
    }
