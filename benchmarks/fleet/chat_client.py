"""One streamed chat completion over a connection of its own, with the moments that matter.

Plain asyncio streams: what measures must not cost more than what is measured.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


class NoAnswerError(Exception):
    """The answer is an error, or ended before it was complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Moments are of `time.monotonic`; tokens are those of its usage."""

    text: str
    first_at: float
    """When the first text arrived."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Of the input, found in the prefix cache; 0 where the server does not tell."""


async def ask(url: str, body: Mapping[str, Any]) -> Answer:
    """POST `body`, which has to ask for a stream with usage. Raises NoAnswerError and OSError."""
    address = urlsplit(url)
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (address.netloc.encode(), len(payload)) + payload
        )
        return await _read(reader)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise NoAnswerError(f"the answer breaks off or is none: {error!r}") from error
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(None, 2)[1])
    pieces = _pieces(reader, chunked="transfer-encoding: chunked" in head)
    if status != 200:
        told = b"".join([piece async for piece in pieces])
        raise NoAnswerError(f"status {status}: {told[:300].decode(errors='replace')}")
    text: list[str] = []
    first_at = None
    usage: dict[str, Any] | None = None
    async for event in _events(pieces):
        if "error" in event:
            raise NoAnswerError(f"in the stream: {json.dumps(event['error'])[:300]}")
        usage = event.get("usage") or usage
        said = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if said:
            first_at = first_at or time.monotonic()
            text.append(said)
    if usage is None:
        raise NoAnswerError("the stream ended without its usage")
    # Tokens that decode to no text at all: the end is the first that was seen of them.
    first_at = first_at or time.monotonic()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer("".join(text), first_at, usage["prompt_tokens"], usage["completion_tokens"], cached)


async def _pieces(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    if not chunked:
        while piece := await reader.read(1 << 16):
            yield piece
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events up to `[DONE]`, which may be cut anywhere by the pieces."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                yield json.loads(data)
