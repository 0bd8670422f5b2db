"""`fairlead` as a child process, as a person at a terminal or a process manager starts it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

COMMAND = Path(sys.executable).with_name("fairlead")


class Child:
    """One run of the command. What it prints is kept; its log is a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.printed: list[str] = []
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def ready(self) -> str:
        """The address in its `ready` line."""
        async with asyncio.timeout(30):
            while line := await self.process.stdout.readline():
                self.printed.append(line.decode().rstrip("\n"))
                if self.printed[-1].startswith("ready "):
                    return self.printed[-1].removeprefix("ready ")
        raise AssertionError(f"it ended before it was ready:\n{self.log()}")

    async def ended(self, within_s: float) -> int:
        """Its exit status; fails if it does not end in time."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def children(self) -> list[int]:
        """Process ids below it."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def fairlead(
    folder: Path, *arguments: str, stdout: int | None = None, stderr: int | None = None, **environment: str
) -> AsyncIterator[Child]:
    """Run the command in `folder`; killed at the end if it still runs. Streams may be a test's own descriptors."""
    log = folder / "log"
    with log.open("wb") as log_file:
        process = await asyncio.create_subprocess_exec(
            COMMAND,
            *arguments,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
            stderr=log_file if stderr is None else stderr,
            env={**os.environ, **environment},
        )
    child = Child(process, log)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdout is not None:
            await process.stdout.read()
        process._transport.close()
