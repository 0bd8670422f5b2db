"""The cores of a prefill or decode worker on a CPU, given back after vLLM's NIXL connector has taken them.

On a CPU the connector moves the thread that it is made by to the last core of each NUMA node, for good; where vLLM
runs in few processes that is the thread that computes, and all workers of a machine compute on one core. Besides,
NIXL has a thread in each of them that never rests. On two cores a prefill then takes ten times as long. Both is of
CPUs alone: on a GPU the kernels are elsewhere, and there are cores enough.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from workers.keeper import descendants

LOOK_S = 1.0
_RESTLESS = 0.05
"""Of a core, for a thread of a worker that has nothing to do."""
_LOWEST = 19


def give_cores_back(process: int) -> int:
    """All cores for every thread below this process, the lowest priority for those that never rest: how many.

    To be called in a thread, when the worker is ready and has nothing to do. It waits for `LOOK_S`. A process's
    first thread computes, and keeps its priority.
    """
    threads = [thread for below in descendants(process) for thread in _threads(below)]
    for thread in threads:
        with suppress(OSError):
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))
    before = {thread: _ran_s(thread) for thread in threads if thread.name != thread.parent.parent.name}
    time.sleep(LOOK_S)
    restless = [thread for thread, ran_s in before.items() if _ran_s(thread) - ran_s > _RESTLESS * LOOK_S]
    for thread in restless:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _LOWEST)
    return len(restless)


def _threads(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _ran_s(thread: Path) -> float:
    """How long a thread has run; 0 if it is gone."""
    try:
        fields = (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
