"""What the operating system and the interpreter have to be told before many streams are served."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
from pathlib import Path

from router.edge.held_bytes import HeldBytes

_log = logging.getLogger("fairlead")

_FEW_FILES = 8192
"""Open files: fewer than that are worth a warning."""


def raise_file_limit() -> None:
    """Every stream is two sockets: use all that the system allows, and say so if that is little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 <= hard < _FEW_FILES:  # -1: no limit
        _log.warning(
            "only %d files may be open, two for each stream: raise the hard limit "
            "(`ulimit -Hn`, `LimitNOFILE=` of systemd, `ulimits` of compose)",
            hard,
        )


_LARGE_BYTES = 64 << 10
"""The pieces in which large bodies are kept (`pieces.PIECE_BYTES`) are such blocks."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def return_large_blocks() -> None:
    """Have the C library give large blocks back to the system as soon as they are free.

    By itself it keeps what has been free once (blocks of up to 32 MiB) in its heap. To take each such block from
    the system costs a fault for each of its pages: this is for a process that handles nothing but large bodies.
    Only glibc knows this setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


_FALLEN_BYTES = 8 << 20
_GROWN_BYTES = 16 << 20
_LOOK_EVERY_S = 0.5
_PAGE_BYTES = resource.getpagesize()
_STATM = Path("/proc/self/statm")


async def return_memory(held: HeldBytes) -> None:
    """Give free memory back to the system, for ever.

    Each time much less is held for requests than before, or the process has grown, as it does by what is unpacked
    or thrown away without being held. This is what `return_large_blocks` would do at once, at the price of half a
    request of 128 kB for each of them. It takes 0.1 ms for each MB, in a thread, and only glibc can do it.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    grown = _resident() + _GROWN_BYTES
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if held.fallen(_FALLEN_BYTES) or _resident() > grown:
            await asyncio.to_thread(trim, 0)
            grown = _resident() + _GROWN_BYTES


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def spare_the_collector() -> None:
    """What exists now lives as long as the process; a full collection that walks it would only stop the loop."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
