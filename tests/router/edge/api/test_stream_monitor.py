import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Usage
from router.edge.api import stream_monitor as module
from router.edge.api.parsed_request import Surface
from router.edge.api.stream_monitor import (
    StreamMonitor,
    error_of_event,
    find_id,
    read_usage,
    whole_aborted,
    whole_usage,
)

DONE = b"data: [DONE]\n\n"


def event(**fields):
    return b"data: " + json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def chunk(text, finish=None, index=0):
    return event(id="1", choices=[{"index": index, "text": text, "finish_reason": finish}])


USAGE = event(id="1", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
STREAM = chunk("a ") + chunk('data: [DONE] "choices":[] \n\n {"error"') + chunk("é", "stop") + USAGE + DONE


def passed(tail, pieces):
    return b"".join([tail.feed(piece) for piece in pieces]) + tail.rest()


def cut(data, places):
    edges = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_the_same(places, strip):
    tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=strip)
    out = passed(tail, cut(STREAM, places))
    assert out == (STREAM.replace(USAGE, b"") if strip else STREAM)
    assert tail.usage == Usage(3, 2)
    assert (tail.done, tail.aborted, tail.error) == (True, False, None)


@pytest.mark.parametrize("strip", [True, False])
def test_event_by_event_and_all_at_once_come_to_the_same(strip):
    events = [chunk("a"), chunk('"choices":[] data: {"error"'), chunk("b"), chunk("é", "stop"), USAGE, DONE]
    one, all_ = (StreamMonitor(Surface.COMPLETIONS, strip_usage=strip) for _ in range(2))
    assert passed(one, events) == passed(all_, [b"".join(events)])
    assert (one.events, one.usage, one.over) == (len(events) - strip, Usage(3, 2), True)
    assert (all_.usage, all_.over) == (one.usage, one.over)


def test_an_event_that_comes_alone_is_looked_at_where_it_ends_a_choice():
    tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=True)
    assert tail.feed(chunk("a")) == chunk("a")
    assert tail.feed(chunk("b", "stop")) == b""
    tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=True)
    tail.feed(chunk("", "abort"))
    assert (tail.aborted, tail.over) == (True, True)


@pytest.mark.parametrize(
    "text", ["data: [DONE]", "\ndata: [DONE]\n\n", 'data: {"error"', '"finish_reason":"abort"']
)
def test_what_a_model_says_is_never_taken_for_structure(text):
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert passed(tail, [chunk(text)]) == chunk(text)
    assert (tail.done, tail.aborted, tail.error, tail.usage) == (False, False, None, None)


@pytest.mark.parametrize("text", ["event: message_stop", "\nevent: response.completed", "event: error"])
def test_nor_is_it_on_the_surfaces_with_named_events(text):
    for surface in (Surface.MESSAGES, Surface.RESPONSES):
        tail = StreamMonitor(surface, strip_usage=True)
        tail.feed(b"event: content_block_delta\n" + event(delta={"text": text}))
        assert (tail.done, tail.error) == (False, None)


def test_an_event_leaves_as_soon_as_it_is_whole():
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert tail.feed(chunk("a")[:-1]) == b""
    assert tail.feed(b"\n" + chunk("b")[:5]) == chunk("a")
    assert tail.feed(chunk("b")[5:]) == chunk("b")


def test_an_event_without_end_is_not_hoarded(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PARTIAL", 1000)
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    passed_on = sum(len(tail.feed(b"x" * 400)) for _ in range(10))
    assert passed_on + 1000 >= 4000


@pytest.mark.parametrize("gap", [b"", b" "])
def test_an_error_in_the_stream_is_seen(gap):
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    tail.feed(b'data: {"error":' + gap + b'{"message":"busy","code":503}}\n\n' + DONE)
    assert b"busy" in tail.error


def test_an_answer_that_was_given_up_is_seen():
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    tail.feed(chunk("", "abort") + DONE)
    assert tail.aborted
    assert whole_aborted(b'{"choices":[{"finish_reason":"abort"}]}')
    assert not whole_aborted(b'{"choices":[{"text":"\\"finish_reason\\":\\"abort\\""}]}')


def test_the_choices_of_several_are_all_waited_for():
    stream = chunk("a", "stop", 0) + chunk("b", None, 1) + chunk("c", "length", 1) + USAGE + DONE
    for size in (1, 9, 1000):
        tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=True, choices=2)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert passed(tail, pieces) == stream.replace(USAGE, b"")
        assert tail.usage == Usage(3, 2)


