"""What the operating system and the interpreter have to be told before many streams are served."""

import contextlib
import ctypes
import gc
import logging
import resource

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

    By itself it raises its threshold with each large block that is freed (up to 32 MiB) and keeps such blocks in
    its heap from then on, where a small one behind them holds them for good. Only glibc knows this setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def spare_the_collector() -> None:
    """What exists now lives as long as the process; a full collection that walks it would only stop the loop."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
