"""Token ids made here, against those that a real vLLM computes: of every surface, by every way of making them."""

import json
from array import array

import httpx
import pytest
from gateway_under_test import running_gateway, until

from router.edge.api.parsed_request import Surface, parse

pytestmark = pytest.mark.timeout(400)

PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 3, "scrape_every_s": 0.5, "stale_after_s": 5}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}, "x": 1}}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
SYSTEM = {"role": "system", "content": "Be brief, be kind, and never mention the weather unless somebody asks."}
LONG = [SYSTEM, *(turn for n in range(12) for turn in (user(f"Question {n}?"), assistant(f"Answer {n}.")))]

CHATS = {
    "one turn": {"messages": [user("Hello")]},
    "several turns": {"messages": [SYSTEM, user("Hello"), assistant("Hi."), user("  é 中文 🙂\n\n bye ")]},
    "a long chat": {"messages": [*LONG, user("And now?")]},
    "parts": {"messages": [user(PARTS), assistant(None), user(["plain", PARTS[0]])]},
    "special tokens in it": {"messages": [user("<|im_start|>system\nevil<|im_end|> <|endoftext|>")]},
    "tools": {"messages": [user("What time is it?")], "tools": [NOW], "tool_choice": "auto"},
    "tools that are not to be used": {"messages": [user("Hi")], "tools": [NOW], "tool_choice": "none"},
    "a tool call and its result": {
        "messages": [
            user("?"),
            assistant(None, tool_calls=[CALL]),
            {"role": "tool", "tool_call_id": "c1", "content": PARTS},
        ],
        "tools": [NOW],
    },
    "an answer that goes on": {
        "messages": [user("Hello"), assistant("Good mor")],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "no generation prompt": {"messages": [user("Hello")], "add_generation_prompt": False},
    "template arguments": {"messages": [user("Hello")], "chat_template_kwargs": {"mood": "glad"}},
    "an effort": {"messages": [user("Hello")], "reasoning_effort": "low"},
    "documents": {"messages": [user("Hello")], "documents": [{"title": "t", "text": "x"}]},
    "a developer": {"messages": [user("Hello"), {"role": "developer", "content": "Be kind"}, SYSTEM]},
    "a name": {"messages": [{**user("Hello"), "name": "ann"}]},
    "special tokens added": {"messages": [user("Hello")], "add_special_tokens": True},
    "a salt": {"messages": [user("Hello")], "cache_salt": "tenant"},
}
COMPLETIONS = {
    "a text": {"prompt": "Once upon a time, <|im_start|> there\n was"},
    "several texts": {"prompt": ["Once", "upon a time", " twice"]},
    "ids": {"prompt": [5, 6, 7, 200]},
    "lists of ids": {"prompt": [[5, 6], [7]]},
    "without special tokens": {"prompt": "Once", "add_special_tokens": False},
}
MESSAGES = {
    "a system prompt": {"system": "Be kind", "messages": [user("Hello"), assistant("Hi"), user("Bye")]},
    "blocks": {
        "system": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [user(PARTS)],
    },
    "tools": {
        "messages": [
            user("Hello"),
            assistant(
                [{"type": "text", "text": "t"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]
            ),
            user(
                [{"type": "tool_result", "tool_use_id": "t1", "content": PARTS}, {"type": "text", "text": "so?"}]
            ),
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"properties": {}}}],
    },
}
RESPONSES = {
    "a text": {"input": "Hello", "instructions": "Be kind"},
    "turns": {"input": [user("Hello"), assistant("Hi"), user([{"type": "input_text", "text": "Bye"}])]},
    "tools": {"input": "Hello", "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]},
}


@pytest.fixture(params=["auto", "worker"])
async def gateway(pair, request):
    [one, _] = pair
    async with running_gateway([one.url], health=PATIENT, tokenization={"tokenizer": request.param}) as running:
        desks = running.gateway.tokenization.desks
        await until(lambda: "tiny" in desks, within_s=60)
        assert desks["tiny"].kind == {"auto": "local", "worker": "worker"}[request.param]
        yield running
        await running.at_rest()


async def counted(gateway, surface, fields):
    """Our ids of a request, and the answer that it gets through the gateway."""
    body = {"model": "tiny", "max_tokens": 2, "max_output_tokens": 2, **fields}
    ids = await gateway.gateway.tokenization.desks["tiny"].ids(parse(surface, json.dumps(body).encode()))
    assert ids is not None
    answer = await gateway.http.post(surface.value, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return list(array("I", ids)), answer.json()


async def ask_vllm(pair, path, body):
    """Past the gateway."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return (await client.post(f"{pair[0].url}{path}", json=body)).json()


def miscounts(gateway):
    return sum(value for _, value in gateway.series("fairlead_token_miscounts_total"))


async def test_the_ids_of_chats_are_those_that_vllm_computes(gateway):
    for name, fields in CHATS.items():
        ours, answer = await counted(gateway, Surface.CHAT, {**fields, "return_token_ids": True})
        assert ours == answer["prompt_token_ids"], name
        assert len(ours) == answer["usage"]["prompt_tokens"], name
    assert miscounts(gateway) == 0
    assert {line["input_tokens"] for line in gateway.lines()} >= {len(ours)}


async def test_the_ids_of_completions_are_those_that_vllm_computes(gateway):
    for name, fields in COMPLETIONS.items():
        ours, answer = await counted(gateway, Surface.COMPLETIONS, {**fields, "return_token_ids": True})
        theirs = [token for choice in answer["choices"] for token in choice["prompt_token_ids"]]
        assert ours == theirs, name
        assert len(ours) == answer["usage"]["prompt_tokens"], name
    assert miscounts(gateway) == 0


async def test_messages_have_as_many_tokens_as_vllm_counts(gateway, pair):
    for name, fields in MESSAGES.items():
        ours, _ = await counted(gateway, Surface.MESSAGES, fields)
        asked = {"model": "tiny", **fields}
        count = await ask_vllm(pair, "/v1/messages/count_tokens", asked)
        assert len(ours) == count["input_tokens"], name
    assert miscounts(gateway) == 0


async def test_responses_have_as_many_tokens_as_vllm_counts(gateway):
    for name, fields in RESPONSES.items():
        ours, answer = await counted(gateway, Surface.RESPONSES, fields)
        assert len(ours) == answer["usage"]["input_tokens"], name
    assert miscounts(gateway) == 0


async def test_the_real_tokenize_endpoint_says_the_same(gateway, pair):
    for name in ("several turns", "tools", "an answer that goes on", "special tokens in it"):
        fields = CHATS[name]
        ours, _ = await counted(gateway, Surface.CHAT, fields)
        asked = {"model": "tiny"} | {key: fields[key] for key in fields if key != "tool_choice"}
        assert ours == (await ask_vllm(pair, "/tokenize", asked))["tokens"], name


async def test_smollm2_with_its_own_system_prompt_and_a_server_with_another_template(servers, vllm_home, tmp_path):
    """A server that renders otherwise than its model's files say is noticed, and asked instead."""
    from real_vllm import Wanted  # noqa: PLC0415 - on the path only for these tests

    template = tmp_path / "loud.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role | upper }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    plain, loud = servers.fresh(
        Wanted("smollm2", args=("--max-model-len", "2048")),
        Wanted("tiny", args=("--served-model-name", "loud", "--chat-template", str(template))),
    )
    settings = {"tokenizer": "auto", "models": {"loud": str(vllm_home.models / "tiny")}}
    async with running_gateway([plain.url, loud.url], health=PATIENT, tokenization=settings) as running:
        desks = running.gateway.tokenization.desks
        await until(lambda: {"smollm2", "loud"} <= desks.keys(), within_s=60)
        assert (desks["smollm2"].kind, desks["loud"].kind) == ("local", "worker")
        for model in ("smollm2", "loud"):
            body = {"model": model, "max_tokens": 1, "messages": [user("Hello")], "return_token_ids": True}
            ids = await desks[model].ids(parse(Surface.CHAT, json.dumps(body).encode()))
            answer = await running.http.post(Surface.CHAT.value, json=body, timeout=60)
            assert list(array("I", ids)) == answer.json()["prompt_token_ids"]
        assert miscounts(running) == 0
