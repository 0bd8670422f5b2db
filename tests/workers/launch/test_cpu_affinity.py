"""A worker's threads may use every core, and those that never rest leave them to the others."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.launch.cpu_affinity import release_cpu_affinity

PINNED_AND_RESTLESS = """
import os, threading
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
print("ready", flush=True)
"""
WAITS = "os.read(0, 1)"
COMPUTES = "spin()"


@contextmanager
def guarded(program):
    """A process with the program's below it, as a guard has vLLM: their ids."""
    start = "import subprocess, sys; exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    guard = subprocess.Popen([sys.executable, "-c", start, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        guard.stdout.readline()
        [worker] = Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()
        yield guard.pid, int(worker)
    finally:
        with subprocess.Popen(["kill", "-9", worker]):
            guard.communicate()


@pytest.mark.parametrize("then", [WAITS, COMPUTES])
def test_threads_get_every_core_and_those_that_never_rest_the_lowest_priority(then):
    with guarded(PINNED_AND_RESTLESS + then) as (guard, worker):
        assert release_cpu_affinity(guard) == 1
        threads = {int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()}
        assert [os.sched_getaffinity(thread) for thread in threads] == [os.sched_getaffinity(0)] * 2
        assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0)
        [other] = threads - {worker}
        assert os.getpriority(os.PRIO_PROCESS, other) == 19


def test_a_process_that_is_gone_has_nothing_to_give_back():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        assert release_cpu_affinity(gone.pid) == 0
