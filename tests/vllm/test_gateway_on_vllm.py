"""The gateway before real workers: clients that leave, caches, adapters, and the paths that are not chat."""

import asyncio
import json
import re

import pytest
from gateway_under_test import post, raw_client, running_gateway, until

pytestmark = pytest.mark.timeout(400)

WORDS = "Who waits longest is served first, unless somebody else has had less than a fair share."
TURNS = {"messages": [{"role": "user", "content": WORDS}]}
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 3, "scrape_every_s": 0.5, "stale_after_s": 5}


@pytest.fixture
async def gateway(pair):
    urls = [server.url for server in pair]
    async with running_gateway(urls, health=PATIENT) as running:
        await until(lambda: all(w.routable for w in running.gateway.fleet.workers()), within_s=20)
        yield running
        await running.at_rest()


# -- clients that leave

GENERATED = "vllm:generation_tokens_total"
RUNNING = "vllm:num_requests_running"
LONG = 60_000
"""Output tokens that keep a fast machine busy until a slow test has looked."""


def total(pair, metric):
    return sum(server.counted(metric) for server in pair)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_a_client_that_leaves_frees_its_slot_on_vllm_at_once(pair, gateway, path, stream):
    several = {"max_tokens": LONG, "n": 8}
    asked = {
        "/v1/chat/completions": {**TURNS, **several},
        "/v1/completions": {"prompt": WORDS, **several},
        "/v1/responses": {"input": WORDS, "max_output_tokens": LONG},
    }[path]
    before = total(pair, GENERATED)
    async with raw_client(gateway.port) as client:
        await client.send(post(path, {"model": "tiny", "ignore_eos": True, "stream": stream, **asked}))
        if stream:
            await client.reader.readuntil(b"data: ")
        [server] = await chosen(gateway, pair)
        await until(lambda: server.counted(RUNNING) >= 1, within_s=40)
        client.vanish()
        await until(lambda: total(pair, RUNNING) == 0, within_s=40)
    generated = total(pair, GENERATED)
    assert 0 < generated - before < LONG * asked.get("n", 1)
    await asyncio.sleep(0.3)
    assert total(pair, GENERATED) == generated
    await gateway.at_rest()
    assert gateway.outcomes() == {"cancelled": 1}


async def chosen(gateway, pair):
    """The servers at work, once there is one."""
    members = gateway.gateway.pools.members.values()
    await until(lambda: any(member.open for member in members))
    return [server for server in pair for m in members if m.open and m.worker.spec.url == server.url]


# -- caches


async def test_what_the_gateway_expects_in_a_cache_is_about_what_vllm_finds_there(gateway):
    shared = "The quick brown fox jumps over the lazy dog, and the dog sleeps on until noon. " * 12
    answers = []
    for number in range(50):
        words = [{"role": "system", "content": shared}, {"role": "user", "content": f"Question {number}. {WORDS}"}]
        asked = {"model": "tiny", "messages": words, "max_tokens": 2, "stream": number % 2 == 1}
        answers.append(await gateway.http.post("/v1/chat/completions", json=asked))
    assert {answer.status_code for answer in answers} == {200}
    lines = gateway.lines()
    assert [line["cached_tokens"] for line in lines if not line["stream"]] == [
        answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers[::2]
    ]
    warm = [line for line in lines if line["reason"] == "hit"]
    assert len(warm) >= 40, "only a slice goes to the cold worker, and a spill makes it a holder"
    assert lines[0]["matched_tokens"] == 0
    for number, line in enumerate(lines[1:], start=1):
        holders = {earlier["worker"] for earlier in lines[:number]}
        assert line["reason"] != "hit" or line["worker"] in holders
    for line in warm[-10:]:  # by then it has learned how many tokens this vocabulary makes of a byte
        assert line["cached_tokens"] > 0.8 * line["input_tokens"]
        assert line["matched_tokens"] == pytest.approx(line["cached_tokens"], rel=0.15)
    [(_, expected)] = gateway.series("fairlead_predicted_cached_tokens_total")
    assert expected == sum(line["matched_tokens"] for line in lines)
    found = sum(n for labels, n in gateway.series("fairlead_tokens_total") if labels["kind"] == "cached")
    assert found == sum(line["cached_tokens"] for line in lines)


# -- models


async def test_adapters_are_listed_beside_their_base_and_only_their_workers_are_asked(limited, pair):
    async with running_gateway([pair[0].url, limited.url], health=PATIENT) as gateway:
        await until(lambda: "sql" in gateway.gateway.control.routes().names, within_s=20)
        cards = (await gateway.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["parent"], card["max_model_len"]) for card in cards] == [
            ("tiny", None, 65536),
            ("sql", "tiny", None),
        ]
        for _ in range(4):
            asked = {"model": "sql", "prompt": WORDS, "max_tokens": 4, "ignore_eos": True}
            answer = await gateway.http.post("/v1/completions", json=asked)
            assert answer.json()["model"] == "sql"
        assert gateway.placements() == [limited.url] * 4
        await gateway.at_rest()


# -- the other paths


async def test_tokenizing_passes_through_and_counts_what_the_usage_says(gateway):
    tokens = (await gateway.http.post("/tokenize", json={"model": "tiny", "prompt": WORDS})).json()
    text = (await gateway.http.post("/detokenize", json={"model": "tiny", "tokens": tokens["tokens"]})).json()
    assert text == {"prompt": WORDS}
    asked = {"model": "tiny", "prompt": WORDS, "max_tokens": 1}
    usage = (await gateway.http.post("/v1/completions", json=asked)).json()["usage"]
    assert usage["prompt_tokens"] == tokens["count"] == len(tokens["tokens"])


@pytest.mark.parametrize(
    ("path", "asked", "delta", "last"),
    [
        ("/v1/messages", {**TURNS, "max_tokens": 8}, r'"text_delta","text":"((?:[^"\\]|\\.)*)"', "message_stop"),
        (
            "/v1/responses",
            {"input": WORDS, "max_output_tokens": 8},
            r'"content_index":0,"delta":"((?:[^"\\]|\\.)*)"',
            "response.completed",
        ),
    ],
)
async def test_streams_of_named_events_come_through_with_their_usage_counted(gateway, path, asked, delta, last):
    asked = {"model": "tiny", "temperature": 0, **asked}
    whole = (await gateway.http.post(path, json=asked)).json()
    async with gateway.http.stream("POST", path, json={**asked, "stream": True}) as answer:
        text = (await answer.aread()).decode()
    events = re.findall(r"^event: (\S+)$", text, re.MULTILINE)
    assert events[-1] == last
    said = "".join(json.loads(f'"{piece}"') for piece in re.findall(delta, text))
    content = whole["content"] if path == "/v1/messages" else whole["output"][0]["content"]
    assert said == content[0]["text"]
    lines = gateway.lines()
    assert [line["output_tokens"] for line in lines] == [whole["usage"]["output_tokens"]] * 2
    assert {line["outcome"] for line in lines} == {"completed"}
