import json

from router.edge.api.stream_chunks import as_events

MESSAGE = {"role": "assistant", "content": "", "refusal": None, "reasoning": "hm"}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop", "stop_reason": " "}
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
CHAT = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "choices": [CHOICE],
    "usage": USAGE,
    "system_fingerprint": "vllm",
    "kv_transfer_params": None,
}
TEXT = {**CHAT, "object": "text_completion", "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}
HEAD = {"id": "c-1", "created": 5, "model": "m"}


def chunks(answer, *, usage=False, continuous=False):
    lines = as_events(answer, usage=usage, continuous=continuous).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_message_begins_with_its_role_and_ends_with_its_reason():
    kind = {**HEAD, "object": "chat.completion.chunk"}
    opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    rest = {"index": 0, "delta": {"content": "", "reasoning": "hm"}, "logprobs": None, "finish_reason": "stop"}
    assert chunks(CHAT) == [
        {**kind, "choices": [opening]},
        {**kind, "choices": [{**rest, "stop_reason": " "}], "system_fingerprint": "vllm"},
    ]


def test_a_text_is_one_chunk():
    choice = {"index": 0, "text": "x", "finish_reason": "stop"}
    kind = {**HEAD, "object": "text_completion"}
    assert chunks(TEXT) == [{**kind, "choices": [choice], "system_fingerprint": "vllm"}]


def test_usage_comes_last_where_it_was_asked_for():
    given = chunks(CHAT, usage=True)
    assert [chunk.get("usage") for chunk in given] == [None, None, USAGE]
    assert given[-1]["choices"] == []
    assert [chunk.get("system_fingerprint") for chunk in given] == [None, None, "vllm"]


def test_usage_is_on_every_chunk_where_that_was_asked_for():
    given = chunks(CHAT, usage=True, continuous=True)
    assert [chunk["usage"] for chunk in given] == [USAGE] * 3


def test_usage_that_was_not_asked_for_does_not_come():
    assert len(chunks(CHAT)) == len(chunks(CHAT, continuous=True)) == 2
