"""What does a request cost inside the gateway, without the kernel?

    python -m benchmarks.dataplane.inside [--profile plain|stream] [--continuation off|exact|best_effort]

The whole gateway with its listener and its upstream client, between two transports that are lists: no sockets and
no system calls, so what is measured is the code itself. CPU time of this process in µs; the least of many short
slices, which a busy machine disturbs least. A backend in another process is there for the probes only.
"""

import argparse
import asyncio
import cProfile
import io
import os
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop

from benchmarks.dataplane.__main__ import backends
from benchmarks.dataplane.backend import answer_to
from benchmarks.dataplane.client import Question, Requests
from benchmarks.dataplane.load import KEYS
from benchmarks.dataplane.routers import fairlead_config
from router import app
from router.config.schema import Config
from router.edge.connection import connection_class
from router.edge.listener import Listener
from router.edge.process_limits import spare_the_collector
from router.observability import request_log as log
from router.port import ContinuationMode
from workers.http.connection import Connection
from workers.http.upstream import Upstream

QUESTIONS = {
    "plain": Question(2048, 16, 0, stream=False),
    "plain-128k": Question(128 * 1024, 16, 0, stream=False),
    "stream": Question(2048, 64, 0),
}
_AS_SERVED: dict[str, Any] = {"lifespan": "off", "log_config": None, "ws": "none", "proxy_headers": False}
_SLICE = 50
"""Requests per slice."""


class Pipe(asyncio.Transport):
    """A transport of this protocol that hands whatever is written to a callback."""

    def __init__(self, protocol: Any, written: Callable[[Any], None]) -> None:
        super().__init__()
        self.write = written  # type: ignore[assignment, method-assign]
        self._protocol = protocol
        self._closing = False
        protocol.connection_made(self)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing comes that was not asked for."""

    resume_reading = pause_reading


class Worker:
    """The other end of an upstream connection: each piece of an answer in a turn of the loop of its own."""

    def __init__(self, pool: Upstream) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection = Connection(pool)
        Pipe(self.connection, self._asked)

    def _asked(self, request: bytes) -> None:
        self._pieces = iter(answer_to(request))
        self._loop.call_soon(self._say)

    def _say(self) -> None:
        piece = next(self._pieces, None)
        if piece is not None:
            self.connection.data_received(piece)
            self._loop.call_soon(self._say)


class Inside(Upstream):
    """An upstream whose connections lead to `Worker`."""

    async def _dial(self) -> Connection:
        self._dialing -= 1
        return Worker(self).connection


class Asker:
    """A client that asks one question after the other."""

    def __init__(self, protocol: Any, requests: Requests) -> None:
        self._protocol = protocol
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._left = 0
        Pipe(protocol, self._heard)

    async def ask(self, count: int) -> None:
        """A number of them, one after the other."""
        self._left = count
        self._done = self._loop.create_future()
        self._next()
        await self._done

    def _next(self) -> None:
        self._left -= 1
        self._protocol.data_received(self._requests.next())

    def _heard(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            raise AssertionError(data)
        if data == b"0\r\n\r\n" or data.endswith((b"}}", b"\r\n0\r\n\r\n")):
            if self._left:
                self._loop.call_soon(self._next)
            else:
                self._done.set_result(None)


async def measure(
    mode: str, slices: int, profile: cProfile.Profile | None, continuation: ContinuationMode = "exact"
) -> float:
    """µs per request: the least of several slices."""
    vars(app)["Upstream"] = Inside
    lines = log.RequestLog(log.Lines(io.FileIO(os.devnull, "wb")), text=False, prefixes=True)
    async with backends(4) as workers:
        known = asyncio.Event()
        # Elsewhere a tokenizer is looked for meanwhile, in a thread, which takes seconds beside a busy loop.
        config = Config.model_validate(
            {**fairlead_config(workers), "tokenization": {"tokenizer": "text"}, "continuation": continuation}
        )
        async with app.assemble(config, lines, known.set) as router:
            await known.wait()
            settings = uvicorn.Config(app.routes(router, _nothing, config.listen), **_AS_SERVED)
            settings.load()
            state = uvicorn.server.ServerState()
            protocol = connection_class(Listener())(settings, state, {})  # type: ignore[call-arg]
            asker = Asker(protocol, Requests(QUESTIONS[mode], "http://inside:1", KEYS, 8, 0))
            await asker.ask(2 * _SLICE)
            spare_the_collector()
            least = float("inf")
            for _ in range(slices):
                if profile is not None:
                    profile.enable()
                before = time.process_time()
                await asker.ask(_SLICE)
                least = min(least, time.process_time() - before)
                if profile is not None:
                    profile.disable()
            return 1e6 * least / _SLICE


async def _nothing(*_: Any) -> None:
    """No page is asked for here."""


def main() -> None:
    """Print a figure per kind of request, or a profile of one."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--slices", type=int, default=60)
    arguments.add_argument("--profile", choices=QUESTIONS)
    arguments.add_argument("--continuation", choices=("off", "exact", "best_effort"), default="exact")
    chosen = arguments.parse_args()
    if chosen.profile:
        profile = cProfile.Profile()
        uvloop.run(measure(chosen.profile, chosen.slices, profile, chosen.continuation))
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(60)
        return
    for mode, question in QUESTIONS.items():
        cost = uvloop.run(measure(mode, chosen.slices, None, chosen.continuation))
        each = f", {cost / question.tokens:.2f} per chunk" if question.stream else ""
        print(f"{mode:<12} {cost:8.1f} µs per request{each}")


if __name__ == "__main__":
    main()
