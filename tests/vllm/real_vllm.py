"""Real vLLM servers on the CPU: started side by side, looked into, ended and started again.

`.ci/vllm-cpu` makes the environment that they run in.
"""

import json
import os
import random
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import pytest

from workers.launch import process_guard
from workers.launch.devices import Cpu
from workers.launch.plan import LaunchSpec, flags_in, plan

START_TIMEOUT_S = 300.0
"""15 s on an idle machine with two cores; several times that when other servers start beside it."""

DEFAULTS = {
    # Small blocks, so that prompts of a few dozen tokens hit the prefix cache.
    "--block-size": "32",
    # Answers that last on any machine, so that what a test looks at in their midst is still there when it looks.
    "--hf-overrides": '{"max_position_embeddings": 65536}',
    "--max-model-len": "65536",
    "--kv-cache-memory-bytes": str(128 << 20),
    # Not the model's bfloat16: with it a CPU that has AMX gives other answers than one that has not, and there an
    # engine of 0.32.0 dies of an illegal instruction if the first thing it ever computes is a single token, as the
    # decode worker of a pair does.
    "--dtype": "float32",
}
_FIRST_PORT, _LAST_PORT = 10_000, 30_000
"""Below the range from which the system hands out ports."""


@dataclass(frozen=True, slots=True)
class VllmHome:
    """What `.ci/vllm-cpu` has made."""

    python: str
    models: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """One server to start. `args` win over DEFAULTS; `environment` is added to the server's."""

    model: str = "tiny"
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    number: int = 0
    """Tells servers apart that are otherwise the same."""


@dataclass(slots=True)
class VllmServer:
    """One server. `model` is the name that it serves its model under."""

    spec: LaunchSpec
    model: str
    environment: dict[str, str]
    process: "subprocess.Popen[bytes]"
    """Its process_guard."""

    @property
    def url(self) -> str:
        return self.spec.url

    @property
    def pid(self) -> int:
        """The API server."""
        [pid] = children(self.process.pid)
        return pid

    @property
    def engine_pid(self) -> int:
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(self.pid)}
        return next(pid for pid, line in lines.items() if b"EngineCore" in line)

    def signal(self, number: int) -> None:
        """To the API server itself, past its process_guard."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 20.0) -> None:
        """Until nothing of it is left."""
        self.process.wait(timeout_s)

    def stop(self, grace_s: float = 15.0) -> None:
        """End the server and everything below it."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()

    def start_again(self) -> None:
        """Another process on the same port, which will be healthy later (`wait_until_healthy`).

        To be called from the main thread: the guard ends with the thread that has started it.
        """
        self.stop()
        self.process = spawn(self.spec, self.environment)

    def counted(self, metric: str) -> float:
        """The sum of a metric of its own over its series, now."""
        page = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False, verify=False).text
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


class Servers:
    """Starts servers, hands out again what is there already, and ends all of them on leaving the context."""

    def __init__(self, home: VllmHome, log_root: Path) -> None:
        self._home = home
        self._log_root = log_root
        self._shared: dict[Wanted, VllmServer] = {}
        self._started: list[VllmServer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self._started:
            server.process.terminate()
        for server in self._started:
            server.stop()

    def shared(self, *wanted: Wanted) -> list[VllmServer]:
        """Servers that tests share: the same wish gives the same server again."""
        alive = {wish for wish, server in self._shared.items() if server.process.poll() is None}
        missing = [wish for wish in wanted if wish not in alive]
        self._shared.update(zip(missing, self.fresh(*missing), strict=True))
        return [self._shared[wish] for wish in wanted]

    def fresh(self, *wanted: Wanted) -> list[VllmServer]:
        """Servers that a test may spoil, started side by side, all of them healthy."""
        servers = [self._start(wish) for wish in wanted]
        for server in servers:
            wait_until_healthy(server)
        return servers

    def _start(self, wanted: Wanted) -> VllmServer:
        given = flags_in(wanted.args)
        defaults = [
            word
            for flag, value in ({"--served-model-name": wanted.model} | DEFAULTS).items()
            if flag not in given
            for word in (flag, value)
        ]
        log_dir = self._log_root / f"{wanted.model}-{len(self._started)}"
        log_dir.mkdir(parents=True)
        (spec,) = plan(
            str(self._home.models / wanted.model),
            [Cpu(memory_bytes=1 << 30)],
            ports=[free_ports(1)],
            extra_args=[*defaults, *wanted.args],
            vllm_python=self._home.python,
            log_dir=log_dir,
            scratch_prefix=f"{tempfile.gettempdir()}/fairlead-test-{secrets.token_hex(4)}-",
        )
        environment = dict(wanted.environment)
        server = VllmServer(spec, wanted.model, environment, spawn(spec, environment))
        self._started.append(server)
        return server


def spawn(spec: LaunchSpec, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with spec.log.open("ab") as output:
        return subprocess.Popen(
            # Below a guard, so that a killed test run leaves no server behind.
            [sys.executable, "-I", "-S", process_guard.__file__, "10", str(spec.scratch), *spec.argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=os.environ | dict(spec.environment) | dict(environment),
            start_new_session=True,
        )


def wait_until_healthy(server: VllmServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            with suppress(httpx.HTTPError):
                if client.get(f"{server.url}/health").is_success:
                    return
            time.sleep(0.2)
    tail = server.spec.log.read_text(errors="replace")[-4000:]
    pytest.fail(f"vLLM did not become healthy (status {server.process.poll()}):\n{tail}")


def free_ports(count: int) -> int:
    """The first of a number of free ports in a row."""
    for port in random.sample(range(_FIRST_PORT, _LAST_PORT), k=100):
        with suppress(OSError), ExitStack() as bound:
            for number in range(count):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port
    raise RuntimeError(f"no {count} free ports in a row")


def children(pid: int) -> list[int]:
    """The live processes that this one has started itself, by any of its threads."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def stat_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def launched_on(port: int) -> dict[int, str]:
    """The live processes of the server on that port, each with its command line.

    The engine renames itself, so the port shows the session and the session shows the rest.
    """
    lines: dict[int, str] = {}
    sessions: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = stat_of(int(entry.name))[:4]
            if state != "Z":
                sessions[int(entry.name)] = session
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    marks = ("process_guard.py", f"--port {port}")
    ours = {sessions[pid] for pid, line in lines.items() if all(mark in line for mark in marks)}
    return {pid: lines[pid] for pid, session in sessions.items() if session in ours}


def alive(processes: dict[int, str]) -> list[str]:
    return [line for pid, line in processes.items() if Path(f"/proc/{pid}").exists()]


def write_adapter(folder: Path) -> None:
    """A LoRA adapter for the tiny model that changes nothing: rank 8 on the queries, all zeros."""
    folder.mkdir()
    kinds = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "bias": "none"}
    rank = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(kinds | rank))
    shapes = {"lora_A": [8, 128], "lora_B": [128, 8]}
    header, at = {}, 0
    for layer in range(2):
        for part, shape in shapes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4096]}
            at += 4096
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
