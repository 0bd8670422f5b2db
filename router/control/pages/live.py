"""The fleet live: one value, a stream of them (server-sent events), and the page for people that shows it.

The page and its script hold no data, so they need no key; what they show comes from the API below, which does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import cache
from importlib.resources import files

import orjson
from fastapi import FastAPI, Response
from starlette.responses import StreamingResponse

from router.control.overview import Overview
from router.control.pages.json_page import json_page
from router.control.refused import Refused
from router.port import Reject, RejectKind

MOST_VIEWERS = 32
"""Streams that may be open at once."""
_EVERY_S = 1.0
ASSETS = {
    "/status": ("status.html", "text/html; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
}
"""Paths that are shown without a key."""
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class LivePages:
    """`closing`: whether the gateway is about to end, which ends the streams."""

    def __init__(self, overview: Overview, closing: Callable[[], bool]) -> None:
        self._overview = overview
        self._closing = closing
        self.viewers = 0

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""

        @app.get("/overview", summary="Workers, clients, the queue and the last decisions, in one value")
        async def overview() -> Response:
            return json_page(await self._overview.read())

        @app.get("/events", summary="The same once a second, as server-sent events")
        async def events() -> Response:
            if self.viewers >= MOST_VIEWERS:
                message = f"{MOST_VIEWERS} streams are open, which is the most; close one, or ask for /overview."
                raise Refused(Reject(RejectKind.OVERLOADED, message, retry_after_s=5))
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(self._stream(), media_type="text/event-stream", headers=headers)

        for path, (name, kind) in ASSETS.items():
            app.add_api_route(path, _asset_page(name, kind), include_in_schema=False)

    async def _stream(self) -> AsyncIterator[bytes]:
        self.viewers += 1
        try:
            while not self._closing():
                value = await self._overview.read()
                yield b"data: " + orjson.dumps(value, default=str) + b"\n\n"
                await asyncio.sleep(_EVERY_S)
        finally:
            self.viewers -= 1


def _asset_page(name: str, kind: str) -> Callable[[], Response]:
    def page() -> Response:
        return Response(_asset(name), media_type=kind, headers=_HEADERS)

    return page


@cache
def _asset(name: str) -> bytes:
    return (files("router.control.pages") / "assets" / name).read_bytes()
