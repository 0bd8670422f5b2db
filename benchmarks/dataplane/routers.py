"""The routers as child processes: how each is named, found, started, and known to be ready.

fairlead runs with everything on that it ships with: fairness, prefix routing, metrics, its log, keys of clients.
`fairlead@DIR` is the same with the code of another checkout: what did a change gain?
"""

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.dataplane import kernel
from benchmarks.dataplane.backend import MODEL
from benchmarks.dataplane.client import Client, Question, Requests, Tally
from benchmarks.dataplane.load import KEYS
from benchmarks.fleet.ports import free_port
from benchmarks.fleet.routers import PEERS, NotInstalledError, NotReadyError
from workers.launch.plan import LaunchSpec
from workers.launch.process import running

FAIRLEAD = "fairlead"
DIRECT = "direct"
"""No router at all: the backend itself, for comparison."""
LITELLM = "litellm"
_ROOT = Path(__file__).parents[2]
_READY_WITHIN_S = 180.0
_ENVIRONMENT = {
    # Proxies of the environment are for other addresses than these.
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    # litellm does not start without a key of its own, or this.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
_UNLIMITED = {"vllm-router": ("--max-concurrent-requests", "20000", "--queue-size", "20000")}
"""Bounds that would queue or refuse a part of the load."""


@dataclass(frozen=True, slots=True)
class Started:
    """A router that answers. `pid` is the top of its processes; 0 for `direct`, which has none."""

    name: str
    url: str
    pid: int
    config: Path | None = None
    """fairlead's configuration file."""

    def serving(self) -> int:
        """The process of fairlead that serves: it is below one that keeps it. Raises NotReadyError."""
        for pid in kernel.processes(self.pid)[1:]:
            if str(self.config) in kernel.arguments(pid):
                return pid
        raise NotReadyError(f"{self.name} has ended")


@dataclass(frozen=True, slots=True)
class Place:
    """What every router finds."""

    workers: tuple[str, ...]
    peers: Path
    """A folder of virtual environments, or of commands."""
    log_dir: Path
    keys: tuple[str, ...] = KEYS
    """fairlead has a client for each."""


def peers() -> tuple[str, ...]:
    """The names of all peers."""
    return (*PEERS, LITELLM)


def found(name: str, below: Path) -> Path:
    """A peer's command in any of the environments there. Raises NotInstalledError."""
    for file in (below / "bin" / name, *sorted(below.glob(f"*/bin/{name}"))):
        if file.is_file():
            return file
    raise NotInstalledError(f"there is no {name} below {below}: `pip install {name}` in an environment there")


@asynccontextmanager
async def started(name: str, place: Place, program: Sequence[str] = ()) -> AsyncIterator[Started]:
    """The router, once it has answered a request. Raises NotInstalledError, NotReadyError.

    `program` replaces the command `fairlead`.
    """
    if name == DIRECT:
        yield Started(DIRECT, place.workers[0], 0)
        return
    port = free_port()
    label = f"{name.partition('@')[0]}-{secrets.token_hex(3)}"
    config = place.log_dir / f"{label}.yaml"
    kind, _, checkout = name.partition("@")
    command = _COMMANDS.get(kind, _rust)(kind, place, port, config)
    if program:
        command = [*program, *command[1:]]
    spec = LaunchSpec(
        name=label,
        argv=tuple(command),
        environment={**_ENVIRONMENT, "PYTHONPATH": checkout or str(_ROOT)},
        url=f"http://127.0.0.1:{port}",
        log=place.log_dir / f"{label}.log",
        scratch=Path(tempfile.gettempdir()) / label,
        port=port,
    )
    async with running(spec, grace_s=5.0) as process:
        await _ready(spec, process, place.keys)
        yield Started(name, spec.url, process.pid, config if kind == FAIRLEAD else None)


def fairlead_config(workers: Sequence[str], keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """The defaults, and a client for each key; on loopback the measuring side reads /metrics without one."""
    clients = [{"name": f"client-{number}", "keys": [key]} for number, key in enumerate(keys)]
    return {"workers": list(workers), "clients": clients, "status": {"access": "open"}}


def _fairlead(_name: str, place: Place, port: int, config: Path) -> list[str]:
    config.write_text(yaml.safe_dump(fairlead_config(place.workers, place.keys)))
    command = str(Path(sys.executable).with_name("fairlead"))
    return [command, "serve", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


def _litellm(name: str, place: Place, port: int, config: Path) -> list[str]:
    model = {"model": f"openai/{MODEL}", "api_key": "none"}
    models = [{"model_name": MODEL, "litellm_params": {**model, "api_base": f"{url}/v1"}} for url in place.workers]
    config.write_text(yaml.safe_dump({"model_list": models}))
    script = str(found(name, place.peers))
    return [script, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


def _rust(name: str, place: Place, port: int, _config: Path) -> list[str]:
    script = str(found(name, place.peers))
    options = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
    policy = ("--policy", "cache_aware")
    return [script, *PEERS[name], *options, *policy, *_UNLIMITED.get(name, ()), "--worker-urls", *place.workers]


_COMMANDS: dict[str, Callable[[str, Place, int, Path], list[str]]] = {FAIRLEAD: _fairlead, LITELLM: _litellm}


async def _ready(spec: LaunchSpec, process: asyncio.subprocess.Process, keys: Sequence[str]) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and process.returncode is None:
        if await _answers(spec, keys):
            return
        await asyncio.sleep(0.25)
    ended = "did not answer in time" if process.returncode is None else f"ended with status {process.returncode}"
    last = spec.log.read_text(errors="replace")[-1500:]
    raise NotReadyError(f"{spec.name} {ended}; the end of {spec.log}:\n{last}")


async def _answers(spec: LaunchSpec, keys: Sequence[str]) -> bool:
    question = Question(prompt_bytes=64, tokens=1, spacing_ms=0)
    tally = Tally()
    try:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(tally), "127.0.0.1", spec.port
        )
    except OSError:
        return False
    requests = Requests(question, spec.url, keys, users=1, seed=0)
    await asyncio.wait([client.ask(question, requests.next())], timeout=20.0)
    client.leave()
    return tally.done == 1
