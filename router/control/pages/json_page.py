"""A page of JSON that may be large: FastAPI would copy every value of it in Python, in the event loop."""

import json
from typing import Any

import orjson
from fastapi.responses import Response


def json_page(content: Any) -> Response:
    """The response with this content: a hundred thousand values take a millisecond."""
    try:
        body = orjson.dumps(content, default=str)
    except TypeError:  # half a character in a name that a client chose, an integer beyond 64 bits
        body = json.dumps(content, default=str).encode()
    return Response(body, media_type="application/json")
