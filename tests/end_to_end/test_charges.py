"""What a request costs its client's token limit: what was computed for it, however it ends, and nothing else."""

import asyncio
import json

import pytest
from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    post,
    raw_client,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

from router.control.parties import quotas

LIMIT = 6000
CLIENTS = [{"name": "a", "keys": ["key-a"], "tokens_per_minute": LIMIT}]
KEY = {"authorization": "Bearer key-a"}
CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000}
DONE = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 10}}).encode()


@pytest.fixture(autouse=True)
def _nothing_comes_back(monkeypatch):
    monkeypatch.setattr(quotas._Bucket, "fill", lambda *_: None)


def spent(gateway):
    """Tokens missing in the client's bucket."""
    return LIMIT - gateway.gateway.clients.quota.accounts()["a"].tokens.level


def chunk(number):
    choice = {"index": 0, "delta": {"content": f"w{number}"}, "finish_reason": None}
    event = {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


async def ask(gateway, **more):
    return await gateway.http.post(CHAT, json={**ASK, **more}, headers=KEY)


def answering(*answers):
    """A script that gives one answer after the other, then the last one again."""
    left = list(answers)

    async def script(_asked, writer):
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return script


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (whole_answer(b"{}", "500 Internal Server Error"), 502),
        (whole_answer(b"{}", "400 Bad Request"), 400),
        (whole_answer(b"{}", "422 Unprocessable Entity"), 422),
        (whole_answer(b"{}", "503 Service Unavailable"), 429),
        (whole_answer(b"{}", "429 Too Many Requests"), 429),
        (whole_answer(b"{}", "401 Unauthorized"), 502),
        (b"garbage\r\n\r\n", 502),
        (b"", 502),
        (whole_answer(b"<html>", kind="text/html"), 502),
    ],
)
async def test_requests_that_come_to_nothing_cost_nothing(answer, status):
    tries = 4
    async with (
        scripted_worker(answering(answer)) as worker,
        running_gateway([worker.url], clients=CLIENTS, limits={"attempts": 2}) as gateway,
    ):
        for stream in (False, True) * (tries // 2):
            assert (await ask(gateway, stream=stream)).status_code == status
            assert spent(gateway) == 0
        worker.script = answering(whole_answer(DONE))
        await until(lambda: gateway.gateway.pools.members[worker.url].worker.routable)
        answer = await ask(gateway)
        assert answer.status_code == 200, answer.text
        assert spent(gateway) == 15
        await gateway.at_rest()


async def test_requests_that_no_worker_takes_cost_nothing():
    async with running_fleet(1, clients=CLIENTS) as fleet:
        fleet.gateway.gateway.fleet.drain(fleet.workers[0].url)
        await until(lambda: not fleet.gateway.gateway.pools.usable(MODEL))
        for _ in range(4):
            assert (await ask(fleet.gateway)).status_code == 503
        assert spent(fleet.gateway) == 0
        fleet.gateway.gateway.fleet.undrain(fleet.workers[0].url)
        await until(lambda: fleet.gateway.gateway.pools.usable(MODEL))
        assert (await ask(fleet.gateway, max_tokens=5)).status_code == 200


async def test_a_request_that_waits_too_long_or_whose_client_leaves_the_queue_costs_nothing():
    slow = {"model": MODEL, "profile": "h100-llama-3.1-8b", "max_num_seqs": 1}
    async with running_fleet(
        1, slow, worker={"max_num_seqs": 1}, clients=CLIENTS, limits={"queue_wait_s": 0.3}
    ) as fleet:
        running = asyncio.create_task(ask(fleet.gateway, max_tokens=2000, ignore_eos=True))
        await until(lambda: fleet.running == 1)
        before = spent(fleet.gateway)
        assert (await ask(fleet.gateway, max_tokens=1000)).status_code == 429
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(CHAT, {**ASK, "max_tokens": 1000}, "authorization: Bearer key-a"))
            await until(lambda: fleet.gateway.held()[f"{MODEL} queued"] == 1)
            client.vanish()
        await until(lambda: fleet.gateway.held()[f"{MODEL} queued"] == 0)
        assert spent(fleet.gateway) == before
        running.cancel()
        await fleet.at_rest()


def streaming(count, end):
    """A stream of `tokens` tokens; then `end` has to be set, and the connection breaks."""

    async def script(_asked, writer):
        writer.write(STREAM_HEAD)
        for number in range(count):
            writer.write(chunk(number))
            if number % 50 == 0:
                await writer.drain()
                await asyncio.sleep(0.001)
        await writer.drain()
        await end.wait()

    return script


async def tokens(client, count):
    """Read a number of tokens of an answer."""
    seen = b""
    while seen.count(b"data: ") < count:
        seen += await client.reader.read(65536)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("count", [3, 980])
async def test_a_client_that_leaves_is_charged_what_has_come(path, count):
    end = asyncio.Event()
    async with (
        scripted_worker(streaming(count, end)) as worker,
        running_gateway([worker.url], clients=CLIENTS) as gateway,
    ):
        asked = {**ASK, "prompt": "Hi", "max_tokens": 1000, "stream": True}
        async with raw_client(gateway.port) as client:
            await client.send(post(path, asked, "authorization: Bearer key-a"))
            await tokens(client, count)
            client.vanish()
        await gateway.at_rest()
        assert count <= spent(gateway) <= count + 20
        end.set()


async def test_answers_that_are_aborted_before_their_end_do_not_pass_the_limit():
    end = asyncio.Event()
    async with (
        scripted_worker(streaming(980, end)) as worker,
        running_gateway([worker.url], clients=CLIENTS) as gateway,
    ):
        asked = {**ASK, "max_tokens": None, "stream": True}  # what is expected of it is far less than what comes
        let_in = 0
        for _ in range(20):
            async with raw_client(gateway.port) as client:
                await client.send(post(CHAT, asked, "authorization: Bearer key-a"))
                if (await client.reader.readline()).split()[1] == b"200":
                    let_in += 1
                    await tokens(client, 980)
                client.vanish()
            await gateway.at_rest()
        assert 6 <= let_in <= 7
        end.set()


@pytest.mark.parametrize("count", [1, 700])
async def test_an_answer_that_breaks_off_costs_what_has_come(count):
    end = asyncio.Event()
    end.set()
    async with (
        scripted_worker(streaming(count, end)) as worker,
        running_gateway([worker.url], clients=CLIENTS) as gateway,
    ):
        answer = await ask(gateway, stream=True)
        assert "error" in answer.text
        await gateway.at_rest()
        assert count <= spent(gateway) <= count + 20


async def test_what_is_cancelled_in_the_prefill_costs_a_part_of_the_prompt_and_no_answer():
    slow = {"model": MODEL, "profile": "h100-llama-3.1-8b", "speed": 0.05}
    async with running_fleet(1, slow, clients=CLIENTS) as fleet:
        async with raw_client(fleet.gateway.port) as client:
            asked = {**ASK, "messages": [{"role": "user", "content": "word " * 2000}], "stream": True}
            await client.send(post(CHAT, asked, "authorization: Bearer key-a"))
            await until(lambda: fleet.running == 1)
            client.vanish()
        await fleet.at_rest()
        assert spent(fleet.gateway) <= 2500
