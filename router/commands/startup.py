"""The start of the gateway as commands see it: its port, signals that arrive meanwhile, what they print."""

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from router.config.schema import Config
from router.observability.log_writer import Lines

SAY_WITHIN_S = 0.2
"""How long a printed line may keep the event loop waiting for what reads standard output."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StartError(Exception):
    """The gateway cannot start; the message is for the person at the terminal."""


def claim_port(host: str, port: int) -> int:
    """Make sure that the address is free; port 0 becomes one that is. Raises StartError.

    Asked before anything else is started, so that a taken port costs one line and not a fleet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise StartError(f"{host!r} is not an address of this machine") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind(address)
        except OSError as error:
            raise StartError(_why_not(error, host, port)) from None
        return int(probe.getsockname()[1])


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is already taken; choose another one with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def at_port(config: Config, port: int) -> Config:
    """The configuration with the port that was taken for it."""
    return config.model_copy(update={"listen": config.listen.model_copy(update={"port": port})})


def reread(path: Path | None, overrides: Mapping[str, Any], loaded: Config, port: int) -> Config:
    """The configuration as the file has it now. Raises ConfigError.

    `loaded` is what it said at the start: where it still says the same port, such as 0, that is the one taken.
    """
    read = Config.load(path, overrides=overrides)
    return at_port(read, port) if read.listen.port == loaded.listen.port else read


def say(text: str) -> None:
    """Print lines for the person, or the program, that waits for `ready`: not held back in a buffer.

    Waits for `SAY_WITHIN_S` at most: a reader that stalls must not keep the gateway from serving.
    """
    lines = Lines(getattr(sys.stdout.buffer, "raw", sys.stdout.buffer))
    lines.write(f"{text}\n".encode())
    lines.close(SAY_WITHIN_S)


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Within it SIGINT and SIGTERM cancel the current task, so that whatever it has started is taken down.

    The gateway replaces these handlers by its own while it serves.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("there is no task to cancel")
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            # Taking things down is under way and bounded in time: a second signal must not leave orphans.
            loop.add_signal_handler(number, lambda: None)
