"""The operator's side: see the fleet, add, drain and remove workers while traffic runs."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline

from policies.model import WorkerView
from policies.prefixes.trust import Trust
from router.config.worker import WorkerConfig
from router.control.pages.json_page import json_page
from router.control.pages.render import Render, response
from router.control.pools import Member, Pools
from router.control.refused import Refused
from router.observability.page import sliced
from router.port import Reject, RejectKind
from workers.fleet.fleet import DuplicateServerError, Fleet, UnknownServerError

_WORKERS_PER_STEP = 32


def admin_pages(
    pools: Pools,
    fleet: Fleet,
    decisions: Collection[dict[str, Any]],
    render: Render,
    more: Iterable[Callable[[FastAPI], None]] = (),
) -> FastAPI:
    """A FastAPI application of its own, to be served behind a `Guard`, which looks at the key.

    `more`: each adds pages of its own.
    """
    app = FastAPIOffline(
        title="fairlead admin", summary="See and change the fleet. Workers are named by their URL."
    )
    for add_pages in more:
        add_pages(app)

    @app.get("/workers", summary="Every worker with its state and load")
    async def workers() -> Response:
        return json_page({"workers": await worker_rows(pools)})

    @app.get("/decisions", summary="The last requests that were placed: where, why, and what became of them")
    async def last_decisions() -> Response:
        return json_page({"decisions": list(decisions)})

    @app.post("/workers", status_code=201, summary="Add a worker")
    async def add(worker: WorkerConfig) -> dict[str, Any]:
        try:
            fleet.add(worker.spec())
        except DuplicateServerError as error:
            raise Refused(Reject(RejectKind.BAD_REQUEST, str(error), param="url")) from None
        return {"added": worker.url}

    @app.post("/workers/drain", summary="Let a worker finish what it has; nothing new goes there")
    async def drain(url: str) -> dict[str, Any]:
        _known(fleet.drain, url)
        return {"draining": url}

    @app.post("/workers/undrain", summary="Use a drained worker again")
    async def undrain(url: str) -> dict[str, Any]:
        _known(fleet.undrain, url)
        return {"undrained": url}

    @app.delete("/workers", summary="Drain a worker, then forget it")
    async def remove(url: str) -> dict[str, Any]:
        _known(fleet.remove, url)
        return {"removing": url}

    _add_errors(app, render)
    return app


def _add_errors(app: FastAPI, render: Render) -> None:
    """Answer errors in the API's own shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:  # noqa: ARG001 - Starlette's signature
        return response(render(error.reject))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        problems = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return response(render(Reject(RejectKind.BAD_REQUEST, problems)))


def _known(act: Callable[[str], None], url: str) -> None:
    try:
        act(url.rstrip("/"))
    except UnknownServerError as error:
        raise Refused(Reject(RejectKind.NOT_FOUND, str(error), param="url")) from None


async def worker_rows(pools: Pools) -> list[dict[str, Any]]:
    """Every worker, a few at a time: the loop turns in between."""
    loads: dict[str, WorkerView] = {}
    for pool in list(pools.by_model.values()):
        loads |= {row.id: row for row in pool.scheduler.snapshot().workers}
        await asyncio.sleep(0)
    rows = []
    for members in sliced(pools.members.values(), _WORKERS_PER_STEP):
        rows += [_row(member, loads.get(member.worker.id)) for member in members]
        await asyncio.sleep(0)
    return rows


def _row(member: Member, load: WorkerView | None) -> dict[str, Any]:
    worker = member.worker
    return {
        "id": worker.id,
        "url": worker.spec.url,
        "state": worker.state.value,
        "why": worker.why,
        "model": worker.model,
        "lines": sorted(worker.served_names),
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
