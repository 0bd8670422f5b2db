"""Coding agents and benchmarks against the gateway as against vLLM itself, by requests in their formats."""

import json
from contextlib import asynccontextmanager

import pytest

from router.edge.trust import TO_WORKERS
from tests.end_to_end.gateway_under_test import running_gateway
from tests.end_to_end.wild import sound
from tests.end_to_end.wild.agent_requests import AGENTS
from tests.end_to_end.wild.listener import Listener, listening


@asynccontextmanager
async def a_worker_that_hears(heard, **settings):
    """A gateway before one worker, whose requests are appended to `heard`."""

    def answer(message):
        heard.append(message)
        return sound.answer(message)

    async with (
        listening(Listener(sound.MODEL, answer)) as worker,
        running_gateway([worker.url], **settings) as gateway,
    ):
        yield worker, gateway


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_worker_hears_what_the_agent_has_said_and_nothing_that_it_may_not(agent):
    target, headers, body = AGENTS[agent]
    heard = []
    async with a_worker_that_hears(heard) as (worker, gateway):
        said = await gateway.http.post(target, json=body, headers=headers)
        assert said.status_code == 200
        await gateway.at_rest()
    [message] = heard
    assert message.target.decode() == target
    sent = json.loads(message.body)
    if target.startswith(("/v1/chat/completions", "/v1/completions")) and body.get("stream"):
        options = sent.pop("stream_options")
        assert options == {**body.get("stream_options", {}), "include_usage": True}
        assert sent.pop("return_token_ids", True) is True  # where the stream could go on at another worker
        body = {name: value for name, value in body.items() if name != "stream_options"}
    assert sent == body
    known = TO_WORKERS | {b"host", b"content-length", b"x-request-id"}
    assert {name for name, _ in message.headers} <= known
    for name in ("anthropic-beta", "anthropic-version", "openai-beta"):
        assert message.value(name.encode()).decode() == headers.get(name, "")
    assert worker.offences == []


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_hears_what_the_worker_has_said_byte_for_byte(agent):
    target, headers, body = AGENTS[agent]
    path = target.partition("?")[0]
    async with a_worker_that_hears([]) as (_, gateway):
        said = await gateway.http.post(target, json=body, headers=headers)
    if not body.get("stream"):
        assert said.json() == sound.document(path)
        return
    wants_usage = body.get("stream_options", {}).get("include_usage", path in ("/v1/messages", "/v1/responses"))
    expected = b"".join(sound.event_bytes(*event) for event in sound.events(path, usage=wants_usage))
    assert said.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert said.content == expected


FIRST_ASKED = {
    "openai's clients": ("GET", "/v1/models", 200),
    "vllm bench serve": ("GET", "/v1/models", 200),
    "guidellm": ("GET", "/health", 200),
    "litellm": ("GET", "/v1/models", 200),
    "codex": ("GET", "/v1/models?client_version=0.63.0", 200),
    "an agent that asks for one model": ("GET", "/v1/models/tiny", 200),
    "a client of vLLM": ("GET", "/version", 200),
    "a client of Ollama": ("GET", "/api/tags", 404),
    "a client of llama.cpp": ("GET", "/props", 404),
    "a client of LM Studio": ("GET", "/api/v0/models", 404),
    "a client of text-generation-inference": ("GET", "/info", 404),
    "a crawler": ("GET", "/robots.txt", 404),
}


@pytest.mark.parametrize("client", FIRST_ASKED)
async def test_what_clients_ask_first_has_an_answer(client):
    method, target, status = FIRST_ASKED[client]
    async with a_worker_that_hears([]) as (_, gateway):
        said = await gateway.http.request(method, target)
        assert said.status_code == status
        if status == 404:
            assert said.json()["error"]["type"] == "NotFoundError"
