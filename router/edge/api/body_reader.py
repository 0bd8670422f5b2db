"""Where a request's body is parsed: at once if it is small, else in a process beside the gateway.

Small means that even the worst body of that size is read in a few milliseconds. A larger one goes to a
`body_process`, of which there are at most two, started when they are needed: written piece by piece, so that the
event loop does not stand still for any body.

Invariants: a process is in `_idle` or at work for exactly one body; one that was left in the middle of a body, or
has answered anything but what was expected, is killed and never used again.
"""

import asyncio
import logging
import pickle
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any

from router.edge.api.body_process import ANSWER, KINDS, QUESTION, Refusal
from router.edge.api.parsed_request import ParsedRequest, Surface, parse
from router.edge.api.passed_body import PassedBody, parse_passed
from router.edge.errors import BadRequest, Overloaded, RequestError
from router.edge.pieces import Body, Pieces

_log = logging.getLogger("fairlead.gateway")

INLINE_BYTES = 160 << 10
"""Bodies up to this size are parsed on the event loop."""
_PROCESSES = 2
_WITHIN_S = 60.0
"""For one body: a hundred times what the largest takes."""
_ROOT = Path(__file__).parents[3]
_PIECE_BYTES = 256 << 10


class BodyReader:
    """All bodies of a gateway. Belongs to the event loop that first reads a large one."""

    def __init__(self) -> None:
        self._idle: list[Process] = []
        self._places = asyncio.Semaphore(_PROCESSES)
        self._processes: set[Process] = set()
        self._reading: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[int]] = set()
        """One for each process that was killed and has not ended yet."""

    async def read(self, surface: Surface, body: Body) -> ParsedRequest:
        """A routed request's body. Raises BadRequest."""
        if isinstance(body, bytes):
            return parse(surface, body)
        found = await self._apart(surface, body)
        if not isinstance(found, ParsedRequest):
            raise TypeError("a body process has answered with something else")
        return found

    async def read_passed(self, body: Body) -> PassedBody:
        """The JSON body of a request that passes through. Raises BadRequest."""
        if isinstance(body, bytes):
            return parse_passed(body)
        found = await self._apart(None, body)
        if not isinstance(found, PassedBody):
            raise TypeError("a body process has answered with something else")
        return found

    async def aclose(self) -> None:
        """End the processes."""
        for process in tuple(self._processes):
            self._kill(process)
        for task in tuple(self._reading):
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await asyncio.gather(*self._ending)

    async def _apart(self, kind: Surface | None, body: Pieces) -> ParsedRequest | PassedBody:
        begun = asyncio.Event()
        task = asyncio.ensure_future(self._ask(kind, body, begun))
        self._reading.add(task)
        task.add_done_callback(self._read)
        try:
            found = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The client has left. What has begun goes on, as half a question would cost the process.
            if not begun.is_set():
                task.cancel()
            raise
        if isinstance(found, Refusal):
            raise BadRequest(found.message, param=found.param)
        found.body = body
        return found

    def _read(self, task: "asyncio.Task[Any]") -> None:
        self._reading.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, as no client may be left to raise it to

    async def _ask(
        self, kind: Surface | None, body: Pieces, begun: asyncio.Event
    ) -> ParsedRequest | PassedBody | Refusal:
        """What a process says of a body. `begun` is set once it has a process."""
        async with self._places:
            begun.set()
            for last in (False, True):
                process, fresh = await self._process()
                try:
                    async with asyncio.timeout(_WITHIN_S):
                        found = await _exchange(process, kind, body)
                except (OSError, EOFError) as error:  # it has ended: one that idled may have become large
                    self._kill(process)
                    if fresh or last:
                        _log.error("a process that parses bodies has ended early: %r", error)
                        raise RequestError("The gateway failed to read the request's body.") from None
                except TimeoutError:
                    self._kill(process)
                    raise Overloaded("The request's body could not be read in time.", retry_after_s=10) from None
                except BaseException:
                    self._kill(process)
                    raise
                else:
                    self._rest(process)
                    return found
        raise AssertionError

    async def _process(self) -> tuple[Process, bool]:
        """One that waits for a body, and whether it is new."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process, False
            self._processes.discard(process)
        # Not `-m`: what it pickles must be of the module by its name, not of `__main__`.
        command = (sys.executable, "-c", "from router.edge.api.body_process import main; main()")
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=_ROOT, limit=_PIECE_BYTES
        )
        self._processes.add(process)
        return process, True

    def _rest(self, process: Process) -> None:
        """Keep one for the next body; a second one ends, with the memory that it takes."""
        if self._idle:
            self._kill(process)
        else:
            self._idle.append(process)

    def _kill(self, process: Process) -> None:
        self._processes.discard(process)
        with suppress(ProcessLookupError):
            process.kill()
        task = asyncio.ensure_future(process.wait())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _exchange(process: Process, kind: Surface | None, body: Pieces) -> ParsedRequest | PassedBody | Refusal:
    """Put one body to a process. Raises OSError or EOFError if it ends."""
    source, sink = process.stdout, process.stdin
    if source is None or sink is None:
        raise EOFError
    sink.write(QUESTION.pack(KINDS.index(kind), len(body)))
    for piece in body:
        sink.write(piece)
        await sink.drain()
    size, key_size = ANSWER.unpack(await source.readexactly(ANSWER.size))
    found: ParsedRequest | PassedBody | Refusal = pickle.loads(await source.readexactly(size))  # noqa: S301 - ours
    pieces: list[bytes] = []
    while key_size:
        piece = await source.read(min(key_size, _PIECE_BYTES))
        if not piece:
            raise EOFError
        pieces.append(piece)
        key_size -= len(piece)
    if isinstance(found, ParsedRequest):
        key = b"".join(pieces)
        if found.ids is not None:
            found.ids = key
        found.prompt = key
    return found
