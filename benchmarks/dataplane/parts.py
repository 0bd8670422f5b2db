"""`fairlead` that says how much memory each of its parts holds.

    python -m benchmarks.dataplane.parts FILE serve --config ...

On SIGUSR1 the process forks: the child is a picture of that moment, walks the objects of each part and appends a
line of JSON to FILE, while the requests of the parent go on. An object counts for the first part that leads to it,
and once; what Python cannot see into (buffers of uvloop, the allocator's free lists) is in no part.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from router import app
from router.config.schema import Config

PARTS = ("tree", "scheduler", "clients", "pools", "metrics", "log", "rest")
_PROGRAM = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType)
"""What is there once, whatever was asked; and by way of it one would come to everything."""


def parts(gateway: app.Router) -> dict[str, list[object]]:
    """Where each part begins."""
    schedulers = [pool.scheduler for pool in gateway.pools.by_model.values()]
    found: dict[str, list[object]] = {
        "tree": [scheduler.prefixes for scheduler in schedulers],
        "scheduler": [*schedulers],
        "clients": [gateway.clients],
        "pools": [gateway.pools],
        "metrics": [gateway.metrics],
        "log": [gateway.request_log, gateway.decisions],
        "rest": [gateway],
    }
    return {name: found[name] for name in PARTS}


def sizes(roots: Mapping[str, Iterable[object]], beyond: Iterable[object] = ()) -> dict[str, int]:
    """Bytes of all that can be reached from each root, but by way of another root or of what is `beyond`."""
    stacks = {name: list(objects) for name, objects in roots.items()}
    seen = {id(one) for one in beyond}
    seen.update(id(one) for stack in stacks.values() for one in stack)
    return {name: _size(stack, seen) for name, stack in stacks.items()}


def _size(stack: list[object], seen: set[int]) -> int:
    total = 0
    while stack:
        one = stack.pop()
        total += sys.getsizeof(one, 0)
        for other in gc.get_referents(one):
            if id(other) not in seen and not isinstance(other, _PROGRAM):
                seen.add(id(other))
                stack.append(other)
    return total


class Picture:
    """Takes them when asked."""

    def __init__(self, gateway: app.Router, file: Path) -> None:
        self._gateway = gateway
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._child = 0

    def take(self) -> None:
        """Fork; the child tells and ends."""
        if self._child:
            with suppress(ChildProcessError):
                os.waitpid(self._child, os.WNOHANG)
        self._child = os.fork()
        if self._child == 0:
            try:
                line = json.dumps(sizes(parts(self._gateway), [self._loop]))
                with self._file.open("a") as lines:
                    lines.write(line + "\n")
            finally:
                os._exit(0)


def main() -> None:
    """Run the command that follows FILE."""
    file = Path(sys.argv.pop(1))
    servers = app.servers  # the one place that has the gateway just before it serves

    def watched(config: Config, gateway: app.Router) -> Any:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, Picture(gateway, file).take)
        return servers(config, gateway)

    app.servers = watched
    from router.commands.cli import main as fairlead  # noqa: PLC0415 - after its composition has been changed

    fairlead()


if __name__ == "__main__":
    main()
