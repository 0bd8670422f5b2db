"""`fairlead up MODEL`, without the gateway: vLLM on every GPU, shown while it loads, stopped at the end."""

import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from rich.console import Console

from router.commands.up_display import LaunchDisplay
from workers.bounds.backoff import Backoff
from workers.launch import disaggregation
from workers.launch.devices import Cpu, Gpu, choose_gpus, find_cpus, find_gpus
from workers.launch.disaggregation import Split
from workers.launch.errors import LaunchError
from workers.launch.plan import check_vllm, flags_in, plan
from workers.launch.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line says."""

    model: str
    vllm_python: str
    log_dir: Path
    gpus: list[int] | None = None
    """Positions in the list of visible GPUs; None: all of them."""
    device: Literal["cuda", "cpu"] = "cuda"
    workers: int = 1
    """With `cpu`: how many. With `cuda` the GPUs decide."""
    split: Split = field(default_factory=Split)
    """GPUs (with `cpu`: workers) for prefill and for decode alone; unset, every worker does both."""
    tensor_parallel: int = 1
    base_port: int = 8101
    """The first worker's port; the others count up from it."""
    extra_args: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LaunchedFleet:
    """Workers that are healthy, in the order of their devices."""

    urls: list[str]
    models: list[str]
    """The names that they serve the model under, the first one being vLLM's own choice."""
    roles: dict[str, str] = field(default_factory=dict)
    """What a worker is for, by its URL; one that is not here does everything."""

    @property
    def workers(self) -> list[dict[str, Any]]:
        """As sections of the configuration."""
        return [{"url": url, **({"roles": self.roles[url]} if url in self.roles else {})} for url in self.urls]


@asynccontextmanager
async def launched(options: UpOptions, *, backoff: Backoff | None = None) -> AsyncIterator[LaunchedFleet]:
    """The fleet, healthy on entry and gone on exit; restarts in between are reported to the log.

    Raises LaunchError, whose message is for the person at the terminal.
    """
    pairs = options.split.devices > 0
    await check_vllm(options.vllm_python, nixl=pairs and disaggregation.FLAG not in flags_in(options.extra_args))
    devices = find_devices(options)
    specs = plan(
        options.model,
        devices,
        tensor_parallel=options.tensor_parallel,
        split=options.split,
        ports=worker_ports(options.base_port, 2 * options.split.devices or len(devices)),
        extra_args=options.extra_args,
        vllm_python=options.vllm_python,
        log_dir=options.log_dir,
        scratch_prefix=f"{tempfile.gettempdir()}/fairlead-{secrets.token_hex(4)}-",
        user_environment=os.environ,
    )
    with LaunchDisplay([spec.name for spec in specs], Console(stderr=True)) as display:
        async with Supervisor(specs, display.tell, backoff=backoff):
            models = await served_models(specs[0].url)
            display.finish()
            roles = {spec.url: spec.role for spec in specs if spec.role is not None}
            yield LaunchedFleet([spec.url for spec in specs], models, roles)


def find_devices(options: UpOptions) -> list[Gpu] | list[Cpu]:
    """What the workers run on. Raises NoGpu, BadPairs, and LaunchError for a number of workers below one."""
    if options.device == "cpu" and options.split.devices:
        return find_cpus(options.split.devices)
    if options.device == "cpu":
        if options.workers < 1:
            raise LaunchError(f"--workers {options.workers}: at least one is needed")
        return find_cpus(options.workers)
    gpus = find_gpus()
    return gpus if options.gpus is None else choose_gpus(gpus, options.gpus)


def worker_ports(base_port: int, count: int) -> range:
    """One port for each worker, counted up from `base_port`."""
    if not 1 <= base_port <= 65536 - count:
        raise LaunchError(f"--base-port {base_port}: {count} ports from there on do not exist")
    return range(base_port, base_port + count)


async def served_models(url: str) -> list[str]:
    """The ids in the worker's `/v1/models`, its default model first."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            answer = (await client.get(f"{url}/v1/models")).raise_for_status()
    except httpx.HTTPError as error:
        raise LaunchError(f"{url} is healthy but does not tell which models it serves: {error!r}") from error
    return [model["id"] for model in answer.json()["data"]]
