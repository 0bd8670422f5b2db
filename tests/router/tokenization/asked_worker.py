"""A worker that answers small questions, and remembers them."""

import asyncio
import json
import time
from contextlib import asynccontextmanager, closing, suppress

from router.edge.execution.worker_connections import WorkerConnection
from router.port import WorkerAddress
from workers.http.upstream import Upstream


class FakeWorker:
    """Answers what it is told to, by path: a status and a JSON value, or what gives them for a body."""

    def __init__(self, **answers):
        self.answers = {"/" + path.replace("__", "/"): answer for path, answer in answers.items()}
        self.asked = []
        self.serving = set()

    async def serve(self, reader, writer):
        self.serving.add(asyncio.current_task())
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ", 2)[1]
                length = next(
                    (int(v[15:]) for v in head.lower().split("\r\n") if v.startswith("content-length:")), 0
                )
                body = await reader.readexactly(length)
                self.asked.append((path, json.loads(body) if body else None))
                answer = self.answers.get(path, (404, {"detail": "Not Found"}))
                status, value = answer(json.loads(body)) if callable(answer) else answer
                if asyncio.iscoroutine(value):
                    value = await value
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))


async def until(fact):
    """Wait for a fact that another task or thread brings about."""
    deadline = time.monotonic() + 60
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to be")
        await asyncio.sleep(0.001)


@asynccontextmanager
async def member_of(worker):
    """The way to this fake."""
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = Upstream(url)
    try:
        yield WorkerConnection(WorkerAddress(url, url, served_names=frozenset({"m"})), upstream)
    finally:
        await upstream.aclose()
        server.close()
        for task in worker.serving:
            task.cancel()
        await asyncio.gather(*worker.serving, return_exceptions=True)
