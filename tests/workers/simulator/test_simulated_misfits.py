"""Two simulated workers that do not understand each other's connector, asked without a gateway."""

import httpx
import pytest

from workers.simulator.connector import KvTransfer
from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me about the sea and its tides. " * 9}],
    "max_tokens": 12,
    "ignore_eos": True,
}
ASKED = {"do_remote_decode": True, "do_remote_prefill": False}
PATH = "/v1/chat/completions"


def worker(connector, *, load_failure="fail", block_size=16):
    kv_transfer = KvTransfer(connector, load_failure=load_failure)
    return simulated_worker(
        SimulatorConfig(
            model="tiny", profile="instant", max_model_len=1024, kv_transfer=kv_transfer, block_size=block_size
        )
    )


async def handed_over(prefill, decode):
    """What one worker says alone, and what the other says after it has been asked to go on from there."""
    async with httpx.AsyncClient(timeout=20) as client:
        alone = await client.post(prefill.url + PATH, json=CHAT)
        first = await client.post(prefill.url + PATH, json={**CHAT, "max_tokens": 1, "kv_transfer_params": ASKED})
        params = first.json()["kv_transfer_params"]
        return alone, await client.post(decode.url + PATH, json={**CHAT, "kv_transfer_params": params})


def text(answer):
    return answer.json()["choices"][0]["message"]["content"]


def kv(worker):
    return worker.state()["kv_transfer"]


@pytest.mark.parametrize("connector", ["NixlConnector", "NixlPullConnector", "NixlPushConnector"])
async def test_two_of_a_kind_hand_over(connector):
    async with worker(connector) as prefill, worker(connector) as decode:
        alone, answer = await handed_over(prefill, decode)
        assert text(answer) == text(alone)
        assert kv(decode)["fetched"] == 1


async def test_two_names_of_the_same_fit():
    async with worker("NixlConnector") as prefill, worker("NixlPullConnector") as decode:
        await handed_over(prefill, decode)
        assert kv(decode)["fetched"] == 1


@pytest.mark.parametrize("load_failure", ["fail", "recompute"])
@pytest.mark.parametrize("kinds", [("NixlConnector", "NixlPushConnector"), ("NixlPushConnector", "NixlConnector")])
async def test_one_that_pushes_and_one_that_pulls_refuse_each_other(kinds, load_failure):
    first, second = kinds
    async with worker(first) as prefill, worker(second, load_failure=load_failure) as decode:
        alone, answer = await handed_over(prefill, decode)
        assert answer.status_code == (500 if load_failure == "fail" else 200)
        assert load_failure == "fail" or text(answer) == text(alone)
        assert (kv(decode)["misfits"], kv(decode)["fetched"], kv(decode)["unreachable"]) == (1, 0, 0)
        assert decode.engine.counters.pulled_tokens == 0
        assert prefill.engine.held == 1  # until its lease ends: it cannot be told


async def test_blocks_of_another_size_are_misread_without_a_word():
    async with worker("NixlConnector") as prefill, worker("NixlConnector", block_size=32) as decode:
        alone, answer = await handed_over(prefill, decode)
        assert answer.status_code == 200
        assert text(answer) != text(alone)
        assert kv(decode)["spoiled"] == 1


@pytest.mark.parametrize(
    "kinds",
    [("ExampleConnector",) * 2, ("ExampleConnector", "NixlConnector"), ("NixlConnector", "ExampleConnector")],
)
async def test_with_files_each_worker_computes_its_prompt_itself(kinds):
    async with worker(kinds[0]) as prefill, worker(kinds[1]) as decode:
        alone, answer = await handed_over(prefill, decode)
        assert text(answer) == text(alone)
        assert decode.engine.counters.pulled_tokens == 0
        assert kv(prefill)["handed_out"] == (kinds[0] == "NixlConnector")
