"""A gateway put together by the real composition root, listening on a real socket in the running event loop."""

import asyncio
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from router import app
from router.config.schema import Config
from router.edge.server import stop
from router.observability.log_writer import Lines
from router.observability.request_log import RequestLog
from workers.simulator.server import SimulatedWorker, SimulatorConfig, simulated_worker

T = TypeVar("T")

MODEL = "tiny"
WATCHFUL = {"probe_every_s": 0.2, "probe_timeout_s": 2, "scrape_every_s": 0.5, "stale_after_s": 5}
_SERIES = re.compile(r"^(fairlead_\w+?)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Running:
    """One gateway, with what a test wants to see of it."""

    url: str
    admin_url: str | None
    gateway: app.Router
    config: Config
    http: httpx.AsyncClient
    _log: io.BytesIO = field(repr=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def lines(self) -> list[dict[str, Any]]:
        """The log's request lines."""
        self.gateway.request_log.lines.flush()
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def outcomes(self) -> Counter[str]:
        """Finished requests by outcome, as /metrics counts them."""
        counted: Counter[str] = Counter()
        for labels, value in self.series("fairlead_client_requests_total"):
            if value:
                counted[labels["outcome"]] += int(value)
        return counted

    def series(self, name: str) -> list[tuple[dict[str, str], float]]:
        return series(self.gateway.metrics.page.now().decode(), name)

    def placements(self) -> list[str]:
        """The workers of the finished requests, in order."""
        return [line["worker"] for line in self.lines() if "worker" in line]

    def held(self) -> dict[str, object]:
        """Everything that a request takes and has to give back; all false when nothing runs."""
        gateway = self.gateway
        held: dict[str, object] = {"open": gateway.intake.open, "at control": len(gateway.control)}
        held["bytes of requests"] = gateway.intake.held.requests
        held["bytes of answers"] = gateway.intake.held.answers
        for model, pool in gateway.pools.by_model.items():
            snapshot = pool.scheduler.snapshot()
            held[f"{model} queued"] = snapshot.queued
            held[f"{model} in flight"] = snapshot.in_flight
            held[f"{model} admitted"] = len(pool._admitted)
            for row in snapshot.workers:
                held[f"{row.id} load"] = (row.requests, row.sequences, row.prefill_owed) != (0, 0, 0)
                held[f"{row.id} kv"] = row.kv_reserved
        for member in gateway.pools.members.values():
            held[f"{member.worker.id} open"] = member.open
        for connection in gateway.connections:
            held[f"{connection.address.id} busy"] = connection.busy
        for name, account in gateway.clients.quota.accounts().items():
            held[f"{name} leases"] = account.open
        return held

    async def at_rest(self, *workers: SimulatedWorker) -> None:
        """Wait until nothing is held, here and on the workers; fails with what still is."""

        def remains() -> dict[str, object]:
            held = {what: amount for what, amount in self.held().items() if amount}
            for worker in workers:
                state = worker.state()
                if state["running"] or state["waiting"]:
                    held[worker.url] = (state["running"], state["waiting"])
            return held

        await until(lambda: not remains(), remains)


def series(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    """One metric's labels and values from a page of Prometheus text."""
    return [
        (dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), float(value))
        for found, labels, value in _SERIES.findall(page)
        if found == name
    ]


async def until(fact: Callable[[], Any], what: Callable[[], object] | str = "", *, within_s: float = 20.0) -> None:
    """Wait for a fact; fails with `what` is the case instead."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come to be: {what() if callable(what) else what}")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running_gateway(
    workers: list[Any] | None = None, *, ready: bool = True, **settings: Any
) -> AsyncIterator[Running]:
    """A gateway in front of these workers. `settings` are sections of the configuration."""
    sections: dict[str, Any] = {"health": WATCHFUL, **settings}
    sections["listen"] = {"port": 0, **sections.get("listen", {})}
    config = Config.load(env={}, overrides={"workers": workers or [], **sections})
    log = io.BytesIO()
    is_ready = asyncio.Event()
    async with AsyncExitStack() as stack:
        written = Lines(log)
        stack.callback(written.close)
        lines = RequestLog(written, text=False, prompts=config.log.prompts)
        gateway = await stack.enter_async_context(app.assemble(config, lines, is_ready.set))
        servers = app.servers(config, gateway)
        serving = [asyncio.create_task(server.serve()) for server in servers]
        stack.push_async_callback(_stop, gateway, servers, serving)
        await until(lambda: all(server.started for server in servers) or any(task.done() for task in serving))
        ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
        scheme = "https" if config.listen.tls_certificate else "http"
        url = f"{scheme}://127.0.0.1:{ports[0]}"
        admin = f"http://127.0.0.1:{ports[1]}" if len(ports) > 1 else None
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20, verify=False))
        if ready and workers:
            await asyncio.wait_for(is_ready.wait(), 10)
        yield Running(url, admin, gateway, config, http, log)


async def _stop(gateway: app.Router, servers: list[Any], serving: list[asyncio.Task[None]]) -> None:
    gateway.intake.draining = True
    await stop(servers, serving)


@dataclass(slots=True)
class Fleet:
    """A gateway and its simulated workers."""

    gateway: Running
    workers: list[SimulatedWorker]

    @property
    def http(self) -> httpx.AsyncClient:
        return self.gateway.http

    @property
    def running(self) -> int:
        """Sequences inside the engines."""
        return sum(worker.engine.running + worker.engine.waiting for worker in self.workers)

    def by_url(self, url: str) -> SimulatedWorker:
        return next(worker for worker in self.workers if worker.url == url)

    async def at_rest(self) -> None:
        await self.gateway.at_rest(*self.workers)


@asynccontextmanager
async def running_fleet(
    count: int = 1,
    simulator: Mapping[str, Any] | None = None,
    worker: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """`count` simulated workers behind a gateway. `worker`: what its configuration says of each."""
    config = SimulatorConfig(**{"model": MODEL, "profile": "instant", **(simulator or {})})
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(simulated_worker(config)) for _ in range(count)]
        known = [{"url": one.url, **(worker or {})} for one in workers]
        yield Fleet(await stack.enter_async_context(running_gateway(known, **settings)), workers)


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Run an asynchronous context in an event loop of its own thread, for fixtures that outlive a test's loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway under test")
    thread.start()

    def run(awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(30)

    context = make()
    try:
        yield run(_enter(context))
    finally:
        run(_exit(context))
        run(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _enter(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _exit(context: AbstractAsyncContextManager[Any]) -> None:
    await context.__aexit__(None, None, None)


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One HTTP answer, read off a socket. `closed`: the server has ended the connection after it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class RawClient:
    """A connection without a client library: what is written is what goes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> RawAnswer:
        """The next answer; raises IncompleteReadError if the connection ends before it is there."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = b"".join([piece async for piece in self.chunks()])
            else:
                body = await self.reader.read()
            closed = headers.get("connection") == "close" and await self.reader.read() == b""
        return RawAnswer(int(first.split()[1]), headers, body, closed)

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()

    def vanish(self) -> None:
        """Close at once, without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def raw_client(port: int, **options: Any) -> AsyncIterator[RawClient]:
    where = {} if "sock" in options else {"host": "127.0.0.1", "port": port}
    reader, writer = await asyncio.open_connection(**where, **options)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


def post(path: str, body: bytes | dict[str, Any], *headers: str, length: int | None = None) -> bytes:
    """The bytes of a POST; `length` may lie."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: gateway", "content-type: application/json", *headers]
    lines.append(f"content-length: {len(content) if length is None else length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content


Script = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


class ScriptedWorker:
    """A worker that says, byte for byte, what a test wants to have said."""

    def __init__(self, script: Script, model: str) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.left = 0
        """Connections that the other side has closed."""
        self.url = ""
        self._models = {"object": "list", "data": [{"id": model, "root": model, "parent": None}]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length.group(1))) if length else b""
                if head.startswith("GET"):
                    page = b"" if "/v1/models" not in head else json.dumps(self._models).encode()
                    writer.write(whole_answer(page))
                else:
                    self.bodies.append(body)
                    self.asked.append(_fields(body))
                    gone = asyncio.create_task(reader.read(1))
                    gone.add_done_callback(partial(_hang_up, writer))
                    await self.script(self.asked[-1], writer)
                    await writer.drain()
                    break
        self.left += 1
        writer.transport.abort()


def _fields(body: bytes) -> dict[str, Any]:
    """A JSON body; nothing where it is none, or nested more deeply than a test reads."""
    try:
        return dict(json.loads(body)) if body.startswith(b"{") else {}
    except RecursionError:
        return {}


def _hang_up(writer: asyncio.StreamWriter, gone: asyncio.Task[bytes]) -> None:
    """The other side has closed, which a script that writes no more would not notice."""
    if not gone.cancelled():
        gone.exception()
    writer.transport.abort()


def whole_answer(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def scripted_worker(script: Script, model: str = MODEL) -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker(script, model)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError):
            await worker.serve(reader, writer)
        connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    worker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
