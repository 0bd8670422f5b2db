"""What the kernel knows of a process and everything below it: CPU time, memory, open files."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes, of all processes together. `pss` counts shared pages once."""

    pss: int
    peak_rss: int
    """Sum of each process's own peak."""


def processes(root: int) -> list[int]:
    """`root` and all that descend from it."""
    found = [root]
    for pid in found:
        for task in _names(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    return found


def cpu_s(root: int) -> float:
    """Seconds of CPU, user and system, of the whole tree, ended threads and awaited children included.

    Exact to a clock tick (10 ms) per process: measure so much that this is noise.
    """
    ticks = 0
    for pid in processes(root):
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def memory(root: int) -> Memory:
    """The tree's memory now."""
    pids = processes(root)
    pss = sum(_kib(_read(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids)
    peak = sum(_kib(_read(f"/proc/{pid}/status"), "VmHWM:") for pid in pids)
    return Memory(pss * 1024, peak * 1024)


def rss(pid: int) -> int:
    """Resident memory of one process, in bytes."""
    return _kib(_read(f"/proc/{pid}/status"), "VmRSS:") * 1024


def arguments(pid: int) -> list[str]:
    """A process's command line; empty for one that has ended."""
    return _read(f"/proc/{pid}/cmdline").split("\0")[:-1]


def raise_file_limit() -> int:
    """Let this process and its children open as many files as the system allows them; returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _kib(page: str, name: str) -> int:
    return next((int(line.split()[1]) for line in page.splitlines() if line.startswith(name)), 0)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - a folder of the kernel's
    except OSError:
        return []


def _read(file: str) -> str:
    """Empty for a process that has ended meanwhile."""
    try:
        return Path(file).read_text()
    except OSError:
        return ""
