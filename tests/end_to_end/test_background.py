"""Responses in the background hold their place until they have ended, however that comes about."""

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
    until,
    whole_answer,
)

SLOW = {"model": MODEL, "profile": "h100-llama-3.1-8b", "max_num_seqs": 2}
LONG = {"model": MODEL, "input": "Count to a million", "max_output_tokens": 20_000, "ignore_eos": True}
CLIENTS = [{"name": "a", "keys": ["key-a"], "max_concurrent": 2, "tokens_per_minute": 1_000_000}]
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"one"}\n\n'
KEY = {"authorization": "Bearer key-a"}


def in_background(**fields):
    return {**LONG, "background": True, **fields}


async def start(fleet, **fields):
    """A response in the background: its id."""
    answer = await fleet.http.post("/v1/responses", json=in_background(**fields), headers=KEY)
    assert (answer.status_code, answer.json().get("status")) == (200, "queued"), answer.text
    return answer.json()["id"]


async def cancel(fleet, response):
    answer = await fleet.http.post(f"/v1/responses/{response}/cancel", headers=KEY)
    assert answer.status_code == 200, answer.text


async def test_what_runs_in_the_background_counts_as_open_until_it_has_ended():
    async with running_fleet(1, SLOW, clients=[{**CLIENTS[0], "max_concurrent": 3}]) as fleet:
        responses = [await start(fleet) for _ in range(3)]
        for fields in ({}, {"background": False}, {"stream": True}):
            refused = await fleet.http.post("/v1/responses", json=in_background(**fields), headers=KEY)
            assert refused.status_code == 429, refused.text
        assert fleet.running == 3
        held = fleet.gateway.held()
        assert (held["open"], held["at control"], held["a leases"]) == (3, 3, 3)
        assert held[f"{fleet.workers[0].url} open"] == 3
        stored = fleet.workers[0].app.inference._stored
        for response in responses:
            fleet.workers[0].live.abort(stored[response].call)  # who cancels makes a request like others
            stored[response].cancelled = True
        await fleet.at_rest()
        assert fleet.gateway.outcomes()["cancelled"] == 3


async def test_no_more_run_on_a_worker_than_have_room_there():
    async with running_fleet(1, SLOW, worker={"max_num_seqs": 2}) as fleet:
        first, second = [await start(fleet) for _ in range(2)]
        third = asyncio.create_task(start(fleet, max_output_tokens=4))
        await until(lambda: fleet.gateway.held()[f"{MODEL} queued"] == 1)
        assert fleet.running == 2
        await cancel(fleet, first)
        response = await third
        await until(lambda: fleet.running == 1)
        status = (await fleet.http.get(f"/v1/responses/{response}")).json()["status"]
        assert status == "incomplete"
        await cancel(fleet, second)
        await fleet.at_rest()


@pytest.mark.parametrize("stream", [False, True])
async def test_its_tokens_are_charged_as_the_worker_reports_them(stream):
    clients = [{**CLIENTS[0], "tokens_per_minute": 10_000}]
    async with running_fleet(1, clients=clients) as fleet:
        asked = in_background(max_output_tokens=500, stream=stream)
        answer = await fleet.http.post("/v1/responses", json=asked, headers=KEY)
        assert answer.status_code == 200
        await fleet.at_rest()
        [line] = fleet.gateway.lines()
        assert (line["outcome"], line["output_tokens"]) == ("completed", 500)


async def test_a_stream_in_the_background_holds_its_place_although_its_client_has_left():
    async with running_fleet(1, SLOW, clients=CLIENTS) as fleet:
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post("/v1/responses", in_background(stream=True), "authorization: Bearer key-a"))
            head = await client.reader.readuntil(b"response.output_text.delta")
            client.vanish()
        response = json.loads(head.partition(b"data: ")[2].partition(b"\n")[0])["response"]["id"]
        await asyncio.sleep(0.3)
        assert fleet.running == 1
        assert fleet.gateway.held()["a leases"] == 1
        await cancel(fleet, response)
        await fleet.at_rest()


async def test_a_client_that_leaves_while_it_waits_gives_its_place_up():
    async with running_fleet(1, SLOW, worker={"max_num_seqs": 1}) as fleet:
        first = await start(fleet)
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post("/v1/responses", in_background()))
            await until(lambda: fleet.gateway.held()[f"{MODEL} queued"] == 1)
            client.vanish()
        await until(lambda: fleet.gateway.held()[f"{MODEL} queued"] == 0)
        await cancel(fleet, first)
        await fleet.at_rest()
        assert fleet.workers[0].app.inference.started == 1


