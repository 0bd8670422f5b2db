import io
import json
import logging

import pytest

from router.config.sections import Log
from router.observability.log_writer import Lines
from router.observability.request_log import (
    LineHandler,
    RequestLog,
    configure,
    request_as_text,
)

RECORD = {
    "outcome": "completed",
    "client": "team/alice",
    "model": "llama",
    "status": 200,
    "worker": "http://10.0.0.7:8000",
    "reason": "hit",
    "matched_tokens": 512,
    "wait_s": 0.0021,
    "ttft_s": 0.25,
    "e2e_s": 3.5,
    "input_tokens": 700,
    "output_tokens": 90,
    "request_id": "r1",
}


class Terminal:
    """Standard error, with what it has been given."""

    def __init__(self, *, is_terminal):
        self.buffer = io.BytesIO()
        self._is_terminal = is_terminal

    def text(self):
        logging_flushed()
        return self.buffer.getvalue()

    def lines(self):
        return parsed(self.text())

    def isatty(self):
        return self._is_terminal


def parsed(text):
    return [json.loads(line) for line in text.splitlines()]


def logging_flushed():
    """As the standard library does at the end of a process."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def written(*records, **settings):
    """What the log of these requests' records is."""
    stream = io.BytesIO()
    lines = Lines(stream)
    log = RequestLog(lines, **{"text": False, **settings})
    for record in records:
        log.write(record)
    lines.close()
    return stream.getvalue()


@pytest.fixture
def logging_as_before():
    root = logging.getLogger()
    level = root.level
    yield
    for handler in root.handlers[:]:
        if isinstance(handler, LineHandler):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("uvicorn.access").disabled = False


def test_a_request_is_one_json_line_with_its_time():
    (line,) = parsed(written(RECORD, clock=lambda: 0.25))
    assert line.pop("time") == "1970-01-01T00:00:00.250000Z"
    assert line == {"level": "info", "event": "request", **RECORD}


def test_for_people_a_request_is_one_line_with_the_decision():
    line = request_as_text(RECORD, 0.0)
    assert line.split(maxsplit=1)[1] == (
        "completed team/alice llama 200 on http://10.0.0.7:8000 (hit) matched 512 wait 2ms ttft 250ms e2e 3.50s "
        "tokens 700+90 request_id=r1"
    )


def test_a_request_that_never_reached_a_worker_has_a_line_too():
    line = request_as_text({"outcome": "rejected", "client": "a", "status": 429, "worker": None}, 0.0)
    assert line.endswith("rejected  a - 429 on - (-) matched - wait - ttft - e2e - tokens -+-")


def test_what_a_client_sends_cannot_forge_a_line():
    line = request_as_text({**RECORD, "client": "a\n12:00:00 completed\x1b[2J", "error": "x\r\ny"}, 0.0)
    assert line.isprintable()
    assert r"a\n12:00:00" in line


@pytest.mark.parametrize("text", [True, False])
def test_the_text_of_a_prompt_is_written_only_when_asked_for(text):
    for prompts in (False, True):
        record = {**RECORD, "prompt": "my secret", "messages": ["my secret"]}
        assert (b"my secret" in written(record, text=text, prompts=prompts)) is prompts


@pytest.mark.parametrize(
    "odd", [2**70, {1: 2}, object(), b"bytes", float("nan"), "\ud800", {2**70: object()}, [{"\ud800": 1}]]
)
def test_a_value_that_json_does_not_know_still_gives_a_line(odd):
    (line,) = parsed(written({**RECORD, "odd": odd}))
    assert line["client"] == "team/alice"


def test_log_calls_and_requests_keep_their_order(logging_as_before):
    terminal = Terminal(is_terminal=False)
    log = configure(Log(), terminal)
    log.write(RECORD)
    logging.getLogger("router.test").warning("worker %s is down", "w1", extra={"worker": "w1"})
    log.write(RECORD)
    first, second, third = terminal.lines()
    assert (first["event"], third["event"]) == ("request", "request")
    assert (second["event"], second["level"], second["worker"]) == ("worker w1 is down", "warning", "w1")
    assert second["logger"] == "router.test"


def test_a_warning_is_one_line_with_its_traceback(logging_as_before):
    terminal = Terminal(is_terminal=False)
    configure(Log(), terminal)
    try:
        int("broken")
    except ValueError:
        logging.getLogger("router.test").exception("it failed")
    (line,) = terminal.lines()
    assert "ValueError: invalid literal" in line["error"]


@pytest.mark.parametrize(
    ("form", "is_terminal", "text"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("text", False, True)],
)
def test_text_on_a_terminal_json_otherwise_unless_the_config_says(logging_as_before, form, is_terminal, text):
    terminal = Terminal(is_terminal=is_terminal)
    log = configure(Log(format=form), terminal)
    log.write(RECORD)
    logging.getLogger("router.test").info("started")
    written = terminal.text()
    assert written.count(b"\n") == 2
    assert written.startswith(b"{") is not text


def test_the_level_counts_for_requests_too(logging_as_before):
    terminal = Terminal(is_terminal=False)
    log = configure(Log(level="warning"), terminal)
    log.write(RECORD)
    logging.getLogger("router.test").info("started")
    assert terminal.text() == b""


def test_uvicorns_lines_take_the_same_way_but_its_access_lines_are_off(logging_as_before):
    terminal = Terminal(is_terminal=False)
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(io.StringIO()))
    configure(Log(), terminal)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("httpx").info("HTTP Request: GET /health")
    (line,) = terminal.lines()
    assert line["event"] == "Application startup complete."


def test_configuring_twice_writes_each_line_once(logging_as_before):
    configure(Log(), Terminal(is_terminal=False))
    terminal = Terminal(is_terminal=False)
    configure(Log(), terminal)
    logging.getLogger("router.test").info("once")
    assert len(terminal.lines()) == 1


@pytest.mark.parametrize("text", [True, False])
def test_a_log_call_that_cannot_be_formatted_is_named_in_the_log(capsys, text):
    stream = io.BytesIO()
    handler = LineHandler(Lines(stream), text=text)
    handler.handle(logging.LogRecord("router.test", logging.WARNING, "here.py", 7, "%d", ("no number",), None))
    handler.close()
    assert b"a log call cannot be formatted: here.py:7" in stream.getvalue()
    assert capsys.readouterr().err == ""
