import json

from router.edge.api.facts import facts_of
from router.edge.api.parsed_request import Surface, parse
from router.port import Identity

TEAM = Identity("team/ann", "team")


def asked(**fields):
    return parse(Surface.COMPLETIONS, json.dumps(fields).encode())


def heard(ask):
    return facts_of(ask, request="r", identity=TEAM, served_name="tiny", age_s=0.5, whole=False)


def test_a_prompt_is_its_text_until_its_tokens_are_known():
    ask = asked(prompt="hello", cache_salt="s")
    facts = heard(ask)
    assert (facts.prompt, facts.unit_bytes, facts.input_tokens, facts.salt) == (b"shello", 1, None, None)
    ask.ids = bytes(12)
    facts = heard(ask)
    assert (facts.prompt, facts.unit_bytes, facts.input_tokens, facts.salt) == (bytes(12), 4, 3, "s")


def test_several_prompts_are_counted_by_their_tokens_and_known_by_their_text():
    ask = asked(prompt=["a", "b"])
    ask.ids = bytes(16)
    facts = heard(ask)
    assert (facts.prompt, facts.unit_bytes, facts.input_tokens) == (b"a\nb", 1, 4)
    assert (facts.prompts, facts.sequences) == (2, 2)


def test_what_a_client_asks_for_reaches_control_as_values():
    facts = heard(asked(prompt="x", n=3, max_tokens=7, stream=True, priority=2, session_id="dialogue"))
    assert (facts.sequences, facts.max_output_tokens, facts.streams) == (3, 7, True)
    assert (facts.priority, facts.session, facts.identity, facts.model) == (2, "dialogue", TEAM, "tiny")
