"""Which devices can a worker have? GPUs, asked of NVML and numbered as CUDA programs see them, or CPU places."""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml

from workers.launch.errors import NoGpu

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of one."""

    id: str
    """What CUDA_VISIBLE_DEVICES has to say to mean it: an NVML index (PCI bus order) or a MIG UUID."""
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """A place for a worker that runs without a GPU."""

    memory_bytes: int
    """Free memory that the worker may count as its own."""
    amx: bool = False
    """The CPU has tiles for products of matrices (Intel's AMX)."""


def find_cpus(workers: int, proc: Path = Path("/proc")) -> list[Cpu]:
    """Places for that many CPU workers, which share the memory that is free now."""
    meminfo = (proc / "meminfo").read_text().splitlines()
    available = next(line for line in meminfo if line.startswith("MemAvailable:"))
    free_bytes = int(available.split()[1]) * 1024
    return [Cpu(free_bytes // workers, amx=has_amx(proc)) for _ in range(workers)]


def has_amx(proc: Path = Path("/proc")) -> bool:
    """Whether this machine's CPU has Intel's AMX."""
    flags = next((line for line in (proc / "cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return "amx_tile" in flags.split()


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that this process may use, in the order of CUDA_VISIBLE_DEVICES (all of them if it is unset).

    Raises NoGpu when there is none, or when the variable names one that does not exist.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    with _nvml():
        installed = [_uuid(index) for index in range(pynvml.nvmlDeviceGetCount())]
        ids = [str(index) for index in range(len(installed))]
        chosen = ids if visible is None else visible_ids(visible, installed)
        gpus = [_describe(name) for name in chosen]
    if not gpus:
        hidden = installed and visible is not None
        raise NoGpu("CUDA_VISIBLE_DEVICES hides every GPU" if hidden else "no GPU found" + _CPU_HINT)
    return gpus


def choose_gpus(gpus: Sequence[Gpu], indices: Sequence[int]) -> list[Gpu]:
    """The GPUs at these positions of the visible list, as CUDA programs number them."""
    for index in indices:
        if not 0 <= index < len(gpus):
            raise NoGpu(f"there is no GPU {index}: {len(gpus)} visible, numbered from 0")
    if len(set(indices)) != len(indices):
        raise NoGpu(f"a GPU is named twice in {','.join(map(str, indices))}")
    return [gpus[index] for index in indices]


def visible_ids(visible: str, installed: Sequence[str]) -> list[str]:
    """Reads CUDA_VISIBLE_DEVICES: indices, GPU UUIDs or unique prefixes of them, MIG UUIDs; -1 ends the list.

    `installed` holds the UUID of each GPU in NVML's order.
    """
    ids: list[str] = []
    for entry in filter(None, (part.strip() for part in visible.split(","))):
        if entry == "-1":
            break
        if entry.startswith("MIG-"):
            ids.append(entry)
            continue
        matches = [
            str(index) for index, uuid in enumerate(installed) if entry == str(index) or uuid.startswith(entry)
        ]
        if len(matches) != 1:
            raise NoGpu(f"CUDA_VISIBLE_DEVICES names {entry}, which is not one of the {len(installed)} GPUs here")
        ids += matches
    return ids


_CPU_HINT = "; `--device cpu` runs vLLM without one"


@contextmanager
def _nvml() -> "Iterator[None]":
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpu(f"no GPU found: {error}{_CPU_HINT}") from error
    try:
        yield
    except pynvml.NVMLError as error:
        raise NoGpu(f"the GPU driver does not answer: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _uuid(index: int) -> str:
    return _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))


def _describe(gpu_id: str) -> Gpu:
    if gpu_id.isdigit():
        device = pynvml.nvmlDeviceGetHandleByIndex(int(gpu_id))
    else:
        device = pynvml.nvmlDeviceGetHandleByUUID(gpu_id)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    return Gpu(gpu_id, _text(pynvml.nvmlDeviceGetName(device)), int(memory.total))


def _text(value: str | bytes) -> str:
    # Older releases of the binding answer in bytes.
    return value.decode() if isinstance(value, bytes) else value
