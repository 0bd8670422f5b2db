"""The official `openai` client against a simulated worker."""

import json

import openai
import pytest

from workers.simulator.server import SimulatorConfig, simulated_worker

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
        },
    },
}
LEAST = {"city": "x", "days": 1}


@pytest.fixture
async def client():
    config = SimulatorConfig(model="tiny", profile="instant", max_model_len=2048)
    async with (
        simulated_worker(config) as worker,
        openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as one,
    ):
        yield one


def chat(client, **more):
    return client.chat.completions.create(model="tiny", messages=MESSAGES, **more)


async def test_chat_whole_and_streamed(client):
    whole = await chat(client, max_completion_tokens=40)
    assert whole.choices[0].message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    text, usage = "", None
    async for chunk in await chat(
        client, max_completion_tokens=40, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_n_gives_several_different_answers(client):
    whole = await chat(client, n=2, max_tokens=30)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 2
    streamed = {0: "", 1: ""}
    async for chunk in await chat(client, n=2, max_tokens=30, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert [streamed[0], streamed[1]] == texts


async def test_logprobs_have_their_shape(client):
    whole = await chat(client, logprobs=True, top_logprobs=2, max_tokens=5, extra_body={"ignore_eos": True})
    content = whole.choices[0].logprobs.content
    assert "".join(token.token for token in content) == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)
    text = await client.completions.create(
        model="tiny", prompt="x", logprobs=3, max_tokens=5, extra_body={"ignore_eos": True}
    )
    probabilities = text.choices[0].logprobs
    assert "".join(probabilities.tokens) == text.choices[0].text
    assert len(probabilities.top_logprobs[0]) == 3
    assert probabilities.text_offset[0] == 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_tool_is_called(client, choice):
    whole = (await chat(client, tools=[WEATHER], tool_choice=choice)).choices[0]
    [call] = whole.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", LEAST)
    assert whole.finish_reason == ("tool_calls" if choice == "required" else "stop")
    name, arguments = "", ""
    async for chunk in await chat(client, tools=[WEATHER], tool_choice=choice, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert (name, json.loads(arguments)) == ("weather", LEAST)


async def test_a_json_schema_is_answered_with_json(client):
    schema = {"name": "place", "schema": WEATHER["function"]["parameters"]}
    whole = await chat(client, response_format={"type": "json_schema", "json_schema": schema})
    assert json.loads(whole.choices[0].message.content) == LEAST


async def test_embeddings_in_both_encodings(client):
    one = await client.embeddings.create(model="tiny", input=["a", "b"])
    other = await client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
    assert one.data[0].embedding == pytest.approx(other.data[0].embedding, abs=1e-6)
    assert one.data[0].embedding != one.data[1].embedding
    assert one.usage.prompt_tokens == 2


async def test_responses_whole_streamed_and_continued(client):
    whole = await client.responses.create(model="tiny", input="Hello there", max_output_tokens=400)
    assert whole.status in ("completed", "incomplete")
    assert whole.output_text
    names, text = [], ""
    async for one in await client.responses.create(
        model="tiny", input="Hello there", max_output_tokens=400, stream=True
    ):
        names.append(one.type)
        if one.type == "response.output_text.delta":
            text += one.delta
    assert text == whole.output_text
    assert names[0] == "response.created"
    assert names[-1] == f"response.{whole.status}"
    assert (await client.responses.retrieve(whole.id)).output_text == whole.output_text
    more = await client.responses.create(model="tiny", input="And?", previous_response_id=whole.id)
    assert more.usage.input_tokens_details.cached_tokens > 0
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_nobody")


async def test_errors_become_the_client_s_classes(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_model_len=2048"):
        await chat(client, max_tokens=5000)


async def test_models_are_listed(client):
    assert [model.id async for model in client.models.list()] == ["tiny"]
