"""Free ports on loopback."""

import random
import socket
from contextlib import suppress

_FIRST_PORT, _LAST_PORT = 10_000, 30_000
"""Below the range from which the system hands out ports."""


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(range(_FIRST_PORT, _LAST_PORT), k=100 + count):
        if len(found) == count:
            break
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
    if len(found) < count:
        raise RuntimeError("no free port")
    return found


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]
