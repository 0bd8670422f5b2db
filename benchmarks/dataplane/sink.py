"""A vLLM that takes any request without looking at it, and answers at once.

    python -m benchmarks.dataplane.sink MODEL ANSWER_BYTES

It listens on a free port and prints it. A body is thrown away as it comes, so that a request of 32 MiB costs this
process nothing; the answer to it is a whole one of about `ANSWER_BYTES`. With 0 there is no answer at all.
"""

import asyncio
import sys

import uvloop

from benchmarks.dataplane import backend

_HEAD_BYTES = 1 << 16


class Sink(asyncio.Protocol):
    """One connection."""

    def __init__(self, model: bytes, answer: bytes) -> None:
        self._model = model
        self._answer = answer
        self._head = b""
        self._missing = 0
        """Bytes of a body that are still to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take(len(data))
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > _HEAD_BYTES:
                self._transport.close()
            return
        self._head = b""
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            page = backend.PAGES.get(path.partition(b"?")[0], backend.PAGES[b"/health"])
            body = page.partition(b"\r\n\r\n")[2].replace(b'"' + backend.MODEL.encode() + b'"', self._model)
            self._transport.write(backend.whole(body))
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self._missing = int(lengths[0].partition(b":")[2]) if lengths else 0
        self._take(len(rest))

    def _take(self, size: int) -> None:
        self._missing = max(0, self._missing - size)
        if not self._missing and self._answer:
            self._transport.write(self._answer)


async def serve(model: str, answer_bytes: int) -> None:
    """Listen, say where, and answer until the standard input ends."""
    loop = asyncio.get_running_loop()
    answer = backend.whole(backend.whole_answer(answer_bytes // 5, 1000)) if answer_bytes else b""
    name = f'"{model}"'.encode()
    server = await loop.create_server(lambda: Sink(name, answer), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