async def test_a_worker_that_is_removed_stays_until_it_has_ended():
    async with running_fleet(2, SLOW, clients=CLIENTS) as fleet:
        response = await start(fleet)
        [busy] = [worker for worker in fleet.workers if worker.engine.running]
        members = fleet.gateway.gateway.pools.members
        fleet.gateway.gateway.fleet.apply(())
        await until(lambda: list(members) == [busy.url])
        await cancel(fleet, response)
        await until(lambda: not members)
        await fleet.at_rest()


async def test_the_end_of_its_worker_is_its_own():
    async with running_fleet(2, SLOW, clients=CLIENTS) as fleet:
        await start(fleet)
        [busy] = [worker for worker in fleet.workers if worker.engine.running]
        await busy.stop()
        await until(lambda: fleet.gateway.outcomes()["failed"] == 1)
        await fleet.gateway.at_rest()


class Storing:
    """A worker with one response, of which it says what a test wants; then it says the last of it again."""

    def __init__(self, *says):
        self.says = list(says)
        self.polls = 0
        self.heads = []

    async def serve(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            writer.close()
            return
        self.heads.append(head.partition("\r\n")[0])
        if head.startswith("GET /v1/responses/"):
            self.polls += 1
            writer.write(self.says[min(self.polls, len(self.says)) - 1])
        elif head.startswith("GET"):
            models = {"object": "list", "data": [{"id": MODEL, "root": MODEL, "parent": None}]}
            writer.write(whole_answer(json.dumps(models).encode()))
        elif b'"stream":true' in await reader.read(65536):
            queued = {"type": "response.created", "response": {"id": "resp_1", "status": "queued"}}
            event = json.dumps(queued, separators=(",", ":")).encode()
            writer.write(STREAM_HEAD + b"event: response.created\ndata: " + event + b"\n\n" + DELTA)
            await writer.drain()
            await reader.read(1)
        else:
            writer.write(whole_answer(b'{"id":"resp_1","status":"queued"}'))
        writer.close()


def says(status, **more):
    return whole_answer(json.dumps({"id": "resp_1", "status": status, **more}).encode())


async def ended(*answers, stream=False, **settings):
    """The worker and the log line of a background response of which it says this."""
    worker = Storing(*answers)
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with running_gateway([url], clients=CLIENTS, **settings) as gateway:
            asked = json.dumps(in_background(stream=stream), separators=(",", ":")).encode()
            async with raw_client(gateway.port) as client:
                await client.send(post("/v1/responses", asked, "authorization: Bearer key-a"))
                await client.reader.readuntil(b"queued")
                assert gateway.held()["a leases"] == 1
                await until(gateway.lines)
                await gateway.at_rest()
            [line] = gateway.lines()
            return worker, line
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answers", "outcome", "stream"),
    [
        ((says("queued"), says("in_progress"), says("completed", usage={"input_tokens": 5})), "completed", False),
        ((says("incomplete"),), "completed", False),
        ((says("cancelled"),), "cancelled", False),
        ((says("cancelled"),), "cancelled", True),
        ((says("in_progress"), says("failed")), "failed", False),
        ((says("failed"),), "failed", True),
        ((whole_answer(b"{}", "404 Not Found"),), "failed", False),
        ((whole_answer(b"{}", "500 Internal Server Error"),), "failed", False),
        ((b"",), "failed", False),
        ((whole_answer(b"no json"),), "failed", True),
    ],
)
async def test_its_place_is_free_after_every_ending(answers, outcome, stream):
    _, line = await ended(*answers, stream=stream)
    assert line["outcome"] == outcome


async def test_one_that_takes_too_long_is_cancelled():
    worker, line = await ended(says("in_progress"), timeouts={"whole_answer_s": 0.3})
    assert line["outcome"] == "failed"
    assert "POST /v1/responses/resp_1/cancel HTTP/1.1" in worker.heads


async def test_where_they_are_refused_the_worker_hears_nothing():
    async with running_fleet(1, limits={"background_responses": "refused"}) as fleet:
        for yes in (True, 1, "true", "YES", "on", [1]):
            answer = await fleet.http.post("/v1/responses", json=in_background(background=yes))
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")
        assert fleet.workers[0].app.inference.started == 0
        for no in (False, None):
            answer = await fleet.http.post("/v1/responses", json=in_background(max_output_tokens=2, background=no))
            assert answer.status_code == 200, answer.text


async def test_an_id_that_is_no_part_of_a_path_is_refused():
    async with running_fleet(1) as fleet:
        for bad in ("a/../../../pause", "a?b", "a b", "a%2f", "a\r\nx: y"):
            answer = await fleet.http.post("/v1/responses", json=in_background(request_id=bad))
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")
        assert fleet.workers[0].app.inference.started == 0
