"""Requests one by one: which wait, run, or ended a moment ago, and all there is to say of one of them."""

import asyncio
import time
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Response

from router.control.control_plane import ControlPlane
from router.control.dispatcher import Pool
from router.control.explanation import explain, row
from router.control.histories import History
from router.control.pages.json_page import json_page
from router.control.pools import Pools
from router.control.refused import Refused
from router.observability.page import sliced
from router.port import Reject, RejectKind, shown

MOST_LISTED = 1000
MOST_EXPLAINED = 20
"""Requests that clients have given the same id."""
_ROWS_PER_STEP = 64

State = Literal["waiting", "running", "ended", "all"]


def add_requests(app: FastAPI, control: ControlPlane, pools: Pools, decisions: Collection[dict[str, Any]]) -> None:
    """Add the pages. `decisions`: the log's lines of the last requests that were placed."""

    @app.get("/requests", summary="Requests that wait and run, and the last that ended")
    async def listed(
        state: State = "all",
        client: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 100,
    ) -> Response:
        loop = asyncio.get_running_loop()
        found = list(islice(_matching(control, state, client), limit))
        rows: list[dict[str, Any]] = []
        for some in sliced(found, _ROWS_PER_STEP):
            rows += [row(history, loop.time(), time.time) for history in some]
            await asyncio.sleep(0)
        waiting = sum(pool.scheduler.queued for pool in pools.by_model.values())
        return json_page({"waiting": waiting, "open": len(control), "requests": rows})

    @app.get("/requests/{request:path}", summary="Why a request waited, or went where it went")
    async def explained(request: str) -> Response:
        now = asyncio.get_running_loop().time()
        found = list(islice(_named(control, request), MOST_EXPLAINED))
        if not found:
            message = (
                f"No request `{shown(request)}` is under way or among the last that ended. It is older, was "
                "refused before it was admitted, or passed without being scheduled: the log has a line of each."
            )
            raise Refused(Reject(RejectKind.NOT_FOUND, message, param="request"))
        lines = [line for line in list(decisions) if line.get("request_id") == request]
        told = [explain(history, pool, pools.members.values(), now, time.time) for history, pool in found]
        return json_page({"requests": told, "log": lines[-MOST_EXPLAINED:]})


def _matching(control: ControlPlane, state: State, client: str | None) -> Iterator[History]:
    """The oldest that wait first, then those that run, then the last to end."""
    under_way = [history for history, _ in control.under_way()]
    if state in {"waiting", "all"}:
        yield from (one for one in under_way if not one.placed and client in {None, one.client})
    if state in {"running", "all"}:
        yield from (one for one in under_way if one.placed and client in {None, one.client})
    if state in {"ended", "all"}:
        yield from (one for one in control.histories.latest() if client in {None, one.client})


def _named(control: ControlPlane, request: str) -> Iterator[tuple[History, Pool | None]]:
    """The requests of this id, the newest first."""
    under_way = [(history, pool) for history, pool in control.under_way() if history.name == request]
    yield from reversed(under_way)
    yield from ((history, None) for history in control.histories.latest() if history.name == request)
