"""One vLLM process below its guard, seen from the gateway."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

from workers.launch import process_guard
from workers.launch.plan import LaunchSpec

GUARD_MARGIN_S = process_guard.FORCE_LIMIT_S + 5.0
"""What the guard may need beyond the grace before it is taken for broken."""


@contextlib.asynccontextmanager
async def running(spec: LaunchSpec, grace_s: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, for the length of an `async with`; left, nothing that it started remains.

    Its output is appended to the log of `spec`. The process that is given is the guard's: its exit status is
    vLLM's. Raises OSError when the log cannot be written or no process be made.
    """
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Isolated and without site-packages: the guard starts at once and needs nothing from there.
            *("-I", "-S", process_guard.__file__, str(grace_s), str(spec.scratch)),
            *spec.argv,
            # The end of this pipe tells the guard that the gateway is gone; nothing is ever written.
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=os.environ | dict(spec.environment),
            # Ctrl-C at the terminal reaches the gateway alone, which then stops its workers in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process, grace_s)


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s + GUARD_MARGIN_S):
            await process.wait()
    if process.returncode is None or process.returncode < 0:
        # The guard hangs or was killed: what it kept is in its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.stdin is not None:
        process.stdin.close()
