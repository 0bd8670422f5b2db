"""The official client through the gateway to simulated workers; tests/vllm runs the same cases on a real vLLM."""

import httpx
import openai
import pytest
from gateway_under_test import MODEL, running_fleet, running_gateway
from openai_client_cases import *  # noqa: F403  # the cases, which find their `target` in conftest
from openai_client_cases import MESSAGES

from workers.simulator.faults import Fault


def client_of(gateway, key="none"):
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=20)


def chat(client, **more):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, **more)


async def test_a_wrong_key_is_an_authentication_error():
    clients = [{"name": "team", "keys": ["right-key-0123456789"]}]
    async with running_fleet(clients=clients) as fleet:
        async with client_of(fleet.gateway, "right-key-0123456789") as client:
            assert (await chat(client)).usage
        async with client_of(fleet.gateway, "wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="not known") as caught:
                await chat(client)
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        assert "wrong" not in str(caught.value.body)


async def test_over_quota_is_a_rate_limit_error_with_a_time_to_come_back():
    clients = [{"name": "team", "keys": ["right-key-0123456789"], "requests_per_minute": 2}]
    async with (
        running_fleet(clients=clients) as fleet,
        client_of(fleet.gateway, "right-key-0123456789") as client,
    ):
        await chat(client)
        await chat(client)
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as caught:
            await chat(client)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 31


async def test_without_a_worker_every_answer_is_a_503_with_a_time_to_come_back():
    async with running_gateway(["http://127.0.0.1:9"], ready=False) as gateway, client_of(gateway) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="No worker") as caught:
                await chat(client, stream=stream)
            assert caught.value.status_code == 503
            assert int(caught.value.response.headers["retry-after"]) >= 1
        assert (await gateway.http.get("/ready")).status_code == 503
        assert (await gateway.http.get("/health")).status_code == 200
        await gateway.at_rest()


async def test_the_client_s_own_retry_succeeds_after_a_pause():
    async with running_fleet(1, limits={"queue_requests": 1, "queue_wait_s": 5}) as fleet:
        [worker] = fleet.workers
        worker.set_fault(Fault("error_500", times=1))
        async with client_of(fleet.gateway) as client:
            answer = await chat(client.with_options(max_retries=3))
        assert answer.usage.completion_tokens == 4


async def test_unknown_fields_and_known_headers_reach_the_worker_and_nothing_else_does(fleet):
    body = b'{ "model": "tiny", "prompt": "x", "max_tokens": 1, "thing": {"b": 1, "a": [1.50, null]} }'
    headers = {
        "content-type": "application/json; charset=utf-8",
        "authorization": "Bearer secret",
        "x-session-id": "s1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    answer = await fleet.http.post("/v1/completions?debug=1", content=body, headers=headers)
    assert answer.status_code == 200
    [received] = [r for worker in fleet.workers for r in worker.app.received if r.method == "POST"]
    assert received.body == body
    assert received.headers["content-type"] == headers["content-type"]
    assert received.headers["traceparent"] == headers["traceparent"]
    assert received.headers["x-request-id"] == answer.headers["x-request-id"]
    assert not {"authorization", "x-session-id"} & received.headers.keys()


async def test_a_stream_s_body_reaches_the_worker_with_nothing_but_the_usage_option_added(fleet):
    body = b'{"stream":true, "prompt":"x","odd": 1e3,\n"max_tokens":1 }\n'
    await fleet.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    [received] = [r for worker in fleet.workers for r in worker.app.received if r.method == "POST"]
    assert (
        received.body
        == b'{"stream":true, "prompt":"x","odd": 1e3,\n"max_tokens":1,"stream_options":{"include_usage":true}}\n'
    )


async def test_httpx_alone_sees_well_formed_http(fleet):
    body = {"prompt": "x", "max_tokens": 3}
    whole = await fleet.http.post("/v1/completions", json=body)
    assert int(whole.headers["content-length"]) == len(whole.content)
    streamed = await fleet.http.post("/v1/completions", json={**body, "stream": True})
    assert streamed.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in streamed.headers
    assert isinstance(whole, httpx.Response)
