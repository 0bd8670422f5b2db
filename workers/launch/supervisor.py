"""Keeps a fleet of launched vLLM processes alive, from the first start to the last stop.

Per worker:

    STARTING -> LOADING* -> HEALTHY -> DIED -> RESTARTING -> STARTING ...
        |          |
        +----------+--> LaunchFailed, if it was never healthy before: everything is stopped

A worker that once served and dies is started again, after a pause that doubles each time up to a bound and
begins anew when the worker has been healthy for a while. A worker that never served has something wrong with
its model or its machine: one clear error, no loop.

Each process hangs below a guard (see process_guard.py), so that nothing is left behind even when this process is
killed without a chance to stop anything.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

import httpx

from workers.bounds.backoff import Backoff
from workers.launch import vllm_log
from workers.launch.cpu_affinity import release_cpu_affinity
from workers.launch.errors import LaunchError, LaunchFailed
from workers.launch.plan import LaunchSpec, check_ports
from workers.launch.process import running

log = logging.getLogger(__name__)

POLL_S = 0.25
HEALTH_TIMEOUT_S = 2.0


class Stage(Enum):
    STARTING = "starting"
    LOADING = "loading"
    HEALTHY = "healthy"
    DIED = "died"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    """One step in the life of one worker."""

    worker: str
    url: str
    stage: Stage
    detail: str = ""
    """LOADING: the newest telling line of its log. DIED: how it ended and why, as far as its log tells."""
    delay_s: float = 0.0
    """RESTARTING: how long until it is started again."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker's process ended."""

    healthy_s: float
    """How long it served; 0 if it never did."""
    reason: str


class Supervisor:
    """Runs the processes of `specs`.

    Use as an async context manager: entered, all of them are healthy; left, none of them exists.
    `on_progress` is called from the event loop and must not block. `backoff`: the pauses before a worker that died
    is started again; after `forgiven_after_s` of health they begin anew. Raises LaunchError on entry.
    """

    def __init__(
        self,
        specs: Sequence[LaunchSpec],
        on_progress: Callable[[Progress], None],
        *,
        backoff: Backoff | None = None,
        forgiven_after_s: float = 60.0,
        grace_s: float = 10.0,
    ) -> None:
        self._specs = specs
        self._on_progress = on_progress
        self._backoff = backoff or Backoff()
        self._forgiven_after_s = forgiven_after_s
        self._grace_s = grace_s
        self._lives: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        check_ports(self._specs)
        loop = asyncio.get_running_loop()
        first_healthy = [loop.create_future() for _ in self._specs]
        for spec, ready in zip(self._specs, first_healthy, strict=True):
            self._lives.append(loop.create_task(self._supervise(spec, ready), name=f"supervise {spec.name}"))
        try:
            await asyncio.gather(*first_healthy)
        except BaseException:
            for ready in first_healthy:
                ready.cancel()
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stops every worker; returns when no process is left. Asking again is harmless."""
        if not self._stopping:
            # Only once: a second cancellation would interrupt the cleaning up that the first one began.
            self._stopping = True
            for life in self._lives:
                life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    async def _supervise(self, spec: LaunchSpec, ready: "asyncio.Future[None]") -> None:
        """One worker through all its processes, until cancelled or until its first start has failed."""
        deaths = 0
        try:
            while True:
                death = await self._one_life(spec, ready)
                deaths = 1 if death.healthy_s >= self._forgiven_after_s else deaths + 1
                delay_s = self._backoff.delay_s(deaths)
                self._tell(spec, Stage.DIED, death.reason)
                self._tell(spec, Stage.RESTARTING, delay_s=delay_s)
                await asyncio.sleep(delay_s)
        except LaunchError as error:
            if not ready.done():
                ready.set_exception(error)
        finally:
            self._tell(spec, Stage.STOPPED)

    async def _one_life(self, spec: LaunchSpec, ready: "asyncio.Future[None]") -> Death:
        """From one start to the end of that process. Raises if the worker was never ready in any life."""
        try:
            if not ready.done() and spec.log.exists():
                spec.log.replace(spec.log.with_suffix(".log.old"))
            tail = vllm_log.LogTail(spec.log)
            self._tell(spec, Stage.STARTING)
            healthy_since = None
            async with running(spec, self._grace_s) as process:
                if await self._becomes_healthy(spec, process, tail):
                    if spec.on_cpu and spec.role is not None:
                        await asyncio.to_thread(release_cpu_affinity, process.pid)
                    healthy_since = time.monotonic()
                    self._tell(spec, Stage.HEALTHY)
                    if not ready.done():
                        ready.set_result(None)
                status = await process.wait()
            lines = tail.last_lines()
        except OSError as error:
            if not ready.done():
                raise LaunchError(f"{spec.name} cannot be started: {error}") from error
            return Death(0.0, str(error))
        causes = vllm_log.causes(lines)
        if not ready.done():
            raise LaunchFailed(spec.name, status, causes, vllm_log.tail(lines), spec.log)
        healthy_s = 0.0 if healthy_since is None else time.monotonic() - healthy_since
        return Death(healthy_s, "; ".join([f"status {status}", *causes[:1]]))

    async def _becomes_healthy(
        self, spec: LaunchSpec, process: asyncio.subprocess.Process, tail: vllm_log.LogTail
    ) -> bool:
        """Waits until the worker answers its health check (True) or has ended (False)."""
        shown = None
        ended = asyncio.ensure_future(process.wait())
        try:
            # No proxies, whatever the environment says: the worker is on this machine, in plain HTTP. The empty
            # context spares loading certificates, 15 ms in which the gateway's loop would stand still.
            no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            async with httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT_S, verify=no_tls) as client:
                while not ended.done():
                    if await _answers(client, spec.url) and not ended.done():
                        return True
                    told = vllm_log.headline(tail.read_new())
                    if told and told != shown:
                        shown = told
                        self._tell(spec, Stage.LOADING, told)
                    await asyncio.wait([ended], timeout=POLL_S)
        finally:
            ended.cancel()
        return False

    def _tell(self, spec: LaunchSpec, stage: Stage, detail: str = "", delay_s: float = 0.0) -> None:
        try:
            self._on_progress(Progress(spec.name, spec.url, stage, detail, delay_s))
        except Exception:
            # A display that fails must not take the fleet with it.
            log.exception("the progress callback failed")


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health")).is_success
    except httpx.HTTPError:
        return False
