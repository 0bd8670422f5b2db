"""What does the upstream client cost per request and per chunk?

A raw asyncio server in a child process answers with one JSON body, or with a stream of chunks in one write each.
Printed is the CPU time of this process only (user and system): the client with its event loop and system calls.

    python benchmarks/micro/upstream_cost.py [--requests 20000] [--loop uvloop|asyncio] [--profile]
"""

import argparse
import asyncio
import cProfile
import multiprocessing
import pstats
import time
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from workers.http.upstream import Upstream

CHUNK = b"data: " + b"x" * 240 + b"\n\n"
CHUNKS = 64
BODY = b"{" + b"x" * 600 + b"}"
PLAIN = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
STREAM = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"accept", b"*/*"),
    (b"user-agent", b"benchmark"),
    (b"x-request-id", b"0123456789abcdef"),
]
PROMPT = b'{"messages": "' + b"p" * 2000 + b'"}'


class FakeWorker(asyncio.Protocol):
    """Answers each request when its last byte is there (they all have the same length)."""

    def __init__(self) -> None:
        self.rest = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self.stream = data.startswith(b"POST /stream")
            self.rest = data.index(b"\r\n\r\n") + 4 + len(PROMPT)
        self.rest -= len(data)
        if self.rest == 0:
            self.answer()

    def answer(self) -> None:
        if self.stream:
            self.transport.write(STREAM)
            asyncio.get_running_loop().call_later(0.02, self.chunk, CHUNKS)
        else:
            self.transport.write(PLAIN)

    def chunk(self, left: int) -> None:
        if left:
            self.transport.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
            asyncio.get_running_loop().call_later(0.02, self.chunk, left - 1)
        else:
            self.transport.write(b"0\r\n\r\n")


def serve(pipe: Connection) -> None:
    """The child process: serve until terminated, having told the port."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(FakeWorker, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


async def plain(upstream: Upstream, requests: int) -> None:
    """One request after the other."""
    for _ in range(requests):
        exchange = await upstream.send(b"POST", b"/plain", HEADERS, PROMPT)
        await exchange.head()
        if await exchange.read() != BODY or await exchange.read() != b"":
            raise AssertionError("a wrong answer")


async def stream(upstream: Upstream) -> int:
    """One streamed answer; how often it was read."""
    exchange = await upstream.send(b"POST", b"/stream", HEADERS, PROMPT)
    await exchange.head()
    reads = 0
    while await exchange.read():
        reads += 1
    return reads


async def bare(port: int, requests: int, path: bytes, end: bytes) -> None:
    """The floor: the same traffic on a bare socket through the loop, nothing built and nothing parsed."""
    loop = asyncio.get_running_loop()
    request = b"POST " + path + b" HTTP/1.1\r\n\r\n" + PROMPT

    class Bare(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            if data.endswith(end):
                waiter.set_result(None)

    transport, _ = await loop.create_connection(Bare, "127.0.0.1", port)
    for _ in range(requests):
        waiter = loop.create_future()
        transport.write(request)
        await waiter
    transport.abort()


async def cost(work: Coroutine[Any, Any, Any], profile: cProfile.Profile | None) -> float:
    """Microseconds of CPU that this process spends on the work."""
    if profile is not None:
        profile.enable()
    before = time.process_time()
    await work
    spent = time.process_time() - before
    if profile is not None:
        profile.disable()
    return spent * 1e6


async def measure(port: int, requests: int, streams: int, profile: cProfile.Profile | None) -> None:
    """Print the figures."""
    upstream = Upstream(f"http://127.0.0.1:{port}")
    await plain(upstream, 200)
    quarter = requests // 4
    reads: list[int] = []

    async def four_at_once() -> None:
        await asyncio.gather(*(plain(upstream, quarter) for _ in range(4)))

    async def bare_four() -> None:
        await asyncio.gather(*(bare(port, quarter, b"/plain", b"}") for _ in range(4)))

    async def streamed() -> None:
        reads.extend(await asyncio.gather(*(stream(upstream) for _ in range(streams))))

    async def bare_streams() -> None:
        await asyncio.gather(*(bare(port, 1, b"/stream", b"0\r\n\r\n") for _ in range(streams)))

    per_request = [await cost(bare_four(), None), await cost(four_at_once(), profile)]
    per_stream = [await cost(bare_streams(), None), await cost(streamed(), profile)]
    print(
        f"CPU, microseconds                             bare socket    upstream ({requests} / {streams} requests)"
    )
    print("request with a JSON answer, 4 at once    {:16.1f}{:12.1f}".format(*(c / requests for c in per_request)))
    print("stream of 64 chunks, 20 ms apart         {:16.1f}{:12.1f}".format(*(c / streams for c in per_stream)))
    per_chunk = [c / streams / CHUNKS for c in per_stream]
    print("  the same per chunk                     {:16.2f}{:12.2f}".format(*per_chunk), f"({sum(reads)} reads)")
    await upstream.aclose()


def main() -> None:
    """Start the fake worker, measure, stop it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=10_000)
    arguments.add_argument("--streams", type=int, default=100)
    arguments.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments.add_argument("--profile", action="store_true")
    chosen = arguments.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    worker.start()
    port = here.recv()
    profile = cProfile.Profile() if chosen.profile else None
    run = uvloop.run if chosen.loop == "uvloop" else asyncio.run
    try:
        run(measure(port, chosen.requests, chosen.streams, profile))
    finally:
        worker.terminate()
        worker.join()
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