def test_the_fingerprint_moves_from_the_usage_to_the_chunk_that_is_then_the_last():
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    signed = event(id="1", choices=[], usage=usage, system_fingerprint="vllm-1")
    stream = chunk("a") + chunk("b", "stop") + signed + DONE
    as_without_usage = (
        chunk("a") + chunk("b", "stop").replace(b"}\n\n", b',"system_fingerprint":"vllm-1"}\n\n') + DONE
    )
    for size in (1, 9, 1000):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert passed(StreamMonitor(Surface.CHAT, strip_usage=True), pieces) == as_without_usage
        assert passed(StreamMonitor(Surface.CHAT, strip_usage=False), pieces) == stream


def test_the_last_chunk_is_held_back_only_until_the_usage_is_there():
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert tail.feed(chunk("a") + chunk("b", "stop")) == chunk("a")
    assert tail.feed(USAGE) == chunk("b", "stop")
    assert tail.feed(DONE) == DONE


@pytest.mark.parametrize(("reason", "given_up"), [(None, True), ("end_turn", False), ("max_tokens", False)])
def test_a_message_without_a_reason_to_stop_was_given_up(reason, given_up):
    begun = b"event: message_start\n" + event(type="message_start", message={"stop_reason": None})
    tail = StreamMonitor(Surface.MESSAGES, strip_usage=True)
    tail.feed(begun)
    assert not tail.aborted
    tail.feed(b"event: message_delta\n" + event(type="message_delta", delta={"stop_reason": reason}))
    assert tail.aborted == given_up
    whole = {"id": "1", "type": "message", **({} if given_up else {"stop_reason": reason})}
    assert whole_aborted(json.dumps(whole, separators=(",", ":")).encode(), anthropic=True) == given_up


def test_a_worker_that_reports_no_usage_loses_nothing_of_its_stream():
    stream = chunk("a") + chunk("b", "stop") + DONE
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert passed(tail, cut(stream, [40, 90])) == stream
    assert tail.usage is None


def test_a_chunk_with_empty_choices_that_is_no_usage_stays():
    prompt_filter = event(choices=[], prompt_filter_results=[])
    tail = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert passed(tail, [prompt_filter]) == prompt_filter


def test_the_usage_of_messages_is_put_together_from_both_ends():
    tail = StreamMonitor(Surface.MESSAGES, strip_usage=True)
    stream = [
        b"event: message_start\n" + event(message={"usage": {"input_tokens": 7, "output_tokens": 0}}),
        b"event: message_delta\n" + event(delta={}, usage={"output_tokens": 4, "cache_read_input_tokens": 2}),
        b"event: message_stop\n" + event(type="message_stop"),
    ]
    assert passed(tail, stream) == b"".join(stream)
    assert tail.usage == Usage(7, 4, 2)
    assert tail.done


def test_a_response_names_itself_and_its_usage():
    usage = {"input_tokens": 5, "output_tokens": 6, "input_tokens_details": {"cached_tokens": 1}}
    tail = StreamMonitor(Surface.RESPONSES, strip_usage=True)
    tail.feed(b"event: response.created\n" + event(response={"id": "resp_abc", "usage": None}))
    tail.feed(b"event: response.completed\n" + event(response={"id": "resp_abc", "usage": usage}))
    assert (tail.response_id, tail.usage, tail.done) == ("resp_abc", Usage(5, 6, 1), True)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.integers(0, 10**6), st.integers(0, 10**6), st.none() | st.integers(0, 10**6))
