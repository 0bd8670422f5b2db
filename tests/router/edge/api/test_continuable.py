"""Which streams may go on at another worker: the allow-list."""

from pathlib import Path

import pytest

from router.edge.api.continuable import Continuation, NotContinuable, as_markdown, continuation_of
from router.edge.api.parsed_request import Surface

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def of(**more):
    return continuation_of(Surface.CHAT, {**CHAT, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2},
        {"logit_bias": {"1": 2}, "stop_token_ids": [5], "ignore_eos": True, "min_tokens": 3},
        {"stop": ["x"], "include_stop_str_in_output": True},
        {"n": 1, "logprobs": False, "echo": False, "tools": None, "presence_penalty": 0},
        {"response_format": {"type": "text"}, "tool_choice": "none", "stream_options": {"include_usage": True}},
        {"seed": 3, "temperature": 0},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ],
)
def test_what_the_rest_of_an_answer_does_not_depend_on_is_exact(more):
    found = of(**more)
    assert isinstance(found, Continuation)
    assert found.inexact is None
    assert all(found.passed[name] == more[name] for name in found.passed)


@pytest.mark.parametrize("name", ["seed", "presence_penalty", "frequency_penalty"])
def test_what_is_counted_or_drawn_over_the_output_alone_is_not_exact(name):
    found = of(**{name: 1, "temperature": 1})
    assert isinstance(found, Continuation)
    assert found.inexact == name
    assert found.passed[name] == 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"include_reasoning": False}, "include_reasoning"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"something_new": 1}, "unknown_member"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "media"),
        ({"stop": 5}, "stop"),
        ({"stop": "a", "min_tokens": 1}, "min_tokens_with_stop"),
        ({"stream_options": {"include_usage": True, "continuous_usage_stats": True}}, "continuous_usage"),
        ({"stream": False}, "not_streamed"),
    ],
)
def test_what_a_worker_keeps_beside_the_tokens_is_not_continued(more, why):
    assert of(**more) == NotContinuable(why)


@pytest.mark.parametrize("prompt", ["text", [1, 2], ["text"], [[1, 2]]])
def test_one_prompt_of_any_kind_is_gone_on_from(prompt):
    found = continuation_of(Surface.COMPLETIONS, {"prompt": prompt, "stream": True})
    assert isinstance(found, Continuation)
    assert found.max_tokens == 16, "vLLM's own"


def test_several_prompts_and_other_surfaces_are_not():
    body = {"prompt": ["a", "b"], "stream": True}
    assert continuation_of(Surface.COMPLETIONS, body) == NotContinuable("several_prompts")
    for surface in (Surface.RESPONSES, Surface.MESSAGES, Surface.EMBEDDINGS):
        assert continuation_of(surface, {"stream": True}) == NotContinuable("surface")


def test_the_most_tokens_are_those_that_vllm_takes():
    assert of(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert of(max_tokens=5).max_tokens == 5
    assert of().max_tokens is None


def test_the_documentation_has_the_table():
    assert as_markdown() in (Path(__file__).parents[4] / "deploy/docs/pages/api.md").read_text()
