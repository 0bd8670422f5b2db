"""A prefill worker, a decode worker, NIXL between them and the gateway in front: real vLLM, on the CPU."""

import asyncio
import json
import re
import signal

import httpx
import openai
import pytest
from gateway_under_test import post, raw_client, running_gateway, until
from real_vllm import Wanted, free_ports

pytestmark = pytest.mark.timeout(400)

WORDS = "The moon draws the sea, the sea draws the sand, and nobody asks the fish what they think of it. " * 4
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 3, "scrape_every_s": 0.5, "stale_after_s": 5}
LONG_LEASE = {"kv_lease_duration": 600}
"""What is free before its end was released."""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SOURCE = "vllm:prompt_tokens_by_source_total"


RECOMPUTE = {"kv_load_failure_policy": "recompute"}


@pytest.fixture(scope="module")
def sides(servers):
    """The prefill worker and the decode worker."""
    roles = {"kv_producer": {"kv_connector_extra_config": LONG_LEASE}, "kv_consumer": RECOMPUTE}
    return servers.shared(
        *(
            Wanted(
                args=(
                    "--kv-transfer-config",
                    json.dumps({"kv_connector": "NixlConnector", "kv_role": role, **more}),
                ),
                environment=(("VLLM_NIXL_SIDE_CHANNEL_PORT", str(free_ports(1))),),
            )
            for role, more in roles.items()
        )
    )


@pytest.fixture
async def gateway(sides):
    workers = [
        {"url": server.url, "roles": role} for server, role in zip(sides, ("prefill", "decode"), strict=True)
    ]
    async with running_gateway(workers, health=PATIENT) as running:
        await until(lambda: all(w.routable for w in running.gateway.fleet.workers()), within_s=20)
        yield running
        await running.at_rest()


def prompts(server):
    """Prompt tokens of a server by where they came from."""
    page = httpx.get(f"{server.url}/metrics", timeout=10, trust_env=False, verify=False).text
    return {source: float(value) for source, value in re.findall(rf'{SOURCE}{{.*source="(\w+)".*}} (\S+)', page)}


def change(before, after):
    return {source: after[source] - before[source] for source in after if after[source] != before[source]}


def body(path, words, **more):
    asked = {"messages": [{"role": "user", "content": words}]} if path == CHAT else {"prompt": words}
    return {"model": "tiny", **asked, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}


def choice_of(answer):
    [choice] = answer["choices"]
    return choice.get("text") or choice["message"]["content"], choice["finish_reason"]


