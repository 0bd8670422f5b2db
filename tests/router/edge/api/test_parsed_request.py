import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import PrefixKey
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


@pytest.mark.parametrize(("field", "value"), [("model", 5), ("model", []), ("stream", "yes"), ("stream", 1)])
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
    assert ask.input_tokens(0.25) >= 1
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
    assert one.input_tokens(0.25) > 576
    assert one.prompt.startswith(chat("first").prompt)


def test_prompts_of_completions_in_all_four_forms():
    text, ids, several, nested = (
        asked(Surface.COMPLETIONS, prompt=prompt) for prompt in ("abcd", [1, 2, 3], ["a", "b"], [[1], [2], [3]])
    )
    assert (text.prompt, text.unit_width, text.input_tokens(0.5)) == (b"abcd", 1, 2)
    assert (ids.unit_width, ids.input_tokens(0.01)) == (4, 3)
    assert ids.key(0.1).tokens_per_unit == 1.0
    assert ids.key(0.1).width == 4
    assert (several.sequences, nested.sequences) == (2, 3)
    assert asked(Surface.COMPLETIONS, prompt=[1, 2, 3, 4]).prompt.startswith(ids.prompt)
    assert asked(Surface.COMPLETIONS, prompt="abcd", cache_salt="s").prompt != text.prompt


def test_token_ids_are_the_key_and_the_count_as_soon_as_they_are_known():
    ask = chat("hello", cache_salt="s")
    assert (ask.key(0.5).width, ask.key(0.5).salt) == (1, b"")
    ask.ids = bytes(12)
    assert ask.key(0.5) == PrefixKey(bytes(12), 4, 1.0, b"s")
    assert ask.input_tokens(0.5) == 3
    several = asked(Surface.COMPLETIONS, prompt=["a", "b"])
    several.ids = bytes(16)
    assert several.key(0.5) == PrefixKey(b"a\nb", 1, 0.5), "no cache holds them in a row"
    assert several.input_tokens(0.5) == 4


def test_the_salt_of_token_ids_stands_beside_them():
    plain, salted = (asked(Surface.COMPLETIONS, prompt=[1, 2], **more) for more in ({}, {"cache_salt": "s"}))
    assert plain.key(0.5).data == salted.key(0.5).data
    assert (plain.key(0.5).salt, salted.key(0.5).salt) == (b"", b"s")


def test_sequences_are_prompts_times_choices():
    assert asked(Surface.COMPLETIONS, prompt=["a", "b"], n=3).sequences == 6
    assert chat("a", n=0).sequences == chat("a", n=None).sequences == chat("a", n="x").sequences == 1


@pytest.mark.parametrize(
    ("surface", "fields", "limit"),
    [
        (Surface.CHAT, {"max_tokens": 5}, 5),
        (Surface.CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (Surface.CHAT, {}, None),
        (Surface.CHAT, {"max_tokens": "x"}, None),
        (Surface.COMPLETIONS, {}, 16),
        (Surface.RESPONSES, {"max_output_tokens": 9}, 9),
        (Surface.MESSAGES, {"max_tokens": 3}, 3),
        (Surface.EMBEDDINGS, {"max_tokens": 3}, 0),
    ],
)
def test_the_limit_of_an_answer(surface, fields, limit):
    assert asked(surface, **fields).max_output_tokens == limit


def test_who_asks_and_what_it_belongs_to():
    assert chat("a", user="ann").user == "ann"
    assert chat("a", user=5).user is None
    assert asked(Surface.MESSAGES, metadata={"user_id": "bob"}, user="no").user == "bob"
    assert chat("a", prompt_cache_key="k").session == "k"
    assert asked(Surface.RESPONSES, previous_response_id="resp_1").previous_response == "resp_1"
    assert chat("a", previous_response_id="resp_1").previous_response is None


def test_usage_is_wanted_only_where_it_was_asked_for():
    assert chat("a", stream_options={"include_usage": True}).wants_usage
    for options in (None, {}, {"include_usage": False}, 5, [], "include_usage"):
        assert not chat("a", stream_options=options).wants_usage
