"""Servers of a pair on a CPU, given back the cores that vLLM's NIXL connector takes from them.

On a CPU the connector moves the thread that it is made by to the last core of each NUMA node, for good; where vLLM
runs in few processes that is the thread that computes, and all servers of a machine compute on one core. Besides,
NIXL has a thread in each of them that never rests. On two cores a prefill then takes ten times as long. Both is of
CPUs alone: on a GPU the kernels are elsewhere, and there are cores enough.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from workers.launch import LaunchSpec

_LOOK_S = 2.0
_RESTLESS = 0.05
"""Of a core, for a thread of a server that has nothing to do."""
_LOWEST = 19


def give_cores_back(specs: Iterable[LaunchSpec]) -> int:
    """All cores for every thread, and the lowest priority for those that never rest: how many these are.

    The servers have to be idle.
    """
    threads = [thread for spec in specs for process in processes(spec) for thread in _threads(process)]
    for thread in threads:
        with suppress(OSError):
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))
    before = {thread: _ran_s(thread) for thread in threads}
    time.sleep(_LOOK_S)
    restless = [thread for thread in threads if _ran_s(thread) - before[thread] > _RESTLESS * _LOOK_S]
    for thread in restless:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _LOWEST)
    return len(restless)


def processes(spec: LaunchSpec) -> list[int]:
    """Those of a launched server: with its folder for sockets in their environment, and what these have started.

    vLLM's engine has a name of its own, which is written over its environment.
    """
    mark = f"VLLM_RPC_BASE_PATH={spec.scratch}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int(_fields(folder)[1])
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _threads(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _ran_s(thread: Path) -> float:
    """How long a thread has run; 0 if it is gone."""
    try:
        fields = _fields(thread)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fields(folder: Path) -> list[str]:
    """What follows the name in a process's or a thread's `stat`."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
