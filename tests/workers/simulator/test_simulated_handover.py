"""`kv_transfer_params` between two simulated workers, over sockets."""

import asyncio
import json
import re

import httpx
import pytest

from workers.simulator.connector import KvTransfer
from workers.simulator.faults import Fault
from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me about the sea and its tides. " * 9}],
    "max_tokens": 12,
    "ignore_eos": True,
}
ASKED = {"do_remote_decode": True, "do_remote_prefill": False}


def config(**changes):
    given = {"model": "tiny", "profile": "instant", "max_model_len": 1024, "kv_transfer": KvTransfer()}
    return SimulatorConfig(**{**given, **changes})


@pytest.fixture
async def pair():
    async with simulated_worker(config()) as prefill, simulated_worker(config()) as decode:
        yield prefill, decode


async def post(worker, body, path="/v1/chat/completions"):
    async with httpx.AsyncClient(base_url=worker.url, timeout=10) as client:
        return await client.post(path, json=body)


async def prefilled(worker, body=CHAT):
    answer = await post(worker, {**body, "max_tokens": 1, "kv_transfer_params": ASKED})
    return answer.json()["kv_transfer_params"]


def text(answer):
    return answer.json()["choices"][0]["message"]["content"]


def kv(worker):
    return worker.state()["kv_transfer"]


async def until(fact):
    async with asyncio.timeout(5):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def counter(page, name, **labels):
    inner = "".join(f'(?=[^}}]*{key}="{value}")' for key, value in labels.items())
    [value] = re.findall(rf"^{name}\{{{inner}[^}}]*\}} (\S+)$", page, re.MULTILINE)
    return float(value)


async def test_the_parameters_name_the_worker_and_what_it_holds(pair):
    params = await prefilled(pair[0])
    tokens = pair[0].engine.counters.prompt_tokens
    assert params["do_remote_prefill"]
    assert not params["do_remote_decode"]
    assert params["remote_port"] == pair[0].port
    assert params["remote_num_tokens"] == tokens
    assert params["transfer_mode"] == "pull"
    assert pair[0].engine.held == 1
    assert pair[0].engine.kv_blocks_used == -(-tokens // 16)


async def test_a_pair_answers_as_one_worker_does_and_the_second_computes_nothing(pair):
    prefill, decode = pair
    alone = await post(prefill, CHAT)
    params = await prefilled(prefill)
    answer = await post(decode, {**CHAT, "kv_transfer_params": params})
    assert text(answer) == text(alone)
    assert answer.json()["kv_transfer_params"] is None
    usage = answer.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    tokens = usage["prompt_tokens"]
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{decode.url}/metrics")).text
    source = "vllm:prompt_tokens_by_source_total"
    assert counter(page, source, source="external_kv_transfer") == tokens
    assert counter(page, source, source="local_compute") == 0
    assert counter(page, "vllm:external_prefix_cache_hits_total") == tokens
    await until(lambda: not prefill.engine.held)
    assert kv(prefill)["released"] == 1
    assert prefill.engine.kv_blocks_used == decode.engine.kv_blocks_used == 0


async def test_a_stream_is_fetched_for_as_well(pair):
    prefill, decode = pair
    alone = text(await post(prefill, CHAT))
    streamed = await post(decode, {**CHAT, "stream": True, "kv_transfer_params": await prefilled(prefill)})
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines) == alone
    await until(lambda: not prefill.engine.held)


async def test_parameters_are_good_for_one_fetch_only_and_the_second_is_wrong_without_a_word(pair):
    prefill, decode = pair
    alone = text(await post(prefill, CHAT))
    params = await prefilled(prefill)
    first, second = [await post(decode, {**CHAT, "kv_transfer_params": params}) for _ in range(2)]
    assert (first.status_code, text(first)) == (200, alone)
    assert second.status_code == 200
    assert text(second) != alone
    assert (kv(prefill)["refused"], kv(decode)["spoiled"]) == (1, 1)


