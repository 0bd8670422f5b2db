"""Paths whose tokens are estimated are scheduled and charged like all others: no model computes past the queue."""

import asyncio
import json

import pytest
from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    raw_client,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

from router.edge.trust import PATHS, Use

CLIENTS = [{"name": "a", "keys": ["the-key-of-client-a"], "max_concurrent": 2, "tokens_per_minute": 100_000}]
KEY = {"authorization": "Bearer the-key-of-client-a"}
SOUND = b"RIFF" + bytes(64_000)
ESTIMATED = [each.path for each in PATHS if each.use is Use.ESTIMATED]
SOUNDS = [path for path in ESTIMATED if path.endswith(("transcriptions", "translations"))]


def test_only_what_takes_no_model_passes_unscheduled():
    assert {each.path for each in PATHS if each.use is Use.PASSED_THROUGH} == {
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    }
    assert len(ESTIMATED) >= 12


async def ask(gateway, path, **more):
    if path in SOUNDS:
        form = {"data": {"model": MODEL, **more}, "files": {"file": ("a.wav", SOUND, "audio/wav")}}
        return await gateway.http.post(path, headers=KEY, **form)
    body = {"model": MODEL, "input": "some words", "query": "q", "documents": ["a", "b"], **more}
    return await gateway.http.post(path, json=body, headers=KEY)


def spent(gateway):
    return 100_000 - gateway.gateway.clients.quota.accounts()["a"].tokens.level


@pytest.mark.parametrize("path", ESTIMATED)
async def test_they_wait_for_room_and_count_as_open(path):
    end, begun = asyncio.Event(), 0

    async def script(_asked, writer):
        nonlocal begun
        begun += 1
        await end.wait()
        writer.write(whole_answer(b'{"text": "what was said", "usage": {"type": "duration", "seconds": 4}}'))

    async with (
        scripted_worker(script) as worker,
        running_gateway([{"url": worker.url, "max_num_seqs": 1}], clients=CLIENTS) as gateway,
    ):
        tasks = [asyncio.create_task(ask(gateway, path)) for _ in range(2)]
        await until(lambda: gateway.held()[f"{MODEL} queued"] == 1)
        assert gateway.held()["a leases"] == 2
        assert (await ask(gateway, path)).status_code == 429  # its third at once
        assert begun == 1
        end.set()
        for answer in await asyncio.gather(*tasks):
            assert answer.json()["text"] == "what was said"
        await gateway.at_rest()
        assert begun == 2
        lines = [line for line in gateway.lines() if line["outcome"] == "completed"]
        assert all(line["reason"] and line["worker"] == worker.url for line in lines)
        assert lines[0]["input_tokens"] >= (len(SOUND) // 320 if path in SOUNDS else 10)
        assert spent(gateway) > 0 or gateway.gateway.clients.quota.accounts()["a"].tokens.level == 100_000


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/audio/transcriptions"])
async def test_what_the_worker_reports_is_charged(path):
    async def script(_asked, writer):
        usage = {"prompt_tokens": 40_000, "completion_tokens": 7, "total_tokens": 40_007}
        writer.write(whole_answer(json.dumps({"results": [], "usage": usage}).encode()))

    async with (
        scripted_worker(script) as worker,
        running_gateway([worker.url], clients=CLIENTS) as gateway,
    ):
        statuses = [(await ask(gateway, path)).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        line = gateway.lines()[0]
        assert (line["input_tokens"], line["output_tokens"]) == (40_000, 7)
        await gateway.at_rest()


async def test_a_streamed_transcription_passes_as_it_comes_and_is_charged_by_its_events():
    go_on = asyncio.Event()

    async def script(_asked, writer):
        writer.write(STREAM_HEAD + b'data: {"delta": "what"}\n\n')
        await writer.drain()
        await go_on.wait()
        writer.write(b'data: {"delta": "was"}\n\ndata: [DONE]\n\n')

    async with scripted_worker(script) as worker, running_gateway([worker.url], clients=CLIENTS) as gateway:
        asked = {"data": {"model": MODEL, "stream": "true"}, "files": {"file": ("a.wav", SOUND, "audio/wav")}}
        async with gateway.http.stream("POST", SOUNDS[0], headers=KEY, **asked) as answer:
            pieces = answer.aiter_bytes()
            assert b"what" in await anext(pieces)
            go_on.set()
            assert b"[DONE]" in b"".join([piece async for piece in pieces])
        await gateway.at_rest()
        [line] = gateway.lines()
        assert (line["outcome"], line["output_tokens"]) == ("completed", 3)


async def test_a_client_that_leaves_ends_one_that_waits_and_one_that_runs():
    async def script(_asked, writer):
        await asyncio.sleep(60)

    async with (
        scripted_worker(script) as worker,
        running_gateway([{"url": worker.url, "max_num_seqs": 1}], clients=CLIENTS) as gateway,
    ):
        body = json.dumps({"model": MODEL, "input": "x"}).encode()
        head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: g\r\nauthorization: {KEY['authorization']}\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        async with raw_client(gateway.port) as first, raw_client(gateway.port) as second:
            await first.send(whole)
            await until(lambda: worker.bodies)
            await second.send(whole)
            await until(lambda: gateway.held()[f"{MODEL} queued"] == 1)
            second.vanish()
            first.vanish()
        await gateway.at_rest()
        assert worker.bodies == [body]
        assert gateway.outcomes()["cancelled"] == 2


async def test_one_that_fails_is_tried_on_another_worker():
    async def broken(_asked, writer):
        writer.write(whole_answer(b"{}", "500 Internal Server Error"))

    async def well(_asked, writer):
        writer.write(whole_answer(b'{"text": "said"}'))

    async with (
        scripted_worker(broken) as bad,
        scripted_worker(well) as good,
        running_gateway([bad.url, good.url]) as gateway,
    ):
        for path in (*ESTIMATED, *ESTIMATED):
            answer = await ask(gateway, path)
            assert answer.json() == {"text": "said"}, path
        assert bad.bodies
        await gateway.at_rest()


async def test_bodies_are_salted_where_caches_are_separate():
    async def script(_asked, writer):
        writer.write(whole_answer(b"{}"))

    async with (
        scripted_worker(script) as worker,
        running_gateway([worker.url], clients=CLIENTS, isolation={"caches": "separate"}) as gateway,
    ):
        for path in ESTIMATED:
            if path not in SOUNDS:
                for sent in ({}, {"cache_salt": "mine"}):
                    assert (await ask(gateway, path, **sent)).status_code == 200
                    assert worker.asked[-1].pop("cache_salt") not in (None, "mine")
        await gateway.at_rest()