def test_the_usage_of_a_whole_answer_is_found_from_its_end(text, prompt, output, cached):
    usage = {"prompt_tokens": prompt, "completion_tokens": output}
    if cached is not None:
        cached = min(cached, prompt)
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    body = {"choices": [{"text": text + '"usage":{'}], "usage": usage, "prompt_logprobs": None}
    assert whole_usage(json.dumps(body, separators=(",", ":")).encode()) == Usage(prompt, output, cached)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"usage":{', b'{"usage":null}', b'{"usage":{"prompt_tokens":x}}'])
def test_an_answer_without_usage_has_none(body):
    assert whole_usage(body) is None


def test_usage_in_every_dialect():
    assert read_usage({"prompt_tokens": 1, "completion_tokens": None}) == Usage(1, 0)
    assert read_usage({"input_tokens": 1, "output_tokens": 2}) == Usage(1, 2)
    assert read_usage({"prompt_tokens": 1, "prompt_tokens_details": None}) == Usage(1, 0)


def test_the_id_of_a_response():
    assert find_id(b'{"id":"resp_1","object"') == "resp_1"
    assert find_id(b'{"id":"chatcmpl-1"}') is None
    assert find_id(b'{"id":"resp_1') is None


def test_what_messages_count_as_cached_are_prompt_tokens_too():
    usage = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_creation_input_tokens": 32,
        "cache_read_input_tokens": 64,
    }
    assert whole_usage(json.dumps({"usage": usage}, separators=(",", ":")).encode()) == Usage(106, 1, 64)


NO_COUNTS = ["3", -3, 3.0, True, [], {}, 1 << 28, 1 << 60]


@pytest.mark.parametrize("wrong", NO_COUNTS)
@pytest.mark.parametrize(
    "field",
    ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "cache_read_input_tokens"],
)
def test_usage_that_is_no_count_is_no_usage(field, wrong):
    usage = {"prompt_tokens": 1} if field in ("prompt_tokens", "completion_tokens") else {"input_tokens": 1}
    assert read_usage({**usage, field: wrong}) is None


@pytest.mark.parametrize("wrong", [None, 3, "usage", [], True])
def test_usage_of_another_shape_is_no_usage(wrong):
    assert read_usage(wrong) is None
    body = {"message": wrong, "response": wrong, "usage": wrong}
    tail = StreamMonitor(Surface.MESSAGES, strip_usage=False)
    tail.feed(b"event: message_delta\n" + event(**body, x={"usage": {"a": 1}}))
    assert tail.usage is None


@pytest.mark.parametrize("wrong", NO_COUNTS)
def test_cached_tokens_that_are_no_count_are_no_usage(wrong):
    assert read_usage({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": wrong}}) is None


def test_more_cached_tokens_than_the_prompt_has_are_none_that_were_cached():
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}}
    assert read_usage(usage) == Usage(5, 1, None)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_that_end_with_crlf_are_passed_on_with_lf(size):
    monitor = StreamMonitor(Surface.CHAT, strip_usage=True)
    usage = event(choices=[], usage={"prompt_tokens": 2, "completion_tokens": 1})
    stream = chunk("a") + chunk("b", "stop") + usage + b"data: [DONE]\n\n"
    sent = stream.replace(b"\n", b"\r\n")
    pieces = [monitor.feed(sent[start : start + size]) for start in range(0, len(sent), size)]
    assert b"".join(pieces) == chunk("a") + chunk("b", "stop") + b"data: [DONE]\n\n"
    assert (monitor.done, monitor.usage) == (True, Usage(2, 1))


def test_an_id_that_is_longer_than_ids_are_is_not_kept():
    assert find_id(b'{"id":"resp_' + b"x" * 1000 + b'"}') is None