async def test_after_its_lease_a_prefill_is_gone():
    brief = config(kv_transfer=KvTransfer(lease_s=0.01))
    async with simulated_worker(brief) as prefill, simulated_worker(brief) as decode:
        params = await prefilled(prefill)
        await until(lambda: not prefill.engine.held)
        assert kv(prefill)["expired"] == 1
        await post(decode, {**CHAT, "kv_transfer_params": params})
        assert kv(decode)["spoiled"] == 1


@pytest.mark.parametrize(
    ("change", "status"), [({"max_tokens": 5000}, 400), ({"n": 0}, 400), ({"model": "other"}, 404)]
)
async def test_a_decode_that_is_turned_down_lets_the_prefill_go(pair, change, status):
    prefill, decode = pair
    params = await prefilled(prefill)
    answer = await post(decode, {**CHAT, **change, "kv_transfer_params": params})
    assert answer.status_code == status
    await until(lambda: not prefill.engine.held)
    assert kv(prefill)["released"] == 1


async def test_a_decode_whose_client_leaves_lets_the_prefill_go():
    slow = config(profile="h100-llama-3.1-8b", speed=0.01)
    async with simulated_worker(config()) as prefill, simulated_worker(slow) as decode:
        params = await prefilled(prefill)
        asked = asyncio.create_task(post(decode, {**CHAT, "kv_transfer_params": params}))
        await until(lambda: decode.engine.deferred)
        assert prefill.engine.held == 1
        asked.cancel()
        await until(lambda: not prefill.engine.held and not decode.engine.waiting)
        assert decode.engine.kv_blocks_used == 0


@pytest.mark.parametrize("policy", ["fail", "recompute"])
async def test_without_the_prefill_worker_a_decode_fails_or_computes_for_itself(policy):
    async with simulated_worker(config(kv_transfer=KvTransfer(load_failure=policy))) as decode:
        async with simulated_worker(config()) as prefill:
            alone = text(await post(prefill, CHAT))
            params = await prefilled(prefill)
            prefill.set_fault(Fault("crash"))
        answer = await post(decode, {**CHAT, "kv_transfer_params": params})
        assert answer.status_code == (500 if policy == "fail" else 200)
        assert policy == "fail" or text(answer) == alone
        assert decode.engine.counters.pulled_tokens == 0
        assert kv(decode)["unreachable"] == 1


async def test_without_a_connector_the_parameters_mean_nothing():
    async with simulated_worker(config(kv_transfer=None)) as worker:
        assert await prefilled(worker) is None
        assert worker.engine.held == 0
        params = dict.fromkeys(("remote_engine_id", "remote_request_id", "remote_host"), "x")
        body = {**CHAT, "kv_transfer_params": {**params, "remote_port": 1, "do_remote_prefill": True}}
        assert (await post(worker, body)).status_code == 200
        assert worker.engine.counters.pulled_tokens == 0


async def test_messages_and_completions_hand_over_too(pair):
    said = {"model": "tiny", "messages": CHAT["messages"], "max_tokens": 1, "kv_transfer_params": ASKED}
    assert (await post(pair[0], said, "/v1/messages")).json()["kv_transfer_params"]["remote_port"] == pair[0].port
    asked = {"model": "tiny", "prompt": "x" * 99, "max_tokens": 1, "kv_transfer_params": ASKED}
    assert (await post(pair[0], asked, "/v1/completions")).json()["kv_transfer_params"]["do_remote_prefill"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("nixl", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"kv_connector":"Post"}', "kv_connector is 'Post', not one of NixlConnector"),
        ('{"kv_role":"both"}', "kv_role is 'both'"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_reason(option, why):
    with pytest.raises(ValueError, match=why):
        KvTransfer.from_option(option)


def test_the_configuration_is_vllms():
    text = (
        '{"kv_connector":"NixlPushConnector","kv_role":"kv_consumer","kv_load_failure_policy":"recompute",'
        '"kv_connector_extra_config":{"kv_lease_duration":7}}'
    )
    assert KvTransfer.from_option(text) == KvTransfer("NixlPushConnector", "kv_consumer", "recompute", 7.0)
