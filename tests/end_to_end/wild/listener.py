"""A worker that says any bytes at all, and that reads each request as strictly as RFC 9112 allows.

Probes are answered as vLLM answers them; every other request gets what `answer` makes for it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

from tests.end_to_end.wild.strict_http import Malformed, Message, request


class End(Enum):
    """What a listener does with the connection after its last byte."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    STALL = auto()
    """Keep it open and say nothing more; what else is asked there stays unanswered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes in the pieces in which they are written, with a turn of the loop in between."""

    pieces: tuple[bytes, ...]
    end: End = End.KEEP


class Listener:
    """One worker, serving one model. What it read that it should not have been sent is in `offences`."""

    def __init__(self, model: str, answer: Callable[[Message], Answer]) -> None:
        self.model = model
        self.answer = answer
        self.url = ""
        self.seen: list[tuple[str, bytes]] = []
        """Method and target of each request that was no probe."""
        self.offences: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                message = await self._request(reader)
                if message is None:
                    break
                if message.method == "GET" and message.target in _PROBES:
                    writer.write(self._page(message.target))
                    continue
                self.seen.append((message.method, message.target))
                answer = self.answer(message)
                for piece in answer.pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(answer.pieces) > 1:
                        await asyncio.sleep(0)
                if answer.end is End.STALL:
                    await reader.read()
                if answer.end is not End.KEEP:
                    if answer.end is End.RESET:
                        writer.transport.abort()
                    break

    async def _request(self, reader: asyncio.StreamReader) -> Message | None:
        data = b""
        while True:
            piece = await reader.read(1 << 18)
            data += piece
            try:
                message, end = request(data)
            except Malformed as offence:
                self.offences.append(f"{offence} in {data[:300]!r}")
                return None
            if message.complete:
                if end < len(data):
                    self.offences.append(f"bytes behind a request: {data[end : end + 300]!r}")
                return message
            if not piece:
                return None

    def _page(self, target: bytes) -> bytes:
        if target == b"/v1/models":
            card = {"id": self.model, "root": self.model, "parent": None, "max_model_len": 4096}
            return whole(json.dumps({"object": "list", "data": [card]}).encode())
        if target == b"/metrics":
            return whole(b"vllm:num_requests_running 0.0\n", kind=b"text/plain")
        return whole(b"{}")


_PROBES = (b"/v1/models", b"/metrics", b"/health", b"/version", b"/server_info", b"/kv_event_sources")


def whole(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


@asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[Listener]:
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        with suppress(asyncio.CancelledError):
            await listener.serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield listener
    finally:
        server.close()
        open_ones = list(connections)
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
