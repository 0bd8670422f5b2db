"""The scenarios by name."""

from benchmarks.dataplane.compared import first_token, open_loop, plain, plain_128k, stream
from benchmarks.dataplane.fresh import STORM_CLIENTS, loop_stops, memory, slow_readers, storm
from benchmarks.dataplane.outcome import Options

SCENARIOS = {
    "stream": stream,
    "plain": plain,
    "plain-128k": plain_128k,
    "first-token": first_token,
    "open-loop": open_loop,
    "memory": memory,
    "slow-readers": slow_readers,
    "stops": loop_stops,
    "storm": storm,
}
DEFAULT = ("stream", "plain", "plain-128k", "first-token")
_SPARE_FILES = 500
"""Files that are no streams: connections of probes, logs, idle connections, the interpreter's."""


def files_needed(name: str, options: Options) -> int:
    """How many files one process of this scenario has open at once: a router has two sockets for each stream."""
    streams = options.streams if name == "memory" else STORM_CLIENTS
    return 2 * streams + _SPARE_FILES
