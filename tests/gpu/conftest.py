"""Real vLLM servers that share one GPU: a prefill and a decode server over NIXL, and two that do both.

    pip install -e '.[test]' 'vllm>=0.20.2' nixl
    pytest -o addopts='--import-mode=importlib --strict-markers' tests/gpu

Without a GPU, or without vLLM, everything here is skipped. GPU_TEST_VLLM_PYTHON names an interpreter that has
vLLM, if it is not this one. GPU_TEST_DEVICE=cpu runs the same tests on a CPU, with a vLLM for CPUs.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Test folders are no packages; what several files share is found by its name.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "end_to_end")]
pytest.register_assert_rewrite("gateway_under_test", "gpu_servers")

from gpu_servers import Home, Server, Servers  # noqa: E402

from benchmarks.fleet import servers as fleet_servers  # noqa: E402
from benchmarks.gpu import cuda  # noqa: E402
from benchmarks.gpu.shapes import SHAPES, write_model  # noqa: E402
from workers.launch.disaggregation import Split  # noqa: E402
from workers.launch.errors import NoGpu  # noqa: E402

LIMITS = cuda.Limits(max_num_seqs=16, max_model_len=8192, kv_mib=64)
START_TIMEOUT_S = float(os.environ.get("GPU_TEST_START_TIMEOUT_S", "400"))
NEEDED = "needed are an NVIDIA GPU with its driver, vLLM 0.20.2 or later and NIXL; see tests/gpu/conftest.py"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The device, an interpreter with vLLM, and a model with weights."""
    kind = os.environ.get("GPU_TEST_DEVICE", "cuda")
    try:
        device = cuda.find_device("cpu" if kind == "cpu" else "cuda")
    except NoGpu as error:
        pytest.skip(f"{error}; {NEEDED}")
    python = os.environ.get("GPU_TEST_VLLM_PYTHON", sys.executable)
    look = "import importlib.util as u, sys; sys.exit(not (u.find_spec('vllm') and u.find_spec('nixl')))"
    if subprocess.run([python, "-c", look], check=False).returncode:
        pytest.skip(f"{python} has no vLLM or no NIXL; {NEEDED}")
    return Home(device, python, write_model(tmp_path_factory.mktemp("models") / "little", SHAPES["little"]))


@pytest.fixture(scope="session")
def servers(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """All four, healthy; they share the device, and are stopped at the end."""
    settings = cuda.server_settings(home.device, home.python, home.model, 4, LIMITS, split=Split(1, 1))
    with in_background(fleet_servers.started(settings, tmp_path_factory.mktemp("vllm"), print)) as specs:
        prefill, decode, *both = [Server(spec.url) for spec in specs]
        yield Servers(prefill, decode, both)


@contextmanager
def in_background(context):
    """An asynchronous context, entered and left by a loop in a thread of its own.

    vLLM's keeper ends with the thread that has started it: this one lives as long as the servers.
    """
    started, leave = threading.Event(), threading.Event()
    found = []

    async def live() -> None:
        async with context as value:
            found.append(value)
            started.set()
            await asyncio.to_thread(leave.wait)

    def run() -> None:
        try:
            asyncio.run(live())
        except Exception as error:  # noqa: BLE001  # told to the task that waits
            found.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="servers")
    thread.start()
    try:
        in_time = started.wait(START_TIMEOUT_S)
        assert in_time, "the servers do not become healthy"
        if isinstance(found[0], Exception):
            raise found[0]
        yield found[0]
    finally:
        leave.set()
        thread.join(120)
