"""The operator's side: see the fleet, add, drain and remove workers while traffic runs."""

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from policies.prefixes.trust import Trust
from router.config.worker import WorkerConfig
from router.control.pools import Member
from router.control.state import Gateway
from router.edge.errors import BadRequest, NoSuchRoute, RequestError, Unauthorized, to_http
from workers.fleet.fleet import DuplicateServerError, UnknownServerError


def admin_pages(gateway: Gateway, key_digest: str) -> FastAPI:  # noqa: C901 - a list of small pages
    """A FastAPI application of its own, mounted at /admin or served on the operator's own port."""

    async def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = "sha256:" + sha256(given.encode()).hexdigest()
        if not hmac.compare_digest(digest, key_digest):
            raise Unauthorized("The admin API needs its key: `Authorization: Bearer KEY`.")

    app = FastAPI(
        title="fairlead admin",
        summary="See and change the fleet. Workers are named by their URL.",
        dependencies=[Depends(authorised)],
    )

    @app.get("/workers", summary="Every worker with its state and load")
    async def workers() -> dict[str, Any]:
        return {"workers": [_row(member) for member in gateway.pools.members.values()]}

    @app.get("/decisions", summary="The last requests that were placed: where, why, and what became of them")
    async def decisions() -> dict[str, Any]:
        return {"decisions": list(gateway.decisions)}

    @app.post("/workers", status_code=201, summary="Add a worker")
    async def add(worker: WorkerConfig) -> dict[str, Any]:
        try:
            gateway.fleet.add(worker.spec())
        except DuplicateServerError as error:
            raise BadRequest(str(error), param="url") from None
        return {"added": worker.url}

    @app.post("/workers/drain", summary="Let a worker finish what it has; nothing new goes there")
    async def drain(url: str) -> dict[str, Any]:
        _known(gateway.fleet.drain, url)
        return {"draining": url}

    @app.post("/workers/undrain", summary="Use a drained worker again")
    async def undrain(url: str) -> dict[str, Any]:
        _known(gateway.fleet.undrain, url)
        return {"undrained": url}

    @app.delete("/workers", summary="Drain a worker, then forget it")
    async def remove(url: str) -> dict[str, Any]:
        _known(gateway.fleet.remove, url)
        return {"removing": url}

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:  # noqa: ARG001 - Starlette's signature
        status, headers, body = to_http(error)
        return Response(body, status, {k.decode(): v.decode() for k, v in headers})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        problems = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return JSONResponse(BadRequest(problems).body(), 400)

    return app


def _known(act: Callable[[str], None], url: str) -> None:
    try:
        act(url.rstrip("/"))
    except UnknownServerError as error:
        raise NoSuchRoute(str(error), param="url") from None


def _row(member: Member) -> dict[str, Any]:
    worker = member.worker
    loads = {row.id: row for row in member.pool.scheduler.snapshot().workers} if member.pool else {}
    load = loads.get(worker.id)
    return {
        "id": worker.id,
        "url": worker.spec.url,
        "state": worker.state.value,
        "why": worker.why,
        "model": worker.model,
        "lines": sorted(worker.lines),
        "roles": sorted(worker.spec.roles),
        "version": worker.version,
        "requests": member.open,
        "prefill_owed_tokens": load.prefill_owed if load else 0,
        "kv_reserved_tokens": load.kv_reserved if load else 0,
        "scrape_stale": worker.stale,
        **_cache(member),
    }


def _cache(member: Member) -> dict[str, Any]:
    """How the worker's cache is known, and how much it holds."""
    if member.pool is None:
        return {"prefix_index": Trust.PREDICTED.value, "prefix_index_why": None, "prefix_held_tokens": 0}
    worker, prefixes = member.worker.id, member.pool.scheduler.prefixes
    return {
        "prefix_index": prefixes.reports.trust(worker).value,
        "prefix_index_why": prefixes.reports.distrust_reason(worker),
        "prefix_held_tokens": prefixes.held_tokens(worker),
    }
