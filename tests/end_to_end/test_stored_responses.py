"""Stored responses over sockets: the key that made one may name it, and to all others it does not exist."""

import asyncio
import json

import pytest
from gateway_under_test import MODEL, running_fleet, running_gateway, scripted_worker, whole_answer

from router.control import response_owners

CLIENTS = [{"name": "a", "keys": ["key-a", "another-key-of-a"]}, {"name": "b", "keys": ["key-b"]}]
ASK = {"model": MODEL, "input": "my secret", "max_output_tokens": 4}


def key(name):
    return {"authorization": f"Bearer {name}"}


async def stored(fleet, who="key-a", **fields):
    answer = await fleet.http.post("/v1/responses", json={**ASK, **fields}, headers=key(who))
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        return answer.json()["id"]
    first = next(line for line in answer.text.splitlines() if line.startswith("data: "))
    return json.loads(first[6:])["response"]["id"]


def naming(response):
    """Every way to name a response."""
    path = f"/v1/responses/{response}"
    yield "GET", path, None
    yield "GET", f"{path}?stream=true&starting_after=0", None
    yield "GET", path + "/", None
    yield "DELETE", path, None
    yield "POST", f"{path}/cancel", {}
    yield "GET", f"{path}/input_items", None
    yield "POST", "/v1/responses", {**ASK, "previous_response_id": response}
    yield "POST", "/v1/responses", {**ASK, "previous_response_id": response, "stream": True}
    yield "POST", "/v1/responses/", {**ASK, "previous_response_id": response, "background": True}
    yield "POST", "/v1/responses", {**ASK, "conversation": response}
    yield "POST", "/v1/responses", {**ASK, "conversation": {"id": response}}
    yield "POST", "/v1/responses", {**ASK, "input": [{"type": "item_reference", "id": response}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreign_key_is_told_what_is_told_of_a_response_that_does_not_exist(stream):
    async with running_fleet(2, clients=CLIENTS) as fleet:
        response = await stored(fleet, stream=stream)
        seen = [len(worker.app.received) for worker in fleet.workers]
        for foreign, unknown in zip(naming(response), naming("resp_unknown"), strict=True):
            said = []
            for method, path, body in (foreign, unknown):
                answer = await fleet.http.request(method, path, json=body, headers=key("key-b"))
                assert answer.status_code == 404, (method, path, body, answer.text)
                said.append(answer.text.replace(response, "ID").replace("resp_unknown", "ID"))
                assert "my secret" not in answer.text
            assert said[0] == said[1]
        asked = [path for worker, start in zip(fleet.workers, seen, strict=True) for path in paths(worker, start)]
        assert asked == []
        for own in ("key-a", "another-key-of-a"):
            assert (await fleet.http.get(f"/v1/responses/{response}", headers=key(own))).status_code == 200
        again = {"previous_response_id": response}
        assert await stored(fleet, **again) != response
        await fleet.at_rest()


def paths(worker, start):
    return [one.path for one in list(worker.app.received)[start:] if one.path.startswith("/v1/responses")]


async def test_a_key_is_needed_to_name_one_at_all():
    async with running_fleet(1, clients=CLIENTS) as fleet:
        response = await stored(fleet)
        for method, path, body in naming(response):
            for headers in ({}, key("wrong")):
                answer = await fleet.http.request(method, path, json=body, headers=headers)
                assert answer.status_code == 401, (method, path, body)


async def test_what_is_forgotten_exists_for_nobody(monkeypatch):
    monkeypatch.setattr(response_owners, "MOST", 2)
    async with running_fleet(1, clients=CLIENTS) as fleet:
        first, *others = [await stored(fleet) for _ in range(3)]
        for who in ("key-a", "key-b"):
            assert (await fleet.http.get(f"/v1/responses/{first}", headers=key(who))).status_code == 404
        for kept in others:
            assert (await fleet.http.get(f"/v1/responses/{kept}", headers=key("key-a"))).status_code == 200


async def test_a_response_cannot_be_stored_under_the_id_of_another_key():
    async def answer(asked, writer):
        body = {"id": asked.get("request_id", "resp_1"), "status": "completed", "output": []}
        writer.write(whole_answer(json.dumps(body).encode()))

    async with (
        scripted_worker(answer) as worker,
        running_gateway([worker.url], clients=CLIENTS) as gateway,
    ):

        async def store(who, **fields):
            return await gateway.http.post("/v1/responses", json={**ASK, **fields}, headers=key(who))

        for mine in ("chosen-by-a", "resp_chosen_by_a"):
            assert (await store("key-a", request_id=mine)).status_code == 200
            assert (await store("key-a", request_id=mine)).status_code == 200
            taken = await store("key-b", request_id=mine)
            assert taken.status_code == 400
            assert taken.json()["error"]["param"] == "request_id"
            assert (await store("key-b", previous_response_id=mine)).status_code == 404
            assert (await store("key-a", previous_response_id=mine)).status_code == 200
        assert (await store("key-a", request_id="x" * 300)).status_code == 400
        # A worker that answers under another client's id does not give it away.
        assert (await store("key-a")).status_code == (await store("key-b")).status_code == 200
        assert (await store("key-b", previous_response_id="resp_1")).status_code == 404
        assert [asked.get("request_id") for asked in worker.asked].count("chosen-by-a") == 2
        await gateway.at_rest()


async def test_without_keys_everybody_is_one():
    async with running_fleet(2) as fleet:
        responses = await asyncio.gather(*(stored(fleet, user=f"u{number}") for number in range(4)))
        for response in responses:
            assert (await fleet.http.get(f"/v1/responses/{response}")).status_code == 200
