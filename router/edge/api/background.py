"""Responses in the background (OpenAI's Responses API): how far one is.

A worker answers at once that such a response is queued, and computes it afterwards, whether or not the client is
still there. The answer says so in its `status`; what the request asked for is not enough to tell.
"""

from typing import NamedTuple

import orjson

from policies.model import Usage
from router.edge.api.stream_monitor import LONGEST_ID, read_usage

_UNDER_WAY = frozenset(("queued", "in_progress"))


class Progress(NamedTuple):
    """What a stored response says of itself."""

    id: str | None
    status: str | None
    usage: Usage | None

    @property
    def under_way(self) -> bool:
        return self.status in _UNDER_WAY


def progress(body: bytes) -> Progress:
    """Read a response. What is no response has no status."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        return Progress(None, None, None)
    response, status = content.get("id"), content.get("status")
    return Progress(
        response if isinstance(response, str) and 0 < len(response) <= LONGEST_ID else None,
        status if isinstance(status, str) else None,
        read_usage(content.get("usage")),
    )


def may_be_under_way(body: bytes) -> bool:
    """A cheap look before `progress`: whether the body has one of the words at all."""
    return b'"queued"' in body or b'"in_progress"' in body
