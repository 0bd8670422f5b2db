import json

import pytest

from router.edge.api.parsed_request import Surface, parse

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
