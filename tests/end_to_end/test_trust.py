"""The boundary over sockets: what does not exist is a 404, and a worker hears nothing of it."""

import json

import pytest
from gateway_under_test import MODEL, post, raw_client, running_gateway, scripted_worker, whole_answer

from router.edge.trust import PATHS, Use

CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
ANSWER = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()
DANGEROUS = ("pause", "sleep", "load_lora_adapter", "collective_rpc", "reset_prefix_cache", "invocations")


async def answer(_asked, writer):
    writer.write(whole_answer(ANSWER))


def disguises():
    for name in DANGEROUS:
        yield from (f"/{name}", f"/{name}/", f"//{name}", f"/v1/{name}", f"/v1/{name}/", f"/v1//{name}")
        for dots in ("..", "%2e%2e", "%2E.", ".%2e", "..;", "%252e%252e", "..%2f..", "..%5c", "..\\"):
            yield f"/v1/{dots}/{name}"
            yield f"{CHAT}/{dots}/{dots}/{dots}/{name}"
            yield f"/v1/responses/{dots}/{dots}/{name}"
        yield f"/v1/..%2f{name}"
        yield f"/v1/x/..%2F..%2f{name}"
        yield f"/v1%2f..%2f{name}"
        yield f"/./{name}"
        yield f"/v1/responses/a%2f..%2f..%2f..%2f{name}/cancel"


async def test_no_disguise_of_a_path_reaches_a_worker():
    async with scripted_worker(answer) as worker, running_gateway([worker.url]) as gateway:
        async with raw_client(gateway.port) as client:
            for path in disguises():
                await client.send(post(path, ASK))
                said = await client.answer()
                assert (path, said.status) == (path, 404)
                assert worker.url.encode() not in said.body
        assert worker.bodies == []
        await gateway.at_rest()


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1/completions/", "/v1/messages/?a=1"])
async def test_a_slash_at_the_end_of_a_routed_path_is_scheduled_like_the_path_itself(path):
    async with scripted_worker(answer) as worker, running_gateway([worker.url]) as gateway:
        said = await gateway.http.post(path, json={**ASK, "prompt": "x"})
        assert said.status_code == 200
        [line] = gateway.lines()
        assert line["path"] == path.partition("?")[0][:-1]
        assert line["reason"]
        assert len(worker.bodies) == 1
        await gateway.at_rest()


async def test_what_is_refused_says_why_and_reaches_no_worker():
    async with scripted_worker(answer) as worker, running_gateway([worker.url]) as gateway:
        for refused in (each for each in PATHS if each.use is Use.REFUSED):
            for path in (refused.path, refused.path + "/"):
                said = await gateway.http.post(path, json=ASK)
                assert said.status_code == 404
                assert refused.what in said.json()["error"]["message"]
        assert worker.bodies == []
        await gateway.at_rest()


async def test_of_a_client_a_worker_hears_only_what_it_may():
    heard = []

    async def hear(asked, writer):
        heard.append(asked)
        writer.write(whole_answer(ANSWER))

    reserved = {"priority": -9, "kv_transfer_params": {"remote_host": "10.6.6.6"}, "ec_transfer_params": {"a": 1}}
    async with scripted_worker(hear) as worker, running_gateway([worker.url]) as gateway:
        for path in (CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/tokenize"):
            asked = {**ASK, "prompt": "x", "input": "x"}
            said = await gateway.http.post(path, json={**asked, **reserved, "vllm_xargs": reserved})
            assert said.status_code == 200
            assert heard.pop() == {**asked, "vllm_xargs": {}}
        await gateway.at_rest()


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect", "304 Not Modified"])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_no_redirect_of_a_worker_reaches_a_client(status, path):
    async def redirect(_asked, writer):
        location = b"location: http://10.6.6.6:8000/v1/chat/completions\r\ncontent-length: 0\r\n\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n".encode() + location)

    async with scripted_worker(redirect) as worker, running_gateway([worker.url]) as gateway:
        said = await gateway.http.post(path, json=ASK)
        assert said.status_code == 502
        assert "location" not in said.headers
        assert "10.6.6.6" not in said.text
        await gateway.at_rest()
