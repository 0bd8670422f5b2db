"""What does a vLLM's log say, in one line for the progress display and in a few for an error?"""

import re
from collections.abc import Iterable
from pathlib import Path

CHUNK_BYTES = 1 << 18
TAIL_LINES = 15
WIDTH = 400

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?", re.ASCII
)
_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): \S")
_WARNING = re.compile(r"^\[?W\d{4} |[Ww]arning")
_CONSEQUENCE = "Engine core initialization failed"
"""What the API server says when its engine died: true, but the cause stands above it."""


class LogTail:
    """Reads what is appended to a log file. Lines that no newline has ended yet are kept for later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._start = self._offset
        self._partial = ""

    def read_new(self) -> list[str]:
        """The lines that came since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(CHUNK_BYTES)
        self._offset += len(data)
        *lines, self._partial = _lines(self._partial + data.decode(errors="replace"))
        return lines

    def last_lines(self) -> list[str]:
        """The last lines that this process wrote, at most CHUNK_BYTES of them."""
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self._start, size - CHUNK_BYTES))
            return _lines(file.read().decode(errors="replace"))


def _lines(text: str) -> list[str]:
    # A progress bar redraws itself with carriage returns: each drawing is a line.
    return re.split(r"\r\n|\n|\r", text)


def split_prefix(line: str) -> tuple[str | None, str]:
    """A log line's level (None if it has none) and its text, without colours, process and place."""
    plain = _ANSI.sub("", line).rstrip()
    match = _PREFIX.match(plain)
    if match is None:
        return None, plain
    return match["level"], plain[match.end() :]


def headline(lines: Iterable[str]) -> str | None:
    """The newest line that tells how far the start has come: an INFO line of vLLM's own, or a progress bar.

    Where a program logs in another way, its newest line.
    """
    told, other = None, None
    for line in lines:
        level, text = split_prefix(line)
        if not any(character.isalnum() for character in text) or _WARNING.search(text):
            continue
        if level == "INFO" or "%|" in text or "% Completed" in text:
            told = text.strip()
        elif level is None:
            other = text.strip()
    return told or other


def causes(lines: Iterable[str]) -> list[str]:
    """The distinct error messages in a log, the original cause first; at most three."""
    found: dict[str, None] = {}
    for line in lines:
        text = split_prefix(line)[1]
        if _ERROR.match(text):
            found.setdefault(text[:WIDTH])
    roots = [text for text in found if _CONSEQUENCE not in text]
    return (roots or list(found))[:3]


def tail(lines: Iterable[str]) -> list[str]:
    """The last lines with anything in them."""
    return [_ANSI.sub("", line).rstrip()[:WIDTH] for line in lines if line.strip()][-TAIL_LINES:]
