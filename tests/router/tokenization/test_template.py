import json

import pytest
from small_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from router.tokenization.prompt import Chat, Inexact, Why
from router.tokenization.template import Template

DUMP = "{{ messages | tojson }}{% if tools %}{{ tools | tojson }}{% endif %}"
STRINGS = "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}"
PARTS = (
    "{% for m in messages %}[{{ m.role }}{% if m.content is string %}|{{ m.content }}{% else %}"
    "{% for part in m.content %}|{{ part.text }}{% endfor %}{% endif %}]{% endfor %}"
)
ONE_TWO = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]


def template(source):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    tokenizer.chat_template = source
    return Template(tokenizer)


def dumped(*messages, tools=None):
    text = template(DUMP).render(Chat(list(messages), tools, {}))
    found, at = json.JSONDecoder().raw_decode(text)
    return found if tools is None else json.loads(text[at:])


@pytest.mark.parametrize(("source", "expected"), [(STRINGS, "[user|one\ntwo]"), (PARTS, "[user|one|two]")])
def test_contents_are_joined_unless_the_template_walks_through_them(source, expected):
    assert template(source).render(Chat([{"role": "user", "content": ONE_TWO}], None, {})) == expected


def test_contents_that_are_not_there_are_empty():
    assert template(STRINGS).render(Chat([{"role": "assistant", "content": None}], None, {})) == "[assistant|]"
    assert template(PARTS).render(Chat([{"role": "assistant"}], None, {})) == "[assistant]"


def test_results_of_tools_are_strings_in_any_template():
    chat = Chat([{"role": "tool", "tool_call_id": "c", "content": ONE_TWO}], None, {})
    assert template(PARTS).render(chat) == "[tool|one\ntwo]"


def test_a_message_is_what_the_api_knows_of_it_in_its_order():
    call = {"type": "function", "function": {"arguments": '{"x": 1}', "name": "f"}, "index": 3, "id": "c"}
    said = {"weird": 1, "role": "assistant", "tool_calls": [call], "reasoning": "hm", "name": "bob"}
    (message,) = dumped(said)
    assert {name: message[name] for name in ("content", "reasoning", "reasoning_content", "name")} == {
        "content": "",
        "reasoning": "hm",
        "reasoning_content": "hm",
        "name": "bob",
    }
    assert "weird" not in message
    assert json.dumps(message["tool_calls"]) == json.dumps(
        [{"id": "c", "function": {"arguments": {"x": 1}, "name": "f"}, "type": "function", "index": 3}]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", {}), (None, {}), ("broken", {}), ("[1]", {}), ('{"a": 2}', {"a": 2})]
)
def test_arguments_of_calls_are_objects(arguments, expected):
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    (message,) = dumped({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def test_a_tool_is_what_the_api_knows_of_it_in_its_order():
    given = [
        {"function": {"parameters": {"z": 1, "a": 2}, "name": "f", "more": 1}, "type": "function", "more": 2},
        {"type": "function", "function": {"name": "g", "strict": True}, "defer_loading": True},
    ]
    made = dumped({"role": "user", "content": "x"}, tools=given)
    assert json.dumps(made[0]) == json.dumps(
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {"z": 1, "a": 2}}}
    )
    function = {"name": "g", "description": None, "parameters": None, "strict": True, "defer_loading": True}
    assert made[1] == {"type": "function", "function": function, "defer_loading": True}


def test_developers_speak_as_the_system_where_the_template_does_not_know_them():
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "developer", "content": ONE_TWO},
    ]
    assert template(STRINGS).render(Chat(turns, None, {})) == "[system|s\n\none\ntwo][user|u]"
    assert template(PARTS).render(Chat(turns[2:], None, {})) == "[system|one|two]"
    knows = STRINGS + "{# 'developer' #}"
    assert template(knows).render(Chat(turns[1:], None, {})) == "[user|u][developer|one\ntwo]"


def test_the_line_that_differs_each_time_is_taken_out_of_system_prompts():
    text = "x-anthropic-billing-header: 7"
    chat = Chat([{"role": role, "content": f"{text}\nrest"} for role in ("system", "user")], None, {})
    assert template(STRINGS).render(chat) == f"[system|rest][user|{text}\nrest]"
    assert template(STRINGS).render(Chat([{"role": "system", "content": text}], None, {})) == "[system|]"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"content": "x"}, Why.SHAPE),
        ({"role": "user", "content": 5}, Why.SHAPE),
        ({"role": "user", "content": [5]}, Why.SHAPE),
        ({"role": "user", "content": [{"text": "no type"}]}, Why.SHAPE),
        ({"role": "user", "content": [{"type": "video_url"}]}, Why.MEDIA),
        ({"role": "user", "content": [{"type": "text", "text": "x", "uuid": "u"}]}, Why.SHAPE),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, Why.SHAPE),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, Why.SHAPE),
        ({"role": "assistant", "tool_calls": {"a": 1}}, Why.SHAPE),
    ],
)
def test_what_has_no_known_form_is_not_exact(message, why):
    with pytest.raises(Inexact) as inexact:
        template(STRINGS).render(Chat([message], None, {}))
    assert inexact.value.why is why


def test_a_template_that_refuses_says_why():
    refusing = template("{{ raise_exception('only one at a time') }}")
    with pytest.raises(Inexact, match="only one at a time") as inexact:
        refusing.render(Chat([{"role": "user", "content": "x"}], None, {}))
    assert inexact.value.why is Why.FAILED
