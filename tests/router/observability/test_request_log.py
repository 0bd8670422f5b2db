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


def test_the_line_for_people_says_who_where_why_how_long_and_how_much():
    line = request_as_text(RECORD, 0.0)
    assert line.split()[1:] == [
        *("completed", "200", "10.0.0.7:8000", "hit", "512/700+90", "2ms/250ms/3.50s"),
        *("team/alice", "r1", "llama"),
    ]


def test_a_request_that_never_reached_a_worker_has_a_line_too():
    line = request_as_text({"outcome": "rejected", "client": "a", "status": 429, "worker": None}, 0.0)
    assert line.split()[1:] == ["rejected", "429", "-", "-", "-/-+-", "-/-/-", "a", "-", "-"]


@pytest.mark.parametrize("key", ["client", "model", "worker", "reason", "request_id"])
def test_the_line_fits_120_columns_whatever_the_names_are(key):
    line = request_as_text({**RECORD, "request_id": "4" * 32, key: "x" * 300, "error": "y" * 1000}, 0.0)
    assert max(map(len, line.splitlines())) == 120
    assert key == "request_id" or "4" * 25 in line


def test_an_error_follows_below_and_what_is_for_programs_is_left_out():
    line = request_as_text({**RECORD, "error": "the worker broke off", "path": "/v1/x", "stream": True}, 0.0)
    assert line.splitlines()[1:] == ["    error: the worker broke off"]


def test_on_a_terminal_the_outcome_has_a_colour_and_the_columns_stay():
    plain, painted = (request_as_text({**RECORD, "outcome": "failed"}, 0.0, colour=on) for on in (False, True))
    assert "\x1b[31mfailed" in painted
    assert painted.replace("\x1b[31m", "").replace("\x1b[0m", "") == plain


def test_what_a_client_sends_cannot_forge_a_line():
    record = {**RECORD, "client": "a\n12:00", "model": "\x1b[2J", "request_id": "r\r\n", "error": "x\r\ny"}
    lines = request_as_text(record, 0.0).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert r"a\n12:00" in lines[0]


# -- which requests have a line


def ids(*records, **settings):
    return [line["request_id"] for line in parsed(written(*records, **settings))]


def test_slow_and_failed_requests_have_a_line_whatever_the_share():
    records = [
        {**RECORD, "request_id": "fast"},
        {**RECORD, "request_id": "slow", "e2e_s": 10.0},
        {**RECORD, "request_id": "failed", "outcome": "failed"},
        {**RECORD, "request_id": "refused", "outcome": "refused"},
    ]
    assert ids(*records, sample=0.0) == ["slow", "failed", "refused"]
    assert ids(*records, sample=0.0, slow_s=3.0) == ["fast", "slow", "failed", "refused"]
    assert ids(*records) == ["fast", "slow", "failed", "refused"]


def test_a_share_of_the_others_has_one_the_same_at_every_gateway_and_it_says_so():
    records = [{**RECORD, "request_id": f"r{number}"} for number in range(4000)]
    first, second = (ids(*records, sample=0.1) for _ in range(2))
    assert first == second
    assert 300 < len(first) < 500
    assert parsed(written(*records, sample=0.1))[0]["sample"] == 0.1
    assert "sample" not in parsed(written(RECORD))[0]


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
