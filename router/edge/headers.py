"""Which headers cross the gateway, and in which direction."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from router.edge.trust import TO_WORKERS, goes_to_client

Header = tuple[bytes, bytes]

EVENT_STREAM = b"text/event-stream"


def to_worker(scope: MutableMapping[str, Any], request: bytes, own: Iterable[Header]) -> list[Header]:
    """The client's headers as a worker gets them, with the request's id and the worker's own (key, rank)."""
    headers = [pair for pair in scope["headers"] if pair[0] in TO_WORKERS]
    for name, value in scope["headers"]:
        if name == b"connection":  # it may name others that are meant for this hop only
            dropped = {part.strip().lower() for part in value.split(b",")}
            headers = [pair for pair in headers if pair[0] not in dropped]
    headers.append((b"x-request-id", request))
    headers.extend(own)
    return headers


def to_client(headers: Iterable[Header], request: bytes, length: int | None) -> list[Header]:
    """A worker's headers as the client gets them; without a length the body is sent in chunks."""
    kept: list[Header] = []
    of_this_hop: set[bytes] = set()
    for pair in headers:
        if goes_to_client(*pair):
            kept.append(pair)
        elif pair[0] == b"connection":  # it may name others that are meant for the worker's hop only
            of_this_hop.update(part.strip().lower() for part in pair[1].split(b","))
    if of_this_hop:
        kept = [pair for pair in kept if pair[0] not in of_this_hop]
    if length is not None:
        kept.append((b"content-length", str(length).encode()))
    kept.append((b"x-request-id", request))
    return kept


def content_type(headers: Iterable[Header]) -> bytes:
    """The value of Content-Type, parameters included; empty if there is none."""
    return next((value for name, value in headers if name == b"content-type"), b"")
