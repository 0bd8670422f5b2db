"""Every flag and variable that we give to vLLM is one that the installed vLLM knows."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.fleet.servers import specs_of
from benchmarks.gpu import cuda
from benchmarks.gpu.shapes import SHAPES, write_model
from workers.launch.devices import Gpu
from workers.launch.disaggregation import Split

pytestmark = pytest.mark.timeout(1000)

DEPLOY = Path(__file__).parents[2] / "deploy"
LIMITS = cuda.Limits(max_num_seqs=16, max_model_len=8192)
OTHERS = {"HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "TMPDIR"}
OTHERS |= {"TORCH_COMPILE_DISABLE", "HOME", "HF_TOKEN_PATH"}
"""Read by libraries below vLLM, or by the system."""


@pytest.fixture(scope="module")
def known_flags(home):
    """As the command says itself."""
    command = [home.python, "-m", "vllm.entrypoints.cli.main", "serve", "--help=all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout))


@pytest.fixture(scope="module")
def known_variables(home):
    ask = "import json, vllm.envs as e; print('\\n' + json.dumps(list(e.environment_variables)))"
    done = subprocess.run([home.python, "-c", ask], capture_output=True, text=True, check=True, timeout=500)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What the benchmarks start on a GPU, pairs included."""
    folder = tmp_path_factory.mktemp("shapes")
    model = write_model(folder / "llama-3.2-1b", SHAPES["llama-3.2-1b"])
    gpu = Gpu("0", "any", 80 << 30)
    settings = cuda.server_settings(gpu, "python3", model, 4, LIMITS, split=Split(1, 1))
    return specs_of(settings, folder, range(9000, 9008))


def services():
    """The vLLM services of deploy/compose.yaml."""
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return {name: one for name, one in content.items() if "vllm" in str(one.get("image")) and "command" in one}


def test_the_flags_of_the_compose_file_are_known(known_flags):
    commands = {name: " ".join(service["command"]) for name, service in services().items()}
    assert len(commands) >= 3
    for name, command in commands.items():
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", command)) <= known_flags, name


def test_the_flags_of_launched_servers_are_known(known_flags, launched):
    for spec in launched:
        assert {word for word in spec.argv if word.startswith("--")} <= known_flags


def test_the_variables_of_launched_and_composed_servers_are_known(known_variables, launched):
    given = {name for spec in launched for name in spec.environment}
    given |= {name for service in services().values() for name in service.get("environment", {})}
    assert given - OTHERS <= known_variables


def test_the_version_is_one_that_is_supported(home):
    found = subprocess.run(
        [home.python, "-c", "import vllm; print('\\n' + vllm.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    major, minor, *_ = found.stdout.splitlines()[-1].split(".")
    assert (int(major), int(minor)) >= (0, 20)
