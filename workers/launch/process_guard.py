"""The parent of one vLLM process: when the gateway is gone, by whatever death, vLLM goes too.

    python process_guard.py GRACE_S SCRATCH_DIRECTORY COMMAND [ARGUMENT ...]

The gateway cannot clean up after a `kill -9`, so each vLLM gets a guard that can. It notices the gateway's end
in two ways: its standard input is a pipe of which the gateway holds the only other end (end of file), and the
kernel signals it when its parent dies. It then ends vLLM politely (SIGTERM), after GRACE_S by force, and leaves
only when nothing is left that vLLM ever started: being a *subreaper*, it becomes the parent of every orphan
below it, even of one in a session of its own, so "nothing left" is a fact and not a guess. SIGTERM, SIGINT and
SIGHUP do the same. If the guard itself is killed, the kernel kills vLLM. SCRATCH_DIRECTORY, for sockets, exists
as long as the command runs.

Exit status: that of the command (128 + N if signal N ended it), 127 if there is no such command.

Standard library only and run by its path, so that it starts in milliseconds and needs nothing of the gateway's
environment. Linux only (prctl).
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FORCE_LIMIT_S = 10.0
"""How long to go on killing what does not die (a process stuck in a driver); then leave all the same."""


def prctl(option: int, value: int) -> None:
    """The system call, which Python has no name for."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def spawn(command: list[str]) -> int:
    """Starts the command as a child that dies with this process; its standard input is empty."""
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the kernel was asked to watch it
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606  # a program and its arguments, no shell
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def descendants(root: int) -> list[int]:
    """Every live process below that one, in whatever session or group it put itself."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; the fields begin after the last one.
            stat = (process / "stat").read_text(errors="replace")
            parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    below: list[int] = []
    generation = {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation}
        below.extend(generation)
    return below


class ProcessGuard:
    """One command from its start to the end of the last process below it."""

    def __init__(self, command: list[str], grace_s: float) -> None:
        self.status: int | None = None
        self._grace_s = grace_s
        self._wakeups, wakeups = os.pipe()
        os.set_blocking(self._wakeups, False)
        os.set_blocking(wakeups, False)
        self._stop_asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakeups)
        self._child = spawn(command)

    def run(self) -> int:
        """Waits for the command's end or for the gateway's, then clears up. Returns the exit status."""
        self._wait(None, watch_gateway=True)
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            self._wait(time.monotonic() + self._grace_s, watch_gateway=False)
        self._kill_all()
        return 128 + signal.SIGKILL if self.status is None else self.status

    def _ask_to_stop(self, _number: int, _frame: object) -> None:
        self._stop_asked = True

    def _wait(self, deadline: float | None, *, watch_gateway: bool) -> None:
        """Until the command has ended, the time is over, or (if watched) the gateway is gone or says stop."""
        sources = [self._wakeups, 0] if watch_gateway else [self._wakeups]
        while self.status is None and not (watch_gateway and self._stop_asked):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            ready, _, _ = select.select(sources, [], [], left)
            if self._wakeups in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeups, 4096)
            self._reap()
            if 0 in ready and not os.read(0, 4096):
                return

    def _reap(self) -> bool:
        """Collects whatever has ended; False when there is no child left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code

    def _kill_all(self) -> None:
        deadline = time.monotonic() + FORCE_LIMIT_S
        while self._reap() and time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def main(arguments: list[str]) -> int:
    """Keeps the command that `arguments` name; see the head of this file."""
    grace_s, scratch, *command = arguments
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    Path(scratch).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return ProcessGuard(command, float(grace_s)).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
