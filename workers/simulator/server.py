"""A simulated vLLM worker on a socket: from configuration to a listening port and back.

For tests:

    async with simulated_worker(SimulatorConfig(profile="instant")) as worker:
        ... worker.url, worker.state(), worker.set_fault(Fault("hang")), worker.app.received ...
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from workers.simulator.app import Application
from workers.simulator.connector import Handover, KvTransfer
from workers.simulator.engine import Engine
from workers.simulator.faults import Fault
from workers.simulator.kv_publisher import KvEventsConfig, KvPublisher
from workers.simulator.profiles import PROFILES
from workers.simulator.real_time import LiveEngine
from workers.simulator.reply import Vocabulary
from workers.simulator.requests import Served
from workers.simulator.sequences import EngineConfig, Scheduling

_KEEP_ALIVE_S = 5
"""vLLM closes idle connections after this time, too."""
_CLOSE_S = 3.0
_REOPEN_S = 0.05
_TURNS = 3
"""Of the event loop, after which a port is closed for good."""


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """One simulated worker. What is None follows from the profile."""

    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    served_names: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    profile: str = "h100-llama-3.1-8b"
    speed: float = 1.0
    """Simulated seconds per second."""
    seed: int = 0
    vocabulary: Vocabulary = "english"
    """What its answers are made of: words of one token each, or characters that take several tokens."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""
    block_size: int = 16
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    """None: 131,072, or what fits into the KV cache."""
    scheduling: Scheduling = "fcfs"
    prefix_caching: bool = True
    api_key: str | None = None
    max_num_queued_reqs: int | None = None
    shutdown_timeout_s: float = 0.0
    """How long requests in flight may go on after `stop`; 0: they end at once with `abort`."""
    kv_transfer: KvTransfer | None = None
    """vLLM's --kv-transfer-config; None: it does whole requests only."""
    kv_events: KvEventsConfig | None = None
    """vLLM's --kv-events-config; None: nothing is published."""
    fault: Fault | None = None
    """Set from the start."""

    def engine_config(self) -> EngineConfig:
        """Limits of the engine. Raises ValueError for an unknown profile or limits that do not fit together."""
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}, known are {', '.join(PROFILES)}")
        if self.speed <= 0:
            raise ValueError(f"speed is {self.speed}, not a positive number")
        profile = PROFILES[self.profile]
        blocks = self.kv_blocks or profile.kv_tokens // self.block_size
        seqs = self.max_num_seqs or profile.max_num_seqs
        return EngineConfig(
            kv_blocks=blocks,
            block_size=self.block_size,
            max_num_seqs=seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or max(seqs, profile.max_num_batched_tokens),
            max_model_len=self.max_model_len or min(131_072, blocks * self.block_size),
            scheduling=self.scheduling,
            prefix_caching=self.prefix_caching,
            kv_events=self.kv_events is not None,
            kv_lease_s=(self.kv_transfer or KvTransfer()).lease_s,
        )


