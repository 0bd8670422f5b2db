import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.edge.api.parsed_request import Surface, parse
from router.edge.errors import BadRequest

texts = st.text(max_size=12)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=6
)


def asked(surface=Surface.CHAT, **fields):
    return parse(surface, json.dumps(fields).encode())


def chat(*contents, **more):
    return asked(messages=[{"role": "user", "content": content} for content in contents], **more)


def image(number):
    return [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:{number}" + "x" * 9000}},
    ]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"5", b"null", b"\xff", b'{"a":\x00}'])
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest) as refused:
        parse(Surface.CHAT, body)
    assert refused.value.param == "body"


@pytest.mark.parametrize(
    ("field", "value"), [("model", 5), ("model", []), ("stream", "maybe"), ("stream", 2), ("stream", [])]
)
def test_a_field_that_routing_needs_is_refused_where_it_has_the_wrong_type(field, value):
    with pytest.raises(BadRequest, match=f"`{field}` must be") as refused:
        asked(**{field: value})
    assert refused.value.param == field


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    *("messages", "prompt", "input", "n", "max_tokens", "priority", "user", "metadata", "stream_options", "tools"),
    *("cache_salt", "documents", "previous_response_id", "session_id", "system", "instructions"),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Surface), st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5))
def test_whatever_else_stands_in_a_body_is_read_or_left_to_the_worker(surface, fields):
    ask = parse(surface, json.dumps(fields).encode())
    assert ask.sequences >= 1
    assert ask.max_output_tokens is None or ask.max_output_tokens >= 0
    assert len(ask.prompt) % ask.unit_width == 0


@settings(max_examples=100, deadline=None)
@given(turns, turns)
def test_a_conversation_that_goes_on_keeps_the_beginning_of_its_key(before, after):
    short, long = asked(messages=before), asked(messages=before + after)
    assert long.prompt.startswith(short.prompt)


def test_what_the_template_puts_first_stands_first_in_the_key():
    plain, with_tools = chat("hello"), chat("hello", tools=[{"type": "function"}])
    assert with_tools.prompt.endswith(plain.prompt)
    assert with_tools.prompt.startswith(b'[{"type":"function"}]')
    salted = chat("hello", tools=[{"type": "function"}], cache_salt="s")
    assert salted.prompt.startswith(b'"s"')
    for name in ("chat_template_kwargs", "documents", "chat_template"):
        assert chat("hello", **{name: {"a": 1}}).prompt != plain.prompt


def test_sampling_and_names_do_not_change_the_key():
    assert chat("a", temperature=1, user="x", stream=True, n=3).prompt == chat("a", max_tokens=5).prompt


def test_media_stand_in_the_key_by_digest():
    one, same, other = (chat("first", image(number)) for number in (1, 1, 2))
    assert len(one.prompt) < 300
    assert one.prompt == same.prompt
    assert one.prompt != other.prompt
    assert len(one.media) == 1
    assert one.prompt.startswith(chat("first").prompt)


def test_prompts_of_completions_in_all_four_forms():
    text, ids, several, nested = (
        asked(Surface.COMPLETIONS, prompt=prompt) for prompt in ("abcd", [1, 2, 3], ["a", "b"], [[1], [2], [3]])
    )
    assert (text.prompt, text.unit_width, text.ids) == (b"abcd", 1, None)
    assert (ids.unit_width, ids.ids) == (4, ids.prompt)
    assert (several.sequences, nested.sequences) == (2, 3)
    assert asked(Surface.COMPLETIONS, prompt=[1, 2, 3, 4]).prompt.startswith(ids.prompt)
    assert asked(Surface.COMPLETIONS, prompt="abcd", cache_salt="s").prompt != text.prompt
