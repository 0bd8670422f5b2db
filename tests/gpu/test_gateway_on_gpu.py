"""The gateway in front of vLLM servers on a GPU: streams, clients that leave, prefixes, a prefill/decode pair."""

import json
from random import Random

import httpx
import pytest
from gateway_under_test import post, raw_client, running_gateway, until

from benchmarks.fleet.load import WORDS

pytestmark = pytest.mark.timeout(1000)

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 30, "scrape_every_s": 0.5, "stale_after_s": 60}
RUNNING, GENERATED = "vllm:num_requests_running", "vllm:generation_tokens_total"
FETCHED = "vllm:external_prefix_cache_hits_total"
LONG = 8000
SOON_S = 120


def words(seed, count):
    """A number of words, of a token each."""
    return " ".join(Random(seed).choices(WORDS, k=count))


def body(path, text, **more):
    asked = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return {"model": "little", **asked, "max_tokens": 16, "temperature": 0, "ignore_eos": True, **more}


async def ask(url, path, asked):
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        answer = await client.post(path, json=asked)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture
async def gateway(servers):
    """In front of the two that do both."""
    async with running_gateway([{"url": server.url} for server in servers.both], health=PATIENT) as running:
        yield running
        await running.at_rest()


@pytest.fixture
async def pair_gateway(servers):
    """In front of the prefill and the decode server."""
    workers = [
        {"url": server.url, "roles": role}
        for server, role in ((servers.prefill, "prefill"), (servers.decode, "decode"))
    ]
    async with running_gateway(workers, health=PATIENT) as running:
        await until(lambda: all(w.routable for w in running.gateway.fleet.workers()), within_s=SOON_S)
        yield running
        await running.at_rest()


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_comes_in_pieces_and_is_the_answer_in_one_piece(gateway, path):
    asked = body(path, f"{path}: {words(1, 100)}", max_tokens=64)
    whole = (await ask(gateway.url, path, asked)).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    lines = (await ask(gateway.url, path, {**asked, **options})).text.splitlines()
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = [
        choice.get("text") or choice.get("delta", {}).get("content") for e in events for choice in e["choices"]
    ]
    [choice] = whole["choices"]
    assert "".join(filter(None, said)) == (choice.get("text") or choice["message"]["content"])
    assert len(list(filter(None, said))) > 3
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 64


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(servers, gateway, stream):
    def total(metric):
        return sum(server.counted(metric) for server in servers.both)

    before = total(GENERATED)
    async with raw_client(gateway.port) as client:
        await client.send(
            post(TEXT, body(TEXT, f"leaves {stream}", max_tokens=LONG, n=4, temperature=1, stream=stream))
        )
        if stream:
            await client.reader.readuntil(b"data: ")
        await until(lambda: total(RUNNING) >= 1, within_s=SOON_S)
        client.vanish()
        await until(lambda: total(RUNNING) == 0, within_s=SOON_S)
    assert 0 < total(GENERATED) - before < 4 * LONG
    await gateway.at_rest()
    assert gateway.outcomes() == {"cancelled": 1}


async def test_a_prefix_that_was_seen_is_found_on_the_worker_that_has_it(servers, gateway):
    start = words(2, 600)
    first = (await ask(gateway.url, TEXT, body(TEXT, start))).json()
    hits = sum(server.counted("vllm:prefix_cache_hits_total") for server in servers.both)
    cached = []
    for turn in range(5):
        again = (await ask(gateway.url, TEXT, body(TEXT, f"{start} {words(turn, 20)}"))).json()
        cached.append(again["usage"]["prompt_tokens_details"]["cached_tokens"])
    # One of them may go where nothing has been yet, for the gateway to see how fast that worker is.
    assert sum(tokens > first["usage"]["prompt_tokens"] - 64 for tokens in cached) >= 4
    found = sum(server.counted("vllm:prefix_cache_hits_total") for server in servers.both)
    assert found - hits == sum(cached)


async def test_a_pair_says_what_one_server_says_and_every_prompt_is_fetched(servers, pair_gateway):
    asked = [body(TEXT, f"{number}: {words(100 + number, 150 + 40 * number)}") for number in range(10)]
    fetched, together, apart, tokens = servers.decode.counted(FETCHED), [], [], 0
    for each in asked:
        answer = (await ask(pair_gateway.url, TEXT, each)).json()
        together.append(answer["choices"][0]["text"])
        tokens += answer["usage"]["prompt_tokens"]
        apart.append((await ask(servers.both[0].url, TEXT, each)).json()["choices"][0]["text"])
    assert len(set(apart)) >= 7  # an answer depends on its prompt, or equal ones would say nothing
    # Kernels of prefill and decode round differently, and some answers hang on that; KV that is not the prompt's
    # would change nearly all.
    assert sum(a == b for a, b in zip(together, apart, strict=True)) >= 7
    assert servers.decode.counted(FETCHED) - fetched == tokens


async def test_a_client_that_leaves_a_pair_frees_both(servers, pair_gateway):
    async with raw_client(pair_gateway.port) as client:
        await client.send(post(TEXT, body(TEXT, f"pair: {words(3, 100)}", max_tokens=7000, stream=True)))
        await client.reader.readuntil(b"data: ")
        await until(lambda: servers.decode.counted(RUNNING) == 1, within_s=SOON_S)
        client.vanish()
        await until(lambda: servers.decode.counted(RUNNING) == 0, within_s=SOON_S)
    for server in (servers.prefill, servers.decode):
        await until(lambda server=server: server.counted(RUNNING) == 0, within_s=SOON_S)
    await pair_gateway.at_rest()
    assert pair_gateway.outcomes() == {"cancelled": 1}
