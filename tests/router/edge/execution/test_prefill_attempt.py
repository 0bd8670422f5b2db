import json

import pytest

from router.edge.api.parsed_request import Surface, parse
from router.edge.execution.prefill_attempt import _choice, _parsed
from router.edge.execution.worker_answer import AttemptFailed

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT = {"model": "m", "prompt": "x"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def can_be_divided(surface, body):
    return parse(surface, json.dumps(body).encode()).divisible


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        (Surface.CHAT, CHAT),
        (Surface.CHAT, {**CHAT, "n": 1, "logprobs": True, "top_logprobs": 3, "stream": True}),
        (Surface.CHAT, {**CHAT, "tools": TOOLS}),
        (Surface.CHAT, {**CHAT, "tools": TOOLS, "tool_choice": "auto"}),
        (Surface.CHAT, {**CHAT, "tools": TOOLS, "tool_choice": "none"}),
        (Surface.CHAT, {**CHAT, "response_format": {"type": "json_object"}}),
        (Surface.CHAT, {**CHAT, "kv_transfer_params": None, "prompt_logprobs": None}),
        (Surface.COMPLETIONS, TEXT),
        (Surface.COMPLETIONS, {**TEXT, "prompt": [1, 2, 3], "echo": False}),
        (Surface.MESSAGES, {**CHAT, "max_tokens": 5, "tools": [{"name": "f"}], "tool_choice": {"type": "auto"}}),
    ],
)
def test_two_workers_can_share_one_answer_to_one_prompt(surface, body):
    assert can_be_divided(surface, body)


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        (Surface.CHAT, {**CHAT, "n": 2}),
        (Surface.CHAT, {**CHAT, "use_beam_search": True}),
        (Surface.CHAT, {**CHAT, "prompt_logprobs": 0}),
        (Surface.CHAT, {**CHAT, "tools": TOOLS, "tool_choice": "required"}),
        (Surface.CHAT, {**CHAT, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (Surface.MESSAGES, {**CHAT, "tools": [{"name": "f"}], "tool_choice": {"type": "any"}}),
        (Surface.COMPLETIONS, {**TEXT, "prompt": ["x", "y"]}),
        (Surface.COMPLETIONS, {**TEXT, "echo": True}),
        (Surface.COMPLETIONS, {"model": "m", "prompt_embeds": "AAAA"}),
        (Surface.RESPONSES, {"model": "m", "input": "x"}),
        (Surface.EMBEDDINGS, {"model": "m", "input": "x"}),
    ],
)
def test_what_needs_the_prompt_twice_or_both_workers_states_stays_whole(surface, body):
    assert not can_be_divided(surface, body)


ANSWER = {"object": "chat.completion", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}


def test_an_answer_of_one_choice_may_be_the_answer():
    assert _choice(_parsed(json.dumps(ANSWER).encode()))["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "more",
    [
        *({"choices": value} for value in (None, [], {}, "x", ["x"], [None], [[]], [{}, {}])),
        {"choices": [{"message": "x", "finish_reason": "stop"}]},
        {"object": {}},
        {"object": None},
    ],
)
def test_an_answer_of_another_form_is_not_handed_on(more):
    assert _choice(_parsed(json.dumps({**ANSWER, **more}).encode())) is None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"kv_transfer_params":' + b"[" * 500 + b"]" * 500 + b"}"], ids=len
)
def test_what_is_no_object_that_can_be_written_again_fails_the_attempt(body):
    with pytest.raises(AttemptFailed):
        _parsed(body)
