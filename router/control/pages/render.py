"""Rejections as responses of the pages, in the shape that the edge gives them."""

from collections.abc import Callable

from fastapi.responses import Response

from router.port import Reject

Rendered = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""
Render = Callable[[Reject], Rendered]


def response(rendered: Rendered) -> Response:
    """A rendered rejection as Starlette's response."""
    status, headers, body = rendered
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})
