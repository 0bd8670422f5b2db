"""The routers: how each is named on the command line, installed, started and known to be ready.

`fairlead` and its peers take settings after their name, each after a colon:

    fairlead:placement=cache_aware:queue=dlpm:placement.match_ratio=0.5:binding=early
    vllm-router:policy=round_robin          each setting is an option of the peer's command line
"""

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fleet.chat_client import NoAnswerError, ask
from benchmarks.fleet.load import request_body
from benchmarks.fleet.ports import free_port
from workers.launch.plan import LaunchSpec
from workers.launch.process import running

READY_WITHIN_S = 90.0
FAIRLEAD = "fairlead"
PEERS: dict[str, tuple[str, ...]] = {"vllm-router": (), "sglang-router": ("launch",), "smg": ("launch",)}
"""Each peer's console script, which is named like its package, and the words before its options."""


_SECTIONS = {"tokenizer": "tokenization", "kv_events": "health"}
"""Where in the configuration a setting stands that is not one of `policies`."""


class NotInstalledError(Exception):
    """A router that is not on this machine."""


class NotReadyError(Exception):
    """It ended, or answered no request in time."""


@dataclass(frozen=True, slots=True)
class RouterChoice:
    """One router with its settings, as named on the command line."""

    label: str
    program: str
    settings: tuple[tuple[str, str], ...] = ()


def parse(text: str) -> RouterChoice:
    """Read `name[:key=value ...]`. Raises ValueError."""
    program, *words = text.split(":")
    if program != FAIRLEAD and program not in PEERS:
        raise ValueError(f"there is no router {program!r}; known are {', '.join((FAIRLEAD, *PEERS))}")
    settings = [tuple(word.split("=", 1)) for word in words]
    if any(len(setting) != 2 for setting in settings):
        raise ValueError(f"{text}: settings look like `:key=value`")
    return RouterChoice(text, program, tuple((key, value) for key, value in settings))


def fairlead_config(
    choice: RouterChoice, workers: Sequence[str], max_num_seqs: int, roles: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The configuration that the settings mean. `roles`: what a worker is for, by its URL, if not for everything.

    `placement` and `queue` name a policy, `placement.x` and `queue.x` are settings of it; `max_num_seqs=learned`
    keeps the servers' limit from the gateway; `tokenizer` is that of `tokenization`, `kv_events` that of `health`;
    everything else is a key of `policies`.
    """
    policies: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for key, text in choice.settings:
        value = yaml.safe_load(text)
        kind, dot, setting = key.partition(".")
        if kind == "max_num_seqs":
            max_num_seqs = 0 if value == "learned" else int(value)
        elif kind in {"placement", "queue"}:
            policies.setdefault(kind, {})[setting if dot else "name"] = value
        elif kind in _SECTIONS:
            others.setdefault(_SECTIONS[kind], {})[kind] = value
        else:
            policies[key] = value
    limit = {"max_num_seqs": max_num_seqs} if max_num_seqs else {}
    of = roles or {}
    rows = [{"url": url} | limit | ({"roles": of[url]} if url in of else {}) for url in workers]
    return {"workers": rows, "policies": policies, **others}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every router finds: the servers, where peers are installed, and where logs go."""

    workers: tuple[str, ...]
    model: str
    max_num_seqs: int
    peers: Path
    log_dir: Path
    roles: Mapping[str, str] = field(default_factory=dict)
    """What a server is for, by its address; one that is not here does everything."""


@asynccontextmanager
async def started(choice: RouterChoice, around: Surroundings) -> AsyncIterator[str]:
    """The router's address, where one request has been answered; its process is gone on exit.

    Raises NotInstalledError, NotReadyError.
    """
    port = free_port()
    name = f"{choice.program}-{secrets.token_hex(3)}"
    command = _fairlead(choice, around, name, port) if choice.program == FAIRLEAD else _peer(choice, around, port)
    spec = LaunchSpec(
        name=name,
        argv=tuple(command),
        # Proxies of the environment are for other addresses than these.
        environment={"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        url=f"http://127.0.0.1:{port}",
        log=around.log_dir / f"{name}.log",
        scratch=Path(tempfile.gettempdir()) / name,
        port=port,
    )
    async with running(spec, grace_s=5.0) as process:
        await _ready(spec, process, around.model)
        yield spec.url


def _fairlead(choice: RouterChoice, around: Surroundings, name: str, port: int) -> list[str]:
    file = around.log_dir / f"{name}.yaml"
    file.write_text(yaml.safe_dump(fairlead_config(choice, around.workers, around.max_num_seqs, around.roles)))
    command = str(Path(sys.executable).with_name("fairlead"))
    return [command, "serve", "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]


def peer_command(program: str, peers: Path) -> Path:
    """Its console script in an environment or a folder of commands. Raises NotInstalledError."""
    for file in (peers / "bin" / program, peers / program):
        if file.exists():
            return file
    raise NotInstalledError(f"there is no {program} in {peers}: `pip install {program}` in an environment there")


def _peer(choice: RouterChoice, around: Surroundings, port: int) -> list[str]:
    options = {"host": "127.0.0.1", "port": str(port), "prometheus-port": str(free_port())} | dict(choice.settings)
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    script = str(peer_command(choice.program, around.peers))
    return [script, *PEERS[choice.program], *words, "--worker-urls", *around.workers]


async def _ready(spec: LaunchSpec, process: asyncio.subprocess.Process, model: str) -> None:
    body = request_body(model, "warm-up", [{"role": "user", "content": "hello"}], 1)
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.returncode is None:
        with suppress(NoAnswerError, OSError, TimeoutError):
            await asyncio.wait_for(ask(spec.url, body), 20.0)
            return
        await asyncio.sleep(0.25)
    ended = "did not answer in time" if process.returncode is None else f"ended with status {process.returncode}"
    last = spec.log.read_text(errors="replace")[-1500:]
    raise NotReadyError(f"{spec.name} {ended}; the end of {spec.log}:\n{last}")
