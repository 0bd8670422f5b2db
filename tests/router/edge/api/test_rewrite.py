import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.edge.api.parsed_request import Surface, parse
from router.edge.api.rewrite import for_prefill, for_release, for_worker

values = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.just({"a": ["}", "{"]})
)
names = st.text(max_size=6).filter(lambda name: name not in ("stream", "stream_options", "model"))
blanks = st.text(" \n\t\r", max_size=3)


def rewritten(body, surface=Surface.CHAT, model=None):
    return for_worker(parse(surface, body), model)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, values, max_size=5), blanks, blanks, st.booleans())
def test_a_stream_asks_for_usage_and_the_rest_stays_byte_for_byte(fields, before, after, last):
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    members.insert(len(members) if last else 0, '"stream":true')
    text = "{" + f",{before}".join(members) + after
    body = rewritten((text + "}" + after).encode())
    assert json.loads(body) == {**fields, "stream": True, "stream_options": {"include_usage": True}}
    assert body.startswith(text.rstrip().encode())


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        (Surface.CHAT, b'{ "messages":[] }'),
        (Surface.CHAT, b'{"stream":false}'),
        (Surface.CHAT, b'{"stream":null}'),
        (Surface.CHAT, b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (Surface.CHAT, b'{"stream":true,"stream_options":5}'),
        (Surface.RESPONSES, b'{"stream":true}'),
        (Surface.MESSAGES, b'{"stream":true}'),
        (Surface.EMBEDDINGS, b'{"stream":true}'),
    ],
)
def test_whatever_needs_no_change_is_the_very_same_bytes(surface, body):
    assert rewritten(body, surface) == body


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"x": 1}])
def test_options_that_are_there_already_are_kept(options):
    body = rewritten(json.dumps({"stream": True, "stream_options": options, "n": 2}).encode())
    assert json.loads(body) == {
        "stream": True,
        "stream_options": {**(options or {}), "include_usage": True},
        "n": 2,
    }


def test_usage_on_every_chunk_is_not_switched_on_by_asking_for_it_at_the_end():
    options = {"continuous_usage_stats": True}
    body = rewritten(json.dumps({"stream": True, "stream_options": options}).encode())
    assert json.loads(body)["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}


def test_an_alias_gives_way_to_the_model_it_stands_for():
    body = b'{"model":"gpt", "odd": [1, {"model":"gpt"}], "n": 1}'
    assert json.loads(rewritten(body, model="tiny")) == {"model": "tiny", "odd": [1, {"model": "gpt"}], "n": 1}
    assert rewritten(b'{"model":"tiny" }', model="tiny") == b'{"model":"tiny" }'
    both = json.loads(rewritten(b'{"model":"gpt","stream":true}', model="tiny"))
    assert both == {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}}


# -- pairs

KV = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_host": "h}"}


def test_a_prefill_asks_for_one_token_in_one_piece_and_for_its_kv_to_be_kept():
    body = {
        "model": "alias",
        "prompt": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 50,
        "max_completion_tokens": 50,
        "min_tokens": 4,
        "seed": 7,
    }
    asked = json.loads(for_prefill(parse(Surface.COMPLETIONS, json.dumps(body).encode()), "base"))
    params = asked.pop("kv_transfer_params")
    assert asked == {
        "model": "base",
        "prompt": "x",
        "stream": False,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "seed": 7,
    }
    assert params["do_remote_decode"] is True
    assert params["do_remote_prefill"] is False


def test_a_field_that_was_not_there_is_not_added():
    asked = json.loads(for_prefill(parse(Surface.CHAT, b'{"messages":[]}'), None))
    assert asked.keys() == {"messages", "stream", "max_tokens", "kv_transfer_params"}


@pytest.mark.parametrize(
    "body",
    [
        b'{ "messages": [] }',
        b"{}",
        b'{"messages":[],"stream":true}',
        b'{"messages":[],"stream":true,"stream_options":null}',
        b'{"messages":[],"kv_transfer_params":null}',
    ],
)
@pytest.mark.parametrize("model", [None, "base"])
def test_what_the_prefill_said_goes_with_the_body_and_changes_nothing_else(body, model):
    ask = parse(Surface.CHAT, body)
    given = for_worker(ask, model, KV)
    assert json.loads(given) == {**json.loads(for_worker(ask, model)), "kv_transfer_params": KV}
    assert given.count(b'"kv_transfer_params"') == 1


def test_a_release_is_what_every_worker_refuses():
    body = json.loads(for_release("m", KV))
    assert (body["model"], body["max_tokens"], body["kv_transfer_params"]) == ("m", 0, KV)