class SimulatedWorker:
    """A worker inside the running event loop. `start` and `stop` it, or use `simulated_worker`."""

    def __init__(self, config: SimulatorConfig) -> None:
        limits = config.engine_config()
        self.config = config
        self.live = LiveEngine(limits, PROFILES[config.profile], seed=config.seed, speed=config.speed)
        served = Served(
            config.model,
            config.served_names,
            config.loras,
            limits.max_model_len,
            config.seed,
            config.vocabulary,
        )
        self.handover = Handover(self.live, config.kv_transfer)
        self.publisher = KvPublisher(config.kv_events, config.host) if config.kv_events else None
        self.app = Application(
            served,
            self.live,
            handover=self.handover,
            publisher=self.publisher,
            api_key=config.api_key,
            max_num_queued_reqs=config.max_num_queued_reqs,
        )
        self.app.on_fault = self._on_fault
        self.port = config.port
        self._loop = asyncio.get_running_loop()
        self._uvicorn = uvicorn.Config(
            self.app,
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._uvicorn.load()
        self._state = ServerState()
        self._state.default_headers = [(b"server", b"uvicorn")]
        self._listener: asyncio.Server | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._reopening: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}"

    @property
    def engine(self) -> Engine:
        return self.live.engine

    def state(self) -> dict[str, Any]:
        """As `GET /simulator/state`."""
        return self.app.state()

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        await self._listen()
        if self.publisher is not None:
            self.live.on_kv_events = self.publisher.publish
            try:
                self.publisher.start()
            except OSError:
                await self.stop()
                raise
        if self.config.fault is not None:
            self.set_fault(self.config.fault)

    async def stop(self) -> None:
        """As vLLM on SIGTERM: what is in flight ends (see `shutdown_timeout_s`), then the port closes."""
        if self._expiry is not None:
            self._expiry.cancel()
        self.app.inference.draining = True
        deadline = self._loop.time() + self.config.shutdown_timeout_s
        while self.live.calls and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._close_listener()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self.live.abort_all()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=0.5 if self.app.faults.current else _CLOSE_S)
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=_CLOSE_S)
        await self.handover.aclose()
        if self.publisher is not None:
            await self.publisher.aclose()
        self.live.close()
        while self._state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)

    def set_fault(self, fault: Fault) -> None:
        """Let the worker misbehave from now on; see `faults`."""
        self.clear_fault()
        if fault.kind == "abort":
            self.live.abort_all()
            return
        self.app.faults.set(fault, self._loop.time())
        if fault.for_s is not None:
            self._expiry = self._loop.call_later(fault.for_s, self.clear_fault)
        if fault.kind in ("refuse", "crash"):
            self._close_listener()
            for connection in list(self._state.connections):
                if fault.kind == "crash":
                    connection.transport.abort()
                else:
                    connection.shutdown()
        elif fault.kind == "slow":
            self.live.slow_down(fault.factor)
        elif fault.kind == "paused":
            self.live.abort_all()

    def clear_fault(self) -> None:
        """Behave again. A port that was closed is open after the next turn of the event loop."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self.app.faults.clear()
        self.app.inference.unblock()
        self.live.slow_down(1.0)
        closed = self._listener is None and not self.app.inference.draining
        if closed and (self._reopening is None or self._reopening.done()):
            self._reopening = self._loop.create_task(self._reopen())

    def _on_fault(self, fault: Fault | None) -> None:
        if fault is None:
            self.clear_fault()
        elif fault.kind in ("refuse", "crash"):
            # The answer to the request that sets the fault goes out first.
            self._loop.call_later(0.01, self.set_fault, fault)
        else:
            self.set_fault(fault)

    async def _reopen(self) -> None:
        """Listen again on the old port, as soon as it is free."""
        while True:
            try:
                await self._listen()
            except OSError:
                await asyncio.sleep(_REOPEN_S)
            else:
                return

    def _close_listener(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # Closing asyncio's server breaks what it has accepted and not taken in yet, without closing it: so
            # nothing is accepted from here on, and the server closes two turns later.
            for sock in listener.sockets:
                self._loop.remove_reader(sock)
                sock.shutdown(socket.SHUT_RDWR)
            self._loop.call_soon(self._loop.call_soon, listener.close)
        else:
            listener.close()

    async def _listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.config.host, self.port))
            self.port = sock.getsockname()[1]
            self.handover.address = (self.config.host, self.port)
            # To serve is a step of its own: if that is given up, `_close_listener` knows what there is to close.
            listener = await self._loop.create_server(self._protocol, sock=sock, backlog=4096, start_serving=False)
        except BaseException:
            sock.close()
            raise
        self._listener = listener
        await listener.start_serving()

    def _protocol(self) -> HttpToolsProtocol:
        state: dict[str, Any] = {}
        protocol = HttpToolsProtocol(self._uvicorn, self._state, state, _loop=self._loop)
        state["cut"] = lambda: protocol.transport.abort()  # noqa: PLW0108  (no transport yet)
        return protocol


@contextlib.asynccontextmanager
async def simulated_worker(config: SimulatorConfig | None = None) -> AsyncIterator[SimulatedWorker]:
    """One worker on a free loopback port, inside the running event loop, stopped at the end."""
    worker = SimulatedWorker(config or SimulatorConfig(profile="instant"))
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
