import json
from array import array

import pytest

from router.edge.api.parsed_request import Surface, parse
from router.tokenization.prompt import Chat, Ids, Inexact, Texts, Why
from router.tokenization.surfaces import prompt_of

USER = {"role": "user", "content": "Hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}


def prompt(surface, **fields):
    return prompt_of(parse(surface, json.dumps(fields).encode()), fields)


def why(surface, **fields):
    with pytest.raises(Inexact) as inexact:
        prompt(surface, **fields)
    return inexact.value.why


def test_completions_in_all_their_forms():
    assert prompt(Surface.COMPLETIONS, prompt="a") == Texts(("a",))
    assert prompt(Surface.COMPLETIONS, prompt=["a", "b"], add_special_tokens=False) == Texts(("a", "b"), False)
    assert prompt(Surface.COMPLETIONS, prompt=[1, 2]) == Ids(array("I", [1, 2]).tobytes())
    assert prompt(Surface.COMPLETIONS, prompt=[[1], [2, 3]]) == Ids(array("I", [1, 2, 3]).tobytes())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, Why.SHAPE),
        ({"prompt": []}, Why.SHAPE),
        ({"prompt": 5}, Why.SHAPE),
        ({"prompt": ["a", 1]}, Why.SHAPE),
        ({"prompt": [-1]}, Why.SHAPE),
        ({"prompt": [[1], "a"]}, Why.SHAPE),
        ({"prompt": "a", "suffix": "b"}, Why.SHAPE),
        ({"prompt": "a", "prompt_embeds": "x"}, Why.SHAPE),
        ({"prompt": "a", "truncate_prompt_tokens": 5}, Why.TRUNCATED),
        ({"prompt": "a", "add_special_tokens": "no"}, Why.SHAPE),
    ],
)
def test_completions_that_cannot_be_foreseen(fields, reason):
    assert why(Surface.COMPLETIONS, **fields) is reason


def test_a_chat_brings_all_that_its_template_reads():
    more = {
        "tools": [{"type": "function"}],
        "documents": [{"text": "d"}],
        "chat_template_kwargs": {"mood": "glad", "add_generation_prompt": True},
        "add_generation_prompt": False,
        "continue_final_message": True,
        "add_special_tokens": True,
        "reasoning_effort": "high",
    }
    chat = prompt(Surface.CHAT, messages=[USER], **more)
    arguments = {"mood": "glad", "add_generation_prompt": False, "continue_final_message": True}
    arguments |= {"documents": [{"text": "d"}], "reasoning_effort": "high", "enable_thinking": True}
    assert chat == Chat([USER], [{"type": "function"}], arguments, True)


def test_thinking_is_as_the_client_says_or_else_as_the_effort_does():
    for effort, own, thinks in (
        ("none", {}, False),
        ("low", {}, True),
        ("low", {"enable_thinking": False}, False),
    ):
        chat = prompt(Surface.CHAT, messages=[USER], reasoning_effort=effort, chat_template_kwargs=own)
        assert chat.arguments["enable_thinking"] is thinks


def test_reasoning_has_one_name():
    chat = prompt(Surface.CHAT, messages=[{"role": "assistant", "reasoning_content": "hm"}])
    assert chat.messages == [{"role": "assistant", "reasoning": "hm"}]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, Why.SHAPE),
        ({"messages": "x"}, Why.SHAPE),
        ({"messages": ["x"]}, Why.SHAPE),
        ({"messages": [USER], "tools": 5}, Why.SHAPE),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, Why.MEDIA),
        ({"messages": [USER], "chat_template": "{{ x }}"}, Why.TEMPLATE),
        ({"messages": [USER], "chat_template_kwargs": {"tools": []}}, Why.TEMPLATE),
        ({"messages": [USER], "chat_template_kwargs": {"chat_template": "x"}}, Why.TEMPLATE),
        ({"messages": [USER], "chat_template_kwargs": 5}, Why.TEMPLATE),
        ({"messages": [USER], "add_generation_prompt": "yes"}, Why.SHAPE),
        ({"messages": [USER], "truncate_prompt_tokens": -1}, Why.TRUNCATED),
    ],
)
def test_chats_that_cannot_be_foreseen(fields, reason):
    assert why(Surface.CHAT, **fields) is reason


def test_messages_become_the_chat_that_vllm_makes_of_them():
    chat = prompt(
        Surface.MESSAGES,
        system=[{"type": "text", "text": "x-anthropic-billing-header: 7"}, {"type": "text", "text": "Be kind"}],
        messages=[
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "well"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]},
                    {"type": "text", "text": "so"},
                    {"type": "text", "text": "what?"},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        ],
        tools=[{"name": "f", "input_schema": {"properties": {}}}],
        output_config={"effort": "low"},
    )
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    parts = [{"type": "text", "text": "so"}, {"type": "text", "text": "what?"}]
    assert chat.messages == [
        {"role": "system", "content": "Be kind"},
        USER,
        {"role": "assistant", "reasoning": "hm", "tool_calls": [call], "content": "well"},
        {"role": "tool", "tool_call_id": "t", "content": "42"},
        {"role": "user", "content": parts},
        {"role": "tool", "tool_call_id": "t", "content": ""},
    ]
    schema = {"properties": {}, "type": "object"}
    assert chat.tools == [
        {"type": "function", "function": {"name": "f", "description": None, "parameters": schema}}
    ]
    assert chat.arguments["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, Why.SHAPE),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, Why.MEDIA),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, Why.SHAPE),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]}, Why.SHAPE),
        ({"messages": [USER], "thinking": {"type": "disabled"}}, Why.TEMPLATE),
        ({"messages": [USER], "tools": [{"type": "bash_20250124", "name": "bash"}]}, Why.SHAPE),
        ({"messages": [USER], "output_config": {"effort": "utmost"}}, Why.SHAPE),
        ({}, Why.SHAPE),
    ],
)
def test_messages_that_cannot_be_foreseen(fields, reason):
    assert why(Surface.MESSAGES, **fields) is reason


def test_responses_of_plain_turns():
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "c"}]}
    chat = prompt(Surface.RESPONSES, instructions="Be kind", input=[{"role": "user", "content": parts}, said])
    assert chat.messages == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ]
    assert prompt(Surface.RESPONSES, input="hi", tools=[]).tools is None
    tool = {"type": "function", "name": "f", "parameters": {}}
    chat = prompt(Surface.RESPONSES, input="hi", tools=[tool], reasoning={"effort": "low"})
    assert chat.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert chat.arguments["enable_thinking"] is True


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input": "hi", "previous_response_id": "r"}, Why.STORED),
        ({"input": [{"type": "item_reference", "id": "x"}]}, Why.STORED),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, Why.SHAPE),
        ({"input": [{"role": "assistant", "content": "x", "status": "incomplete"}]}, Why.SHAPE),
        ({"input": "hi", "truncation": "auto"}, Why.TRUNCATED),
        ({"input": "hi", "prompt": {"id": "p"}}, Why.STORED),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, Why.SHAPE),
        ({"input": "hi", "reasoning": 5}, Why.SHAPE),
        ({}, Why.SHAPE),
    ],
)
def test_responses_that_cannot_be_foreseen(fields, reason):
    assert why(Surface.RESPONSES, **fields) is reason


def test_embeddings_are_routed_as_text():
    assert why(Surface.EMBEDDINGS, input="a") is Why.EMBEDDINGS
