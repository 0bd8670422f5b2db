"""What the official `openai` client gets from the gateway, simulated workers or a real vLLM behind it.

`from openai_client_cases import *` in a test module, with a fixture `target` beside it, runs every case. The
target is served outside the test's event loop. A real model may be a tiny one with random weights, so cases bound
lengths (`ignore_eos`, `max_tokens`) and compare answers with each other, never with what would make sense.
"""

import asyncio
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
FIXED = {"ignore_eos": True}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 4}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
WEATHER_CHOICE = {"type": "function", "function": {"name": "weather"}}


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway at `base_url`, in front of workers that all serve `model`; one of them at `direct_url`."""

    base_url: str
    model: str
    direct_url: str
    is_real: bool


@contextmanager
def sync_client(target):
    with openai.OpenAI(base_url=f"{target.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def async_client(target):
    return openai.AsyncOpenAI(base_url=f"{target.base_url}/v1", api_key="none", max_retries=0, timeout=60)


def chat(client, target, **more):
    settings = {"max_tokens": 12, "temperature": 0, "extra_body": FIXED, **more}
    return client.chat.completions.create(model=target.model, messages=MESSAGES, **settings)


def complete(client, target, **more):
    settings = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "extra_body": FIXED, **more}
    return client.completions.create(model=target.model, **settings)


# -- chat


def test_a_chat_is_answered_with_its_usage(target):
    with sync_client(target) as client:
        answer = chat(client, target)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == target.model
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_streamed_chat_says_the_same_as_a_whole_one(target):
    with sync_client(target) as client:
        whole = chat(client, target)
        chunks = list(chat(client, target, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert all(c.usage is None for c in chunks)


async def test_the_asynchronous_client_gets_the_same(target):
    async with async_client(target) as client:
        whole, stream = await asyncio.gather(chat(client, target), chat(client, target, stream=True))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_usage_ends_a_stream_only_where_it_is_asked_for(target):
    async with async_client(target) as client:
        stream = await chat(client, target, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        text = await complete(client, target, stream=True, stream_options={"include_usage": True})
        texts = [chunk async for chunk in text]
        bare = [chunk async for chunk in await complete(client, target, stream=True)]
    for given in (chunks, texts):
        assert given[-1].choices == []
        assert given[-1].usage.completion_tokens == 12
        assert all(chunk.choices for chunk in given[:-1])
    assert all(chunk.choices and chunk.usage is None for chunk in bare)


async def test_n_gives_that_many_choices_in_both_modes(target):
    async with async_client(target) as client:
        whole = await chat(client, target, n=2, temperature=1.0, seed=7)
        texts = {0: "", 1: ""}
        async for chunk in await chat(client, target, n=2, temperature=1.0, seed=7, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert sorted(choice.index for choice in whole.choices) == [0, 1]
    assert whole.usage.completion_tokens == 24
    assert [texts[choice.index] for choice in whole.choices] == [c.message.content for c in whole.choices]


async def test_log_probabilities_come_with_every_token(target):
    async with async_client(target) as client:
        whole = await chat(client, target, logprobs=True, top_logprobs=2, max_tokens=5)
        chunks = [c async for c in await chat(client, target, logprobs=True, max_tokens=5, stream=True)]
        text = await complete(client, target, logprobs=2, max_tokens=5)
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == 5
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert len(text.choices[0].logprobs.tokens) == 5


async def test_limits_and_stop_sequences_end_an_answer(target):
    async with async_client(target) as client:
        for name in ("max_tokens", "max_completion_tokens"):
            limit = {"max_tokens": openai.omit, name: 3}
            answer = await chat(client, target, **limit)
            assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
        text = (await complete(client, target, max_tokens=40)).choices[0].text
        words = [word for word in re.findall(r"[A-Za-z]+", text) if text.index(word) > 0]
        if not words:
            pytest.skip("this model says nothing that could be a stop sequence")
        stopped = await complete(client, target, max_tokens=40, stop=words[0])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(words[0])]


async def test_a_chosen_tool_is_called(target):
    asked = {"tools": [WEATHER], "tool_choice": WEATHER_CHOICE, "max_tokens": 80, "extra_body": {}}
    async with async_client(target) as client:
        whole = await chat(client, target, **asked)
        name, arguments = "", ""
        async for chunk in await chat(client, target, **asked, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    [call] = whole.choices[0].message.tool_calls
    assert call.function.name == name == "weather"
    assert call.function.arguments == arguments
    if not target.is_real:
        assert "city" in json.loads(arguments)


async def test_a_bare_completion_takes_texts_and_token_ids(target):
    async with async_client(target) as client:
        several = await complete(client, target, prompt=["One", "Two", "Three"], max_tokens=2)
        ids = await complete(client, target, prompt=[5, 6, 7, 8], max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert ids.usage.prompt_tokens == 4


# -- the other surfaces


async def test_embeddings_in_both_encodings(target):
    async with async_client(target) as client:
        if target.is_real:  # a worker that generates has no such path, and says so itself
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model=target.model, input="a")
            return
        packed = await client.embeddings.create(model=target.model, input=["a", "b"])
        plain = await client.embeddings.create(model=target.model, input=["a", "b"], encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding


async def test_a_response_comes_whole_and_streamed(target):
    asked = {"model": target.model, "input": "Hello there", "max_output_tokens": 16, "temperature": 0}
    async with async_client(target) as client:
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
    assert whole.status in ("completed", "incomplete")
    assert whole.id.startswith("resp_")
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


async def test_a_stored_response_is_found_again_wherever_it_is_held(target):
    async with async_client(target) as client:
        for number in range(4):  # enough for every worker to hold some
            asked = {"model": target.model, "input": f"Number {number}", "max_output_tokens": 8, "store": True}
            first = await client.responses.create(**asked)
            if target.is_real:
                break  # without its response store switched on, vLLM keeps none
            again = await client.responses.retrieve(first.id)
            assert again.output_text == first.output_text
            more = await client.responses.create(
                model=target.model, input="And?", previous_response_id=first.id, max_output_tokens=8
            )
            assert more.status in ("completed", "incomplete")
            streamed = [event async for event in await client.responses.create(**asked, stream=True)]
            found = await client.responses.retrieve(streamed[0].response.id)
            assert found.id == streamed[-1].response.id
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_nobody")


async def test_a_response_in_the_background_can_be_cancelled(target):
    if target.is_real:
        pytest.skip("without its response store switched on, vLLM keeps none")
    async with async_client(target) as client:
        asked = {"input": "Count to a million", "max_output_tokens": 1500, "background": True}
        begun = await client.responses.create(model=target.model, **asked, extra_body=FIXED)
        assert (await client.responses.cancel(begun.id)).status in ("cancelled", "completed", "incomplete")
        assert (await client.responses.retrieve(begun.id)).id == begun.id


async def test_models_are_listed_and_one_can_be_asked_for(target):
    async with async_client(target) as client:
        assert target.model in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(target.model)).id == target.model
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")


# -- errors


async def test_an_unknown_model_is_not_found_in_the_words_of_vllm(target):
    async with async_client(target) as client:
        with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist") as caught:
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=MESSAGES, stream=True)
    error = caught.value.body
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)


async def test_what_the_worker_refuses_is_a_bad_request(target):
    async with async_client(target) as client:
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await chat(client, target, max_tokens=1_000_000)
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await complete(client, target, prompt=[5] * 140_000)
        with pytest.raises(openai.BadRequestError):
            await chat(client, target, max_tokens="many", stream=True)


# -- the same as without the gateway

_VARYING = re.compile(rb'"(id|item_id|request_id|response_id|system_fingerprint)": ?"[^"]*"')
_TIMES = re.compile(rb'"(created|created_at|completed_at|cached_tokens)": ?[\d.]+')

CHAT = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, **FIXED}
TEXT = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, **FIXED}
SAME = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat without a model": ("/v1/chat/completions", {**CHAT, "model": None}),
    "chat with two choices": ("/v1/chat/completions", {**CHAT, "n": 2}),
    "chat with log probabilities": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}),
    "chat with a stop sequence": ("/v1/chat/completions", {**CHAT, "stop": ["e"]}),
    "chat with a tool": (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "temperature": 0,
            "max_tokens": 80,
            "tools": [WEATHER],
            "tool_choice": WEATHER_CHOICE,
        },
    ),
    "completion": ("/v1/completions", TEXT),
    "completion of several prompts": ("/v1/completions", {**TEXT, "prompt": ["One", "Two"], "logprobs": 1}),
    "completion of token ids": ("/v1/completions", {**TEXT, "prompt": [3, 4, 5], "return_token_ids": True}),
    "response": ("/v1/responses", {"input": "Hello", "max_output_tokens": 8, "temperature": 0}),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}),
    "count of tokens": ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    "embeddings": ("/v1/embeddings", {"input": ["a", "b"]}),
    "tokens": ("/tokenize", {"prompt": "How many tokens are these?"}),
    "text of tokens": ("/detokenize", {"tokens": [5, 6, 7]}),
    "unknown model": ("/v1/chat/completions", {**CHAT, "model": "nope"}),
    "messages that are none": ("/v1/chat/completions", {"messages": 5}),
    "messages missing": ("/v1/chat/completions", {}),
    "a role missing": ("/v1/chat/completions", {"messages": [{"content": "x"}]}),
    "n that is no number": ("/v1/completions", {**TEXT, "n": "x"}),
    "a prompt that is too long": ("/v1/completions", {**TEXT, "prompt": [5] * 140_000}),
    "more tokens than there are": ("/v1/chat/completions", {**CHAT, "max_tokens": 1_000_000}),
    "an unknown field": ("/v1/chat/completions", {**CHAT, "no_such_field": {"a": [1, None, "é"]}}),
}
ONE_TOKEN = {"stream": True, "max_tokens": 1}
STREAMS = {
    "chat": ("/v1/chat/completions", {**CHAT, **ONE_TOKEN}),
    "chat with usage": (
        "/v1/chat/completions",
        {**CHAT, **ONE_TOKEN, "stream_options": {"include_usage": True}},
    ),
    "chat with usage all along": (
        "/v1/chat/completions",
        {**CHAT, **ONE_TOKEN, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "chat that declines usage": (
        "/v1/chat/completions",
        {**CHAT, **ONE_TOKEN, "stream_options": {"include_usage": False}},
    ),
    "completion": ("/v1/completions", {**TEXT, **ONE_TOKEN}),
    "completion with usage": (
        "/v1/completions",
        {**TEXT, **ONE_TOKEN, "stream_options": {"include_usage": True}},
    ),
    "response": ("/v1/responses", {"input": "Hello", "max_output_tokens": 1, "temperature": 0, "stream": True}),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1, "temperature": 0, "stream": True}),
}


def normalised(body):
    return _TIMES.sub(rb'"\1":0', _VARYING.sub(rb'"\1":""', body))


def show_every_prompt(urls, model):
    """Workers that have seen every prompt before say the same of their caches, whichever is asked."""
    for path, body in (*SAME.values(), *STREAMS.values()):
        shown = {name: value for name, value in {"model": model, **body}.items() if value is not None}
        for url in urls:
            httpx.post(url + path, json=shown, timeout=60, trust_env=False)


async def both_ways(target, path, body):
    """The same bytes to a worker and to the gateway: two answers."""
    if "model" not in body:
        body = {"model": target.model, **body}
    content = json.dumps({name: value for name, value in body.items() if value is not None})
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(verify=False, timeout=60) as client:
        return [
            await client.post(url + path, content=content, headers=headers)
            for url in (target.direct_url, target.base_url)
        ]


@pytest.mark.parametrize("what", SAME)
async def test_the_answer_is_the_worker_s_byte_for_byte(target, what):
    direct, routed = await both_ways(target, *SAME[what])
    assert routed.status_code == direct.status_code
    assert routed.headers["content-type"] == direct.headers["content-type"]
    assert normalised(routed.content) == normalised(direct.content)


@pytest.mark.parametrize("what", STREAMS)
async def test_a_stream_is_the_worker_s_byte_for_byte(target, what):
    direct, routed = await both_ways(target, *STREAMS[what])
    assert routed.status_code == direct.status_code == 200
    assert routed.headers["content-type"] == direct.headers["content-type"]
    assert normalised(routed.content) == normalised(direct.content)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_long_stream_says_what_the_worker_s_says(target, path, usage):
    body = {**(CHAT if "chat" in path else TEXT), "stream": True, "max_tokens": 40}
    if usage:
        body["stream_options"] = {"include_usage": True}
    direct, routed = await both_ways(target, path, body)
    assert told(routed.content) == told(direct.content)


def told(stream):
    """A stream without the accident of which tokens shared a chunk: all text, and the rest of what was said."""
    text, rest = "", []
    for event in normalised(stream).split(b"\n\n"):
        if not event.startswith(b"data: {"):
            rest.append(event)
            continue
        chunk = json.loads(event.removeprefix(b"data: "))
        for choice in chunk["choices"]:
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            if choice.get("finish_reason"):
                rest.append(choice["finish_reason"])
        if not chunk["choices"]:
            rest.append(chunk)
    return text, rest
