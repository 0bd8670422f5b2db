"""Restores the CPU affinity of a prefill or decode worker on a CPU, which vLLM's NIXL connector narrows.

On a CPU the connector pins the thread that creates it to the last core of each NUMA node, permanently. Where vLLM
runs in few processes that is the computing thread, so all workers of a machine compute on one core. NIXL also runs
a polling thread in each worker that never sleeps. On two cores a prefill then takes ten times as long. Both
problems only exist on CPUs: on a GPU the kernels run elsewhere and cores are plentiful.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from workers.launch.process_guard import descendants

LOOK_S = 1.0
_RESTLESS = 0.05
"""Of a core, for a thread of a worker that has nothing to do."""
_LOWEST = 19


def release_cpu_affinity(process: int) -> int:
    """Let every thread below this process use every core; give those that never sleep the lowest priority.

    Returns how many never slept. Blocks for `LOOK_S`, so call it in a thread, once the worker is ready and idle.
    A process's first thread computes and keeps its priority.
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
