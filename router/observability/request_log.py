"""What the gateway writes down: one line per finished request, and what its parts have to say.

For people on a terminal, as JSON lines for everything else. Both kinds of line leave through one `Lines`, so they
keep their order and never mix. A request's line does not pass through the standard library's logging, which would
cost ten times as much as making it.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO
from zlib import crc32

import orjson

from router.config.sections import Log
from router.observability.log_writer import Lines
from router.observability.request_line import local_time, printable, request_as_text

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PROMPT_KEYS = frozenset({"prompt", "messages", "input", "body"})
"""Keys of a request's record that hold what the client wrote."""
JSON_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class RequestLog:
    """Writes the line of a finished request.

    The record's keys, all optional: those of `request_line.PLACED`, error, and what else there is to say. Of
    requests that completed within `slow_s` only the share `sample` is written, by the id of the request.
    """

    def __init__(
        self,
        lines: Lines,
        *,
        text: bool,
        enabled: bool = True,
        prompts: bool = False,
        prefixes: bool = False,
        sample: float = 1.0,
        slow_s: float = 10.0,
        colour: bool = False,
        addresses: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lines = lines
        self.prompts = prompts
        """Whether the text of prompts may be written; without it such keys are dropped."""
        self.prefixes = prefixes and not text
        """Whether lines carry hashes of the prompt's blocks: for the lab, so not on a terminal."""
        self.sample = sample
        self.slow_s = slow_s
        self.addresses = addresses
        """Whether the clients' addresses may be written."""
        self._text = text
        self._colour = colour
        self._enabled = enabled
        self._clock = clock

    def reconfigure(self, settings: Log) -> None:
        """Take over what may change while it is written: the level of all lines, what those of requests have."""
        set_level(settings)
        self._enabled = LEVELS[settings.level] <= logging.INFO
        self.prompts = settings.prompts
        self.prefixes = settings.prefixes and not self._text
        self.sample, self.slow_s = settings.sample, settings.slow_s
        self.addresses = settings.addresses

    def write(self, record: Mapping[str, Any]) -> None:
        if not self._enabled:
            return
        if self.sample < 1 and self._is_ordinary(record):
            if not _is_drawn(record.get("request_id"), self.sample):
                return
            record = {**record, "sample": self.sample}
        if not self.prompts and not record.keys().isdisjoint(PROMPT_KEYS):
            record = {key: value for key, value in record.items() if key not in PROMPT_KEYS}
        now = self._clock()
        if self._text:
            text = request_as_text(record, now, colour=self._colour)
            self.lines.write(text.encode(errors="replace") + b"\n")
        else:
            line = {"time": datetime.fromtimestamp(now, UTC), "level": "info", "event": "request", **record}
            self.lines.write(_json(line))

    def _is_ordinary(self, record: Mapping[str, Any]) -> bool:
        """Whether it is neither slow nor failed."""
        return record.get("outcome") == "completed" and record.get("e2e_s", 0.0) < self.slow_s


def _is_drawn(request: object, share: float) -> bool:
    """Whether a request is one of this share: the same at every gateway that it passes."""
    return crc32(str(request).encode(errors="replace")) < share * 2**32


def configure(settings: Log, stream: TextIO) -> RequestLog:
    """Send all log lines to `stream` (its unbuffered bytes) in one format; returns the writer of request lines.

    At the end of the process the standard library's logging flushes what is left, for `FLUSH_WITHIN_S` at most.
    Uvicorn has to be started with `log_config=None`. Its access lines are off: the request lines say more.
    """
    text = settings.format == "text" or (settings.format == "auto" and stream.isatty())
    lines = Lines(getattr(stream.buffer, "raw", stream.buffer))
    handler = LineHandler(lines, text=text)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, LineHandler):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    set_level(settings)
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    enabled = LEVELS[settings.level] <= logging.INFO
    return RequestLog(
        lines,
        text=text,
        enabled=enabled,
        prompts=settings.prompts,
        prefixes=settings.prefixes,
        sample=settings.sample,
        slow_s=settings.slow_s,
        addresses=settings.addresses,
        colour=stream.isatty() and not os.environ.get("NO_COLOR"),
    )


def set_level(settings: Log) -> None:
    """Write log lines from this level on. A line per probe and scrape is written only at level debug."""
    level = LEVELS[settings.level]
    logging.getLogger().setLevel(level)
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)


class LineHandler(logging.Handler):
    """The bridge from the standard library's logging to `Lines`."""

    def __init__(self, lines: Lines, *, text: bool) -> None:
        super().__init__()
        self._lines = lines
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._as_text(record) if self._text else self._as_json(record)
        except Exception:  # noqa: BLE001  # a bad log call must not break the one who made it
            self.handleError(record)
        else:
            self._lines.write(line)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Say where the bad log call is; the standard library would write to standard error by itself."""
        event = f"a log call cannot be formatted: {record.pathname}:{record.lineno}"
        line = printable(event).encode(errors="replace") + b"\n" if self._text else _json({"event": event})
        self._lines.write(line)

    def _as_json(self, record: logging.LogRecord) -> bytes:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **{key: value for key, value in vars(record).items() if key not in _PLAIN},
        }
        if record.exc_info:
            line["error"] = _TRACEBACKS.formatException(record.exc_info)
        return _json(line)

    def _as_text(self, record: logging.LogRecord) -> bytes:
        extra = "".join(f" {key}={value}" for key, value in vars(record).items() if key not in _PLAIN)
        head = f"{local_time(record.created)} {record.levelname.lower():<9} "
        text = head + printable(record.getMessage() + extra)
        if record.exc_info:
            text += "\n" + _TRACEBACKS.formatException(record.exc_info)
        return text.encode(errors="replace") + b"\n"


_TRACEBACKS = logging.Formatter()


def _json(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, default=str, option=JSON_OPTIONS)
    except TypeError:  # a key that is no text, an integer beyond 64 bits, half a character
        plain = {str(key): value if isinstance(value, float) else str(value) for key, value in line.items()}
        safe = {
            key: value.encode(errors="replace").decode() if isinstance(value, str) else value
            for key, value in plain.items()
        }
        return orjson.dumps(safe, option=JSON_OPTIONS)
