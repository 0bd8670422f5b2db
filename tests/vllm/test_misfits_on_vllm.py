"""Pairs of real vLLM servers that do not understand each other, with the gateway in front."""

import json
import re

import httpx
import pytest
from gateway_under_test import running_gateway, until
from real_vllm import Wanted, free_ports

from workers.bounds.backoff import Backoff

pytestmark = pytest.mark.timeout(600)

WORDS = "The moon draws the sea, the sea draws the sand, and nobody asks the fish what they think of it. " * 4
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 20, "scrape_every_s": 0.5, "stale_after_s": 60}
TEXT = "/v1/completions"
SOURCE = "vllm:prompt_tokens_by_source_total"


def nixl(connector, *args):
    config = {"kv_connector": connector, "kv_role": "kv_both", "kv_load_failure_policy": "fail"}
    side = ("VLLM_NIXL_SIDE_CHANNEL_PORT", str(free_ports(1)))
    return Wanted(args=("--kv-transfer-config", json.dumps(config), *args), environment=(side,))


@pytest.fixture(scope="module")
def kinds(servers, pair):
    """One server that pulls, one that is pushed to, one that pulls with other blocks, one with no connector."""
    started = servers.fresh(
        nixl("NixlConnector"), nixl("NixlPushConnector"), nixl("NixlConnector", "--block-size", "64")
    )
    yield dict(zip(("pull", "push", "blocks of 64", "none"), (*started, pair[0]), strict=True))
    for server in started:
        server.stop()


def gateway_over(prefill, decode):
    workers = [{"url": prefill.url, "roles": "prefill"}, {"url": decode.url, "roles": "decode"}]
    return running_gateway(workers, ready=False, health=PATIENT)


async def known(gateway):
    """Until both workers serve and have been read."""
    workers = gateway.gateway.fleet.workers
    await until(lambda: len(workers()) == 2 and all(w.routable and w.scrape for w in workers()), within_s=60)


def prompts(server):
    page = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).text
    return {source: float(value) for source, value in re.findall(rf'{SOURCE}{{.*source="(\w+)".*}} (\S+)', page)}


def body(words):
    return {"model": "tiny", "prompt": words, "max_tokens": 24, "temperature": 0, "ignore_eos": True}


async def text_of(url, asked):
    async with httpx.AsyncClient(base_url=url, timeout=200, trust_env=False) as client:
        answer = await client.post(TEXT, json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]


def failures(gateway):
    counted = gateway.series("fairlead_attempt_failures_total")
    return {(labels["worker"], labels["reason"]): value for labels, value in counted if value}


def healthy(gateway):
    return {worker.state.value for worker in gateway.gateway.fleet.workers()} == {"up"}


async def test_one_that_pulls_and_one_that_is_pushed_to_are_taken_apart_at_the_first_error(
    kinds, pair, monkeypatch
):
    long = Backoff(first_s=600.0, longest_s=600.0)
    monkeypatch.setattr("router.control.pair_compatibility._APART", long)
    prefill, decode = kinds["pull"], kinds["push"]
    async with gateway_over(prefill, decode) as gateway:
        await known(gateway)
        for number in range(2):
            asked = body(f"{number} at cross purposes: {WORDS}")
            assert await text_of(gateway.url, asked) == await text_of(pair[1].url, asked)
        assert failures(gateway) == {(decode.url, "handover"): 2}
        assert all("prefill_worker" not in line for line in gateway.lines())
        assert healthy(gateway)
        await gateway.at_rest()


@pytest.mark.parametrize(
    ("unlike", "why"),
    [
        (("pull", "none"), "NIXL connector"),
        (("none", "pull"), "NIXL connector"),
        (("pull", "blocks of 64"), "32 and 64 tokens"),
    ],
)
async def test_what_their_metrics_say_keeps_others_apart_from_the_start(kinds, pair, unlike, why, caplog):
    first, second = unlike
    prefill, decode = kinds[first], kinds[second]
    async with gateway_over(prefill, decode) as gateway:
        await known(gateway)
        before = prompts(prefill)
        asked = body(f"{first}, {second}: {WORDS}")
        assert await text_of(gateway.url, asked) == await text_of(pair[1].url, asked)
        assert failures(gateway) == {(decode.url, "handover"): 1}
        [line] = gateway.lines()
        assert line["worker"] == decode.url
        assert prompts(prefill) == before
        assert [r.getMessage() for r in caplog.records if why in r.getMessage()]
        assert healthy(gateway)
        await gateway.at_rest()
