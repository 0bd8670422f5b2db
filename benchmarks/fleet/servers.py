"""The vLLM servers: started on the CPU or a GPU, looked into, brought back to an empty cache."""

import asyncio
import json
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.fleet.ports import free_ports
from workers.fleet.vllm_metrics import NotMetricsError, merge, parse_metrics
from workers.fleet.worker import Scrape
from workers.launch.devices import Cpu, Gpu, has_amx
from workers.launch.disaggregation import Split
from workers.launch.plan import LaunchSpec, check_vllm, plan
from workers.launch.supervisor import Progress, Stage, Supervisor

IDLE_WITHIN_S = 120.0
_MIB = 1 << 20
_STEPS = re.compile(r"^vllm:iteration_tokens_total_(count|sum)(?:\{[^\n]*\})? (\S+)", re.MULTILINE)


class FleetError(Exception):
    """The servers are not in a state to be measured."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How each vLLM is started."""

    python: str
    model: Path
    count: int = 3
    """Servers in all, those of `split` included."""
    max_num_seqs: int = 8
    max_model_len: int = 2048
    block_size: int = 32
    kv_mib: int = 256
    device: Cpu | Gpu | None = None
    """What each of them runs on, all on the same; None: a CPU."""
    split: Split = Split()  # noqa: RUF009  # frozen
    """How many of them are for prefill and for decode alone."""
    kv_events: bool = False
    """Whether they publish what happens in their caches, as servers that exact knowledge is wanted of do."""
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    first_alone: bool = False
    """The others start when the first one is healthy: it compiles, they find what it has compiled."""


def specs_of(settings: ServerSettings, log_dir: Path, ports: Sequence[int]) -> list[LaunchSpec]:
    """Each server's command. A split takes the first ones; those that are left do both. Raises LaunchError."""
    flags = {
        "--served-model-name": settings.model.name,
        "--max-num-seqs": settings.max_num_seqs,
        "--max-model-len": settings.max_model_len,
        "--block-size": settings.block_size,
        "--kv-cache-memory-bytes": settings.kv_mib * _MIB,
    }
    arguments = [word for flag, value in flags.items() for word in (flag, str(value))]
    apart = settings.split.devices
    sockets = ports[settings.count + apart :]
    specs: list[LaunchSpec] = []
    for split, count in ((settings.split, apart), (Split(), settings.count - apart)):
        taken = len(specs) + sum(spec.side_port is not None for spec in specs)
        if count:
            device = settings.device or Cpu(settings.kv_mib * _MIB, amx=has_amx())
            specs += plan(
                str(settings.model),
                [device] * count,  # type: ignore[arg-type]  # all of one kind
                split=split,
                ports=ports[taken:],
                extra_args=[*arguments, *settings.extra_args],
                vllm_python=settings.python,
                log_dir=log_dir,
                scratch_prefix=f"{tempfile.gettempdir()}/fairlead-{secrets.token_hex(4)}-",
            )
    if settings.kv_events:
        specs = [
            replace(spec, argv=(*spec.argv, "--kv-events-config", json.dumps(_published(*pair))))
            for spec, pair in zip(specs, zip(sockets[::2], sockets[1::2], strict=True), strict=True)
        ]
    # The mode for development has the route that empties the prefix cache.
    more = {"VLLM_SERVER_DEV_MODE": "1", **settings.environment}
    return [replace(spec, environment={**spec.environment, **more}) for spec in specs]


@asynccontextmanager
async def started(
    settings: ServerSettings, log_dir: Path, tell: Callable[[str], None]
) -> AsyncIterator[list[LaunchSpec]]:
    """The servers, healthy on entry; no process is left on exit. Raises LaunchError."""
    await check_vllm(settings.python, nixl=settings.split.devices > 0)
    sockets = 2 * settings.count if settings.kv_events else 0
    specs = specs_of(settings, log_dir, free_ports(settings.count + settings.split.devices + sockets))

    def on_progress(progress: Progress) -> None:
        if progress.stage is not Stage.LOADING:
            tell(f"{progress.worker} {progress.stage.value} {progress.detail}".rstrip())

    groups = [specs[:1], specs[1:]] if settings.first_alone else [specs]
    async with AsyncExitStack() as stack:
        for group in filter(None, groups):
            await stack.enter_async_context(Supervisor(group, on_progress))
        yield specs


def _published(port: int, replay_port: int) -> dict[str, Any]:
    """What --kv-events-config says of one server."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://127.0.0.1:{port}",
        "replay_endpoint": f"tcp://127.0.0.1:{replay_port}",
    }


@dataclass(frozen=True, slots=True)
class Look:
    """One reading of a server's page."""

    scrape: Scrape
    steps: int
    """Steps of its engine since it started."""
    step_tokens: int
    """Tokens of these steps: computed of prompts, and generated."""


class Servers:
    """Servers that run, seen through their own pages."""

    def __init__(self, urls: Sequence[str], http: httpx.AsyncClient) -> None:
        self.urls = tuple(urls)
        self._http = http

    async def looks(self) -> list[Look]:
        """Each server's figures, now, in the order of `urls`. Raises FleetError."""
        try:
            pages = await asyncio.gather(*(self._http.get(f"{url}/metrics") for url in self.urls))
            return [_look(page.text) for page in pages]
        except (httpx.HTTPError, NotMetricsError, ValueError) as error:
            raise FleetError(f"a server does not tell its figures: {error!r}") from error

    async def version(self) -> str:
        answer = await self._http.get(f"{self.urls[0]}/version")
        return str(answer.json()["version"])

    async def idle(self) -> None:
        """Wait until nothing runs or waits. Raises FleetError after IDLE_WITHIN_S."""
        deadline = time.monotonic() + IDLE_WITHIN_S
        while any(look.scrape.running or look.scrape.waiting for look in await self.looks()):
            if time.monotonic() > deadline:
                raise FleetError("the servers do not come to rest")
            await asyncio.sleep(0.25)

    async def empty_caches(self) -> bool:
        """Forget all prefixes; False where a server has no such route (it is started without it)."""
        await self.idle()
        answers = await asyncio.gather(*(self._http.post(f"{url}/reset_prefix_cache") for url in self.urls))
        return all(answer.is_success for answer in answers)


def _look(page: str) -> Look:
    """Raises NotMetricsError and ValueError."""
    steps = {"count": 0.0, "sum": 0.0}
    for name, value in _STEPS.findall(page):
        steps[name] += float(value)
    scrape = merge(parse_metrics(page, time.monotonic()).values())
    return Look(scrape, round(steps["count"]), round(steps["sum"]))
