"""Free ports on loopback."""

import random
import socket
from contextlib import suppress

_FIRST_PORT, _LAST_PORT = 10_000, 30_000
"""Below the range from which the system hands out ports."""


def free_port() -> int:
    """A port that nobody listens on now."""
    for port in random.sample(range(_FIRST_PORT, _LAST_PORT), k=100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")
