"""A trace as lines of bytes, plain or compressed, and the errors that name where in it."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from router.lab.workload import WorkloadError

GZIP = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"


class BrokenLine(WorkloadError):
    """A line that is not what its file's format wants."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Its lines that are not blank, stripped, numbered from 1. Raises WorkloadError where it cannot be read."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(GZIP)) == GZIP
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = (line.removeprefix(UTF8_MARK) if number == 1 else line).strip()
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WorkloadError(f"{path}: cannot be read: {reason}") from error
