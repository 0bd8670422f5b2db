"""Pairs whose workers do not understand each other: the request runs whole on one of them, and that is counted."""

import asyncio
import json
import logging

import pytest
from gateway_under_test import MODEL, running_gateway

from workers.bounds.backoff import Backoff
from workers.simulator.connector import KvTransfer
from workers.simulator.server import SimulatorConfig, simulated_worker

WORDS = "Tell me about the sea and its tides, and about the moon that draws them. " * 6
PATH = "/v1/chat/completions"
PULL, PUSH = KvTransfer(), KvTransfer("NixlPushConnector")
FILES = KvTransfer("ExampleConnector")


def chat(number=0, **more):
    said = {"role": "user", "content": f"{number} {WORDS}"}
    return {"model": MODEL, "messages": [said], "max_tokens": 12, "ignore_eos": True, **more}


def worker(kv_transfer, **more):
    return simulated_worker(SimulatorConfig(model=MODEL, profile="instant", kv_transfer=kv_transfer, **more))


def gateway_over(prefill, *decode):
    workers = [{"url": prefill.url, "roles": "prefill"}, *({"url": w.url, "roles": "decode"} for w in decode)]
    return running_gateway(workers)


def said(answer):
    assert answer.status_code == 200, answer.text
    if "data: " in answer.text:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)
    return answer.json()["choices"][0]["message"]["content"]


def asked(worker):
    return [json.loads(seen.body) for seen in worker.app.received if seen.method == "POST" and "/v1/" in seen.path]


def handovers_failed(gateway):
    failures = gateway.series("fairlead_attempt_failures_total")
    return {labels["worker"]: value for labels, value in failures if value and labels["reason"] == "handover"}


def other_failures(gateway):
    failures = gateway.series("fairlead_attempt_failures_total")
    return {labels["worker"] for labels, value in failures if value and labels["reason"] != "handover"}


async def alone(body):
    async with worker(None) as one, running_gateway([{"url": one.url}]) as gateway:
        return said(await gateway.http.post(PATH, json=body))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("first", "second"), [(PULL, PUSH), (PUSH, PULL)])
async def test_a_pair_of_which_one_pushes_and_one_pulls_is_taken_apart(first, second, stream, caplog, monkeypatch):
    long = Backoff(first_s=600.0, longest_s=600.0)
    monkeypatch.setattr("router.control.pair_compatibility._APART", long)
    async with worker(first) as prefill, worker(second) as decode, gateway_over(prefill, decode) as gateway:
        for number in range(3):
            body = chat(number)
            answer = await gateway.http.post(PATH, json={**body, "stream": stream})
            assert said(answer) == await alone(body)
        # Only the first of them tried; neither worker is blamed.
        assert len([body for body in asked(decode) if "kv_transfer_params" in body]) == 1
        assert handovers_failed(gateway) == {decode.url: 3}
        assert other_failures(gateway) == set()
        assert [line["attempt"] for line in gateway.lines()] == [2, 2, 2]
        assert all("prefill_worker" not in line for line in gateway.lines())
        assert {w.state.value for w in gateway.gateway.fleet.workers()} == {"up"}
        [told] = [r.getMessage() for r in caplog.records if "cannot hand KV over" in r.getMessage()]
        assert f"{prefill.url} cannot hand KV over to {decode.url}" in told
        assert caplog.records[0].levelno == logging.WARNING
        await gateway.at_rest(decode)


async def test_a_decode_worker_that_recomputes_by_itself_answers_all_the_same():
    recompute = KvTransfer("NixlPushConnector", load_failure="recompute")
    async with worker(PULL) as prefill, worker(recompute) as decode, gateway_over(prefill, decode) as gateway:
        assert said(await gateway.http.post(PATH, json=chat())) == await alone(chat())
        assert decode.state()["kv_transfer"]["misfits"] == 1
        assert handovers_failed(gateway) == {}


async def test_blocks_of_another_size_are_never_handed_over(caplog):
    async with worker(PULL) as prefill, worker(PULL, block_size=32) as decode:
        async with gateway_over(prefill, decode) as gateway:
            answers = await asyncio.gather(*(gateway.http.post(PATH, json=chat(n)) for n in range(4)))
            for number, answer in enumerate(answers):
                assert said(answer) == await alone(chat(number))
            assert handovers_failed(gateway) == {decode.url: 4}
            assert [r.getMessage() for r in caplog.records if "16 and 32 tokens" in r.getMessage()]
        assert prefill.state()["kv_transfer"]["handed_out"] == 0
        assert decode.state()["kv_transfer"]["spoiled"] == 0


@pytest.mark.parametrize(("first", "second"), [(None, PULL), (PULL, None), (FILES, PULL), (PULL, FILES)])
async def test_where_only_one_has_the_connector_the_decode_worker_computes_the_prompt_itself(first, second):
    async with worker(first) as prefill, worker(second) as decode, gateway_over(prefill, decode) as gateway:
        answer = await gateway.http.post(PATH, json=chat())
        assert said(answer) == await alone(chat())
        assert decode.engine.counters.pulled_tokens == 0
        assert other_failures(gateway) == set()


async def test_requests_with_one_id_are_told_apart_on_pairs():
    async with worker(PUSH) as prefill, worker(PUSH) as decode, gateway_over(prefill, decode) as gateway:
        headers = {"x-request-id": "the-same"}
        answers = await asyncio.gather(*(gateway.http.post(PATH, json=chat(n), headers=headers) for n in range(4)))
        assert {answer.headers["x-request-id"] for answer in answers} == {"the-same"}
        ids = [
            [seen.headers["x-request-id"] for seen in one.app.received if seen.method == "POST"]
            for one in (prefill, decode)
        ]
        ids = [[each for each in side if each.startswith("the-same.")] for side in ids]
        assert sorted(ids[0]) == sorted(ids[1])
        assert len(set(ids[0])) == 4