async def ask(url, path, asked):
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        answer = await client.post(path, json=asked)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_pair_answers_as_one_server_does_and_the_decode_worker_recomputes_nothing(
    sides, pair, gateway, path
):
    prefill, decode = sides
    asked = body(path, f"{path} at once: {WORDS}")
    before = [prompts(server) for server in sides]
    answer = (await ask(gateway.url, path, asked)).json()
    tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 24
    assert choice_of(answer) == choice_of((await ask(pair[0].url, path, asked)).json())
    assert answer["kv_transfer_params"] is None
    await until(lambda: change(before[1], prompts(decode)))
    assert change(before[0], prompts(prefill)) == {"local_compute": tokens}
    assert change(before[1], prompts(decode)) == {"external_kv_transfer": tokens}
    [line] = gateway.lines()
    assert (line["prefill_worker"], line["worker"]) == (prefill.url, decode.url)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_through_a_pair_says_what_one_server_says(sides, pair, gateway, path):
    asked = body(path, f"{path} bit by bit: {WORDS}")
    before = prompts(sides[1])
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create if path == CHAT else client.completions.create
        stream = await create(
            **{name: value for name, value in asked.items() if name != "ignore_eos"},
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    text = "".join((one.delta.content or "") if path == CHAT else one.text for one in choices)
    expected = choice_of((await ask(pair[0].url, path, asked)).json())
    assert (text, choices[-1].finish_reason) == expected
    tokens = chunks[-1].usage.prompt_tokens
    await until(lambda: change(before, prompts(sides[1])))
    assert change(before, prompts(sides[1])) == {"external_kv_transfer": tokens}


async def test_messages_go_through_a_pair_too(sides, pair, gateway):
    said = {"role": "user", "content": f"messages: {WORDS}"}
    asked = {"model": "tiny", "messages": [said], "max_tokens": 24, "temperature": 0}
    before = prompts(sides[1])
    answer = (await ask(gateway.url, "/v1/messages", asked)).json()
    expected = (await ask(pair[0].url, "/v1/messages", asked)).json()
    assert answer["content"] == expected["content"]
    await until(lambda: change(before, prompts(sides[1])))
    assert change(before, prompts(sides[1])) == {"external_kv_transfer": answer["usage"]["input_tokens"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_ends_with_its_first_token_is_given_at_once_and_its_kv_let_go(
    sides, pair, gateway, stream
):
    decode = sides[1]
    asked = body(TEXT, f"{stream}: {WORDS}")
    first, _ = choice_of((await ask(pair[0].url, TEXT, {**asked, "max_tokens": 1})).json())
    asked |= {"stop": [first], "include_stop_str_in_output": True, "stream": stream}
    generated = decode.counted("vllm:generation_tokens_total")
    answer = await ask(gateway.url, TEXT, asked)
    if stream:
        lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert [choice_of(line) for line in lines] == [(first, "stop")]
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert choice_of(answer.json()) == (first, "stop")
    assert decode.counted("vllm:generation_tokens_total") == generated
    await let_go(sides)


async def let_go(sides):
    """Until the prefill worker holds no KV: told, and looked at, in steps that either worker makes for others."""
    async with asyncio.timeout(60):
        while True:
            for server in reversed(sides):
                await ask(server.url, TEXT, {"model": "tiny", "prompt": "-", "max_tokens": 1})
            if sides[0].counted("vllm:kv_cache_usage_perc") == 0:
                return
            await asyncio.sleep(0.1)


async def test_a_client_that_leaves_frees_both_workers(sides, gateway):
    decode = sides[1]
    async with raw_client(gateway.port) as client:
        await client.send(post(TEXT, body(TEXT, f"leaves: {WORDS}", max_tokens=60_000, stream=True)))
        await client.reader.readuntil(b"data: ")
        await until(lambda: decode.counted("vllm:num_requests_running") == 1, within_s=40)
        client.vanish()
        await until(lambda: decode.counted("vllm:num_requests_running") == 0, within_s=40)
    await let_go(sides)
    await gateway.at_rest()
    assert gateway.outcomes() == {"cancelled": 1}


async def test_a_mistake_of_the_client_is_told_by_the_prefill_worker_or_the_decode_worker(sides, gateway):
    for change_of in ({"temperature": -1}, {"max_tokens": 10**6}):
        answer = await gateway.http.post(TEXT, json={**body(TEXT, WORDS), **change_of})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(change_of))
    await let_go(sides)


async def test_several_answers_are_one_workers_own(sides, gateway):
    before = [prompts(server) for server in sides]
    answer = await ask(gateway.url, CHAT, body(CHAT, f"twice: {WORDS}", n=2, temperature=1))
    assert len(answer.json()["choices"]) == 2
    after = [prompts(server) for server in sides]
    changes = [sources for sources in map(change, before, after) if sources]
    assert [sources.get("external_kv_transfer") for sources in changes] == [None]


async def test_without_the_prefill_worker_the_decode_worker_does_it_all(sides, pair, gateway):
    prefill, decode = sides
    asked = body(CHAT, f"alone: {WORDS}")
    before = prompts(decode)
    prefill.signal(signal.SIGKILL)
    answer = (await ask(gateway.url, CHAT, asked)).json()
    assert choice_of(answer) == choice_of((await ask(pair[0].url, CHAT, asked)).json())
    await until(lambda: change(before, prompts(decode)))
    assert "external_kv_transfer" not in change(before, prompts(decode))
