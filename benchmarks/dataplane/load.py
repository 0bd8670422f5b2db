"""Load on one address: closed loops (who is answered asks again at once) and open ones (a fixed rate)."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from benchmarks.dataplane.client import Client, Question, Requests, Tally

KEYS = ("bench-key-a", "bench-key-b", "bench-key-c")
"""The clients' keys, as the gateway is configured to know them; others do not care."""
_DRAIN_S = 15.0
"""How much longer than it should take an answer may be under way at the end."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much, and how its clients behave."""

    question: Question
    clients: int
    rate: float | None = None
    """Requests per second of an open loop, sent whatever is still open; None: closed loops."""
    ramp_s: float = 0.0
    """The first requests of closed loops are spread over so long."""
    beginning: int | None = None
    """Of closed loops, how many first requests may wait for the first of their answer; None: any number."""
    leaving: float = 0.0
    """Share of streams whose client leaves after a random number of chunks."""
    slow: float = 0.0
    """Share of requests whose client reads nothing for a while after the first chunk."""
    pause_s: float = 1.0
    """How long that while is."""
    receive_buffer: int | None = None
    """Bytes that the kernel keeps for a client that does not read; None: as many as it likes."""
    hang_up: bool = False
    """At the end a client that is still being answered leaves, instead of waiting for the rest."""
    users: int = 8
    """Who take turns; 0: every request has a user of its own."""
    seed: int = 0


class Running:
    """A load under way on one address."""

    def __init__(self, url: str, load: Load) -> None:
        self.tally = Tally()
        self._port = urlsplit(url).port or 80
        self._load = load
        self._requests = Requests(load.question, url, KEYS, load.users, load.seed)
        self._chance = Random(f"{load.seed}/behaviour")
        self._idle: list[Client] = []
        self._clients: set[Client] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`, and then until what is open has been answered."""
        load = self._load
        if load.rate is None:
            async with asyncio.TaskGroup() as loops:
                for number, delay in enumerate(_spread(load.clients, load.ramp_s)):
                    await self._room_to_begin(number)
                    loops.create_task(self._closed_loop(delay))
        else:
            await self._open_loop(load.rate)
        self._close()

    def stop(self) -> None:
        """Nothing new; a client that has no answer long after it is due has failed."""
        self._stop.set()
        if self._load.hang_up:
            for client in self._clients:
                client.leave()
        question = self._load.question
        answer_s = question.tokens * question.spacing_ms / 1000
        asyncio.get_running_loop().call_later(answer_s + _DRAIN_S, self._close)

    def _close(self) -> None:
        for client in self._clients:
            client.transport.abort()

    async def _closed_loop(self, delay_s: float) -> None:
        await self._pause(delay_s)
        while not self._stop.is_set():
            await self._once()

    async def _room_to_begin(self, begun: int) -> None:
        most = self._load.beginning
        if most is not None:
            # The connections' callbacks keep the count; they have no time for an event per answer.
            while begun - len(self.tally.first_s) >= most and not self._stop.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def _open_loop(self, rate: float) -> None:
        """Times count from when a request was due: one that stalls does not hide how many would have waited."""
        began, sent = time.perf_counter(), 0
        while not self._stop.is_set():
            while (due := began + sent / rate) <= time.perf_counter():
                sent += 1
                task = asyncio.get_running_loop().create_task(self._once(due))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            await asyncio.sleep(0.001)
        if self._asking:
            await asyncio.wait(self._asking)

    async def _once(self, due: float | None = None) -> None:
        """One request on an idle connection or a new one."""
        try:
            client = self._idle.pop() if self._idle else await self._connect()
        except OSError as error:
            self.tally.fail(f"cannot connect: {error}")
            await self._pause(0.1)
            return
        if self._load.hang_up and self._stop.is_set():
            client.leave()  # all others have left while it was being connected
            return
        answered = client.ask(self._load.question, self._requests.next(), due)
        if self._chance.random() < self._load.leaving:
            await self._leave(client, answered)
        elif self._chance.random() < self._load.slow:
            await self._dawdle(client, answered)
        await answered
        if client.lost:
            self._clients.discard(client)
        else:
            self._idle.append(client)

    async def _leave(self, client: Client, answered: asyncio.Future[None]) -> None:
        question = self._load.question
        moment = self._chance.random() * question.tokens * question.spacing_ms / 1000
        await asyncio.wait([answered], timeout=moment)
        if not answered.done():
            client.leave()

    async def _dawdle(self, client: Client, answered: asyncio.Future[None]) -> None:
        await asyncio.wait([answered], timeout=self._load.question.spacing_ms / 1000)
        if not answered.done() and not client.lost:
            client.transport.pause_reading()
            await self._pause(self._load.pause_s)
            with suppress(RuntimeError):
                client.transport.resume_reading()

    async def _connect(self) -> Client:
        loop = asyncio.get_running_loop()
        wire, client = await loop.create_connection(lambda: Client(self.tally), "127.0.0.1", self._port)
        if self._load.receive_buffer is not None:
            wire.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, self._load.receive_buffer
            )
        self._clients.add(client)
        return client

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


@asynccontextmanager
async def under_load(url: str, load: Load) -> AsyncIterator[Tally]:
    """The load runs inside; on exit it is stopped and what is open gets its answer."""
    running = Running(url, load)
    task = asyncio.get_running_loop().create_task(running.run())
    try:
        yield running.tally
    finally:
        running.stop()
        await task


def _spread(clients: int, over_s: float) -> Iterator[float]:
    return (over_s * number / clients for number in range(clients))
