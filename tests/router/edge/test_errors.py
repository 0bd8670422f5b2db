import json

import pytest

from router.edge import errors
from router.edge.errors import Dialect, Overloaded, RequestError, Unauthorized, to_event, to_http


def subclasses(base):
    for one in base.__subclasses__():
        yield one
        yield from subclasses(one)


EVERY = sorted(subclasses(RequestError), key=lambda error: error.__name__)


@pytest.mark.parametrize("error", EVERY)
def test_every_error_stands_in_the_drawn_tree_with_its_status(error):
    [line] = [line for line in errors.__doc__.splitlines() if f" {error.__name__} " in f"{line} "]
    assert str(error.status) in line


@pytest.mark.parametrize("error", [RequestError, *EVERY])
def test_every_error_is_said_in_both_dialects(error):
    status, headers, body = to_http(error("what is wrong", param="model"))
    content = json.loads(body)["error"]
    assert content == {"message": "what is wrong", "type": error.type, "param": "model", "code": status}
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    _, _, body = to_http(error("what is wrong"), Dialect.ANTHROPIC)
    assert json.loads(body) == {"type": "error", "error": {"type": error.type, "message": "what is wrong"}}


@pytest.mark.parametrize(("seconds", "said"), [(0.01, b"1"), (1.4, b"2"), (2.0, b"2"), (30, b"30")])
def test_a_time_to_come_back_is_whole_seconds_and_never_zero(seconds, said):
    assert dict(to_http(Overloaded("later", retry_after_s=seconds))[1])[b"retry-after"] == said


def test_without_a_time_there_is_no_such_header():
    assert b"retry-after" not in dict(to_http(Overloaded("later"))[1])
    assert dict(to_http(Unauthorized("who?"))[1])[b"www-authenticate"] == b"Bearer"


def test_an_error_within_a_stream_is_an_event_that_ends_it():
    first, last, rest = to_event(Overloaded("later")).split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["error"]["code"] == 429
    assert (last, rest) == (b"data: [DONE]", b"")
    name, data, *_ = to_event(Overloaded("later"), Dialect.ANTHROPIC).split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["type"] == "error"


def test_a_broken_responses_stream_ends_with_that_api_s_error_event():
    name, data, *_ = to_event(Overloaded("later"), Dialect.RESPONSES).split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "code": "OverloadedError",
        "message": "later",
        "param": None,
    }