def test_the_error_among_events_is_found_with_its_status():
    events = b'event: x\ndata: {"type":"x"}\n\nevent: error\ndata: {"type":"error","error":{"code":400}}\n\n'
    assert error_of_event(events) == (400, b'{"type":"error","error":{"code":400}}')
    assert error_of_event(b'data: {"error": "text"}\n\n') == (None, b'{"error":"text"}')
    assert error_of_event(b'data: {"error": {"code": "400"}}\n\n')[0] is None
    assert error_of_event(b'data: {"error": {"code": 7}}\n\n')[0] is None


# -- before the first token

COMMENTS = [b": ping\n\n", b":\n\n", b": data: {}\n: [DONE]\n\n", b"retry: 3000\n\n", b": a\n\n: b\n\n"]
CREATED = b'event: response.created\ndata: {"response":{"id":"resp_1"},"type":"response.created"}\n\n'
IN_PROGRESS = CREATED.replace(b"created", b"in_progress")
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
STARTED = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m"}}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
BLOCK = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_comments_are_no_token_and_those_before_the_first_are_left_out(size):
    monitor = StreamMonitor(Surface.CHAT, strip_usage=False)
    before = b"".join(COMMENTS)
    for start in range(0, len(before), size):
        assert monitor.feed(before[start : start + size]) == b""
    assert (monitor.begun, monitor.events, monitor.over) == (False, 0, False)
    assert monitor.feed(chunk("a")) == chunk("a")
    assert (monitor.begun, monitor.events) == (True, 1)
    assert monitor.feed(COMMENTS[0]) == COMMENTS[0]
    assert monitor.events == 1


@pytest.mark.parametrize(
    ("surface", "opening", "token"),
    [(Surface.RESPONSES, [CREATED, IN_PROGRESS], DELTA), (Surface.MESSAGES, [STARTED, PING, PING], BLOCK)],
)
def test_what_a_stream_opens_with_waits_for_its_first_token(surface, opening, token):
    monitor = StreamMonitor(surface, strip_usage=False)
    assert [monitor.feed(event) for event in [*opening, b": ping\n\n"]] == [b""] * (len(opening) + 1)
    assert not monitor.begun
    assert monitor.feed(token) == b"".join([*opening, token])
    assert monitor.begun
    assert monitor.feed(token) == token


def test_a_stream_of_one_chunk_has_begun_although_that_chunk_is_held_back():
    monitor = StreamMonitor(Surface.CHAT, strip_usage=True)
    assert (monitor.feed(chunk("a", "stop")), monitor.begun) == (b"", True)


def test_a_response_that_fails_at_once_is_told_from_its_opening_on():
    monitor = StreamMonitor(Surface.RESPONSES, strip_usage=False)
    failed = CREATED.replace(b"created", b"failed")
    assert monitor.feed(CREATED) == b""
    assert monitor.feed(failed) == CREATED + failed


DEEP = b"[" * 500 + b"]" * 500


def test_events_that_are_nested_more_deeply_than_can_be_written_pass_as_they_are():
    odd = b'data: {"id": "1", "choices" :[], "x": ' + DEEP + b"}\n\n"
    tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=True)
    assert passed(tail, [chunk("a"), odd, DONE]) == chunk("a") + odd + DONE


def test_an_error_that_is_nested_more_deeply_than_can_be_written_is_still_an_error():
    status, body = error_of_event(b'data: {"error": {"code": 503, "x": ' + DEEP + b"}}\n\n")
    assert (status, json.loads(body)["error"]["message"]) == (503, "The worker's error is nested too deeply.")


@pytest.mark.parametrize("fingerprint", [{"a": 1}, [DEEP.decode()], 5])
def test_a_fingerprint_that_is_no_text_is_left_out(fingerprint):
    usage = event(
        id="1", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2}, system_fingerprint=fingerprint
    )
    tail = StreamMonitor(Surface.COMPLETIONS, strip_usage=True)
    assert passed(tail, [chunk("a", "stop") + usage + DONE]) == chunk("a", "stop") + DONE
