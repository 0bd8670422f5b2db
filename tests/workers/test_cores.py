"""A worker's threads may use every core, and those that never rest leave them to the others."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.cores import give_cores_back

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
def keeper_of(program):
    """A process with the program's below it, as a keeper has vLLM: their ids."""
    start = "import subprocess, sys; exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    keeper = subprocess.Popen(
        [sys.executable, "-c", start, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        keeper.stdout.readline()
        [worker] = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        yield keeper.pid, int(worker)
    finally:
        with subprocess.Popen(["kill", "-9", worker]):
            keeper.communicate()


@pytest.mark.parametrize("then", [WAITS, COMPUTES])
def test_threads_get_every_core_and_those_that_never_rest_the_lowest_priority(then):
    with keeper_of(PINNED_AND_RESTLESS + then) as (keeper, worker):
        assert give_cores_back(keeper) == 1
        threads = {int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()}
        assert [os.sched_getaffinity(thread) for thread in threads] == [os.sched_getaffinity(0)] * 2
        assert os.getpriority(os.PRIO_PROCESS, worker) == 0
        [other] = threads - {worker}
        assert os.getpriority(os.PRIO_PROCESS, other) == 19


def test_a_process_that_is_gone_has_nothing_to_give_back():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        assert give_cores_back(gone.pid) == 0
