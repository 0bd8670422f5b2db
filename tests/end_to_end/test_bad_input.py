"""Whatever is sent: the right status, an error in the API's shape, a process that lives, nothing left behind."""

import asyncio
import json
import os
from functools import partial

import pytest
from gateway_under_test import (
    MODEL,
    post,
    raw_client,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

from router.edge import connection as listener
from router.edge.execution import lifecycle as life
from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GOOD = {"model": MODEL, "prompt": "x", "max_tokens": 2}


def is_openai_error(answer, status, words=""):
    """Status, and a body of the one shape that clients know."""
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert words in error["message"]
    return True


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses", "/v1/embeddings", "/tokenize", "/v1/rerank"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "tiny"', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"{}}", "not valid JSON"),
        (b"\x00" * 100, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"5", "must be a JSON object"),
    ],
)
async def test_what_is_no_json_object_is_refused_with_400(shared_fleet, path, body, words):
    if not body and path in ("/tokenize", "/v1/rerank"):
        pytest.skip("what passes through may be empty; the worker judges it")
    async with raw_client(shared_fleet.gateway.port) as client:
        await client.send(post(path, body))
        answer = await client.answer()
        assert answer.status == 400
        assert words in answer.error()["message"]
        await client.send(post(TEXT, GOOD))  # the connection is still good
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, {"model": 5}),
        (CHAT, {"model": ["tiny"]}),
        (CHAT, {"model": {}}),
        (CHAT, {"messages": 5}),
        (CHAT, {"messages": "hello"}),
        (CHAT, {"messages": [5]}),
        (CHAT, {"messages": [[]]}),
        (CHAT, {"messages": [{"content": [5]}]}),
        (CHAT, {"n": "x"}),
        (CHAT, {"n": -1}),
        (CHAT, {"stream": "yes"}),
        (CHAT, {"stream": 1}),
        (CHAT, {"stream": {}}),
        (CHAT, {"stream": True, "stream_options": 5}),
        (CHAT, {"stream": True, "stream_options": []}),
        (CHAT, {"stream_options": {"include_usage": True}}),
        (CHAT, {"max_tokens": "many"}),
        (CHAT, {"max_tokens": -5}),
        (CHAT, {"tools": 5}),
        (CHAT, {"user": 5}),
        (TEXT, {"prompt": 5}),
        (TEXT, {"prompt": None}),
        (TEXT, {"prompt": [None]}),
        (TEXT, {"prompt": [1, "a"]}),
        (TEXT, {"prompt": [-1]}),
        (TEXT, {"prompt": [2**70]}),
        (TEXT, {"prompt": [1.5, 2]}),
        (TEXT, {"prompt": {}}),
        (TEXT, {"prompt": []}),
        ("/v1/responses", {"input": 5}),
        ("/v1/embeddings", {"input": {}}),
    ],
    ids=str,
)
async def test_wrong_types_are_refused_with_400(unhurt, path, field):
    good = {"model": MODEL, "max_tokens": 2}
    good |= {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    answer = await unhurt.http.post(path, json={**good, **field})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


async def test_a_huge_integer_or_a_deep_nest_does_no_harm(unhurt):
    for body in (
        {**GOOD, "max_tokens": 2**80},
        {**GOOD, "n": 2**63},
        {**GOOD, "priority": 10**30},
        {**GOOD, "seed": 10**40},
    ):
        answer = await unhurt.http.post(TEXT, json=body)
        assert answer.status_code in (200, 400)
    deep = b'{"prompt":"x","max_tokens":1,"a":' + b"[" * 900 + b"]" * 900 + b"}"
    assert (await unhurt.http.post(TEXT, content=deep, headers={"content-type": "application/json"})).is_success


async def test_a_prompt_that_is_too_long_gets_the_worker_s_own_refusal(unhurt):
    for stream in (False, True):
        answer = await unhurt.http.post(TEXT, json={**GOOD, "prompt": [5] * 3000, "stream": stream})
        assert is_openai_error(answer, 400, "maximum context length is 2048")


@pytest.mark.parametrize("framing", ["content-length", "chunked", "expect"])
async def test_the_client_of_a_body_of_50_mb_reads_why_it_is_too_large(framing):
    """Also one that writes all of it before it reads anything."""
    size = 50_000_000
    async with running_fleet(1) as fleet, raw_client(fleet.gateway.port) as client:
        piece = b"x" * 500_000
        if framing == "content-length":
            await client.send(post(CHAT, b"", length=size))
            for _ in range(size // len(piece)):
                await client.send(piece)
        elif framing == "expect":
            await client.send(post(CHAT, b"", "expect: 100-continue", length=size))
        else:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await client.send(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(size // len(piece)):
                await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.send(b"0\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 413
        assert "33554432" in answer.error()["message"]
        assert answer.closed
        assert fleet.gateway.outcomes() == {"refused": 1}
        assert (await fleet.http.post(TEXT, json=GOOD)).status_code == 200
        await fleet.at_rest()


async def test_a_body_just_within_the_limit_is_taken(unhurt):
    body = json.dumps({**GOOD, "filler": "x" * 999_000}).encode()
    answer = await unhurt.http.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v1", "/v1/", "/v2/chat/completions", "/../etc/passwd", "/%00"]
)
async def test_an_unknown_path_is_a_404_that_says_so(unhurt, path):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        answer = await client.answer()
        assert (answer.status, answer.error()["code"]) == (404, 404)


@pytest.mark.parametrize("path", ["/pause", "/sleep", "/collective_rpc", "/reset_prefix_cache", "/shutdown"])
async def test_what_would_stop_a_worker_is_not_passed_on(unhurt, path):
    assert is_openai_error(await unhurt.http.post(path, json={}), 404)
    assert is_openai_error(
        await unhurt.http.post("/v1/load_lora_adapter", json={}), 404, "would change one worker"
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_a_wrong_method_is_a_405(unhurt, method):
    answer = await unhurt.http.request(method, CHAT)
    assert is_openai_error(answer, 405)
    assert is_openai_error(await unhurt.http.delete("/health"), 405)


async def test_head_has_no_body_and_options_no_trouble(unhurt):
    assert (await unhurt.http.head("/health")).status_code in (200, 405)
    assert (await unhurt.http.options(CHAT)).status_code in (200, 204, 405)


async def test_an_upload_that_breaks_off_leaves_nothing(unhurt):
    before = unhurt.gateway.outcomes()["cancelled"]
    for data in (post(CHAT, b'{"model"', length=5000), post(CHAT, b"")[:40]):
        async with raw_client(unhurt.gateway.port) as client:
            await client.send(data)
            await asyncio.sleep(0.05)
            client.vanish()
        await unhurt.at_rest()
    async with raw_client(unhurt.gateway.port) as client:  # half a close: the rest never comes
        await client.send(post(CHAT, b'{"model"', length=5000))
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
    await until(lambda: unhurt.gateway.outcomes()["cancelled"] == before + 2)


async def test_an_upload_that_never_ends_is_given_up(unhurt, monkeypatch):
    monkeypatch.setattr(life, "_UPLOAD_WITHIN_S", 0.2)
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(post(CHAT, b'{"model"', length=5000))
        answer = await client.answer()
        assert answer.status == 408
        assert answer.error()["type"] == "RequestTimeoutError"
        assert answer.closed


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-huge: " + b"a" * 50_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-endless: " + b"a" * 200_000,
        b"GET /health HTTP/1.1\r\n" + b"a" * 200_000,
        b"GET /" + b"a" * 200_000,
    ],
    ids=[
        "one huge header",
        "10,000 headers",
        "a long path",
        "an endless value",
        "an endless name",
        "an endless path",
    ],
)
async def test_a_flood_of_headers_is_refused_with_431(unhurt, head):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(head)
        answer = await client.answer()
        assert (answer.status, answer.closed) == (431, True)
        assert "16384 bytes" in answer.error()["message"]


async def test_a_flood_in_small_pieces_is_refused_as_well(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        for number in range(2000):
            client.writer.write(b"x-%d: yyyyyyyyyyyyyyyyyyyy\r\n" % number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert (await client.answer()).status == 431


async def test_headers_within_the_limit_are_counted_anew_for_each_request(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        for _ in range(5):
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 8000 + b"\r\n\r\n")
            assert (await client.answer()).status == 200


async def test_a_large_body_in_one_piece_with_its_head_is_no_flood(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        for _ in range(3):
            await client.send(post(TEXT, {**GOOD, "filler": "x" * 100_000}))
            assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 500,
        b"GET\r\n\r\n",
        b"hello, is anybody there?\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_with_400_and_closed(unhurt, garbage):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(garbage)
        answer = await client.answer()
        assert (answer.status, answer.closed) == (400, True)
        assert answer.error()["code"] == 400


async def test_random_bytes_never_hurt(unhurt):
    for _ in range(30):
        async with raw_client(unhurt.gateway.port) as client:
            await client.send(os.urandom(300) + b"\r\n\r\n")
            client.writer.write_eof()
            await asyncio.wait_for(client.reader.read(), 5)


async def test_garbage_behind_a_request_under_way_does_not_spoil_its_answer(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(post(TEXT, {**GOOD, "max_tokens": 300, "ignore_eos": True}) + b"\x00garbage\r\n\r\n")
        await asyncio.wait_for(client.reader.read(), 5)
    await unhurt.at_rest()


async def test_a_head_that_comes_too_slowly_ends(unhurt, monkeypatch):
    monkeypatch.setattr(listener, "HEAD_WITHIN_S", 0.3)
    for start in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\n"):
        async with raw_client(unhurt.gateway.port) as client:
            await client.send(start)

            async def drip(client=client, start=start):
                while start:
                    client.writer.write(b"x")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            try:
                await asyncio.wait_for(client.reader.read(), 3)
            finally:
                dripping.cancel()
    async with raw_client(unhurt.gateway.port) as client:  # a kept connection whose next head never ends
        await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        await client.send(b"GET /hea")
        assert await asyncio.wait_for(client.reader.read(), 3) == b""


async def test_a_request_that_takes_long_is_not_mistaken_for_a_slow_head(monkeypatch):
    monkeypatch.setattr(listener, "HEAD_WITHIN_S", 0.1)
    async with running_fleet(1, {"speed": 0.01}) as fleet:
        answer = await fleet.http.post(TEXT, json={**GOOD, "max_tokens": 30, "ignore_eos": True})
        assert answer.status_code == 200


async def test_pipelined_requests_are_answered_in_turn(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(post(TEXT, GOOD) + post(TEXT, {**GOOD, "stream": True}) + post("/nothing", {}))
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 404]


async def test_an_expectation_is_met(unhurt):
    async with raw_client(unhurt.gateway.port) as client:
        body = json.dumps(GOOD).encode()
        await client.send(post(TEXT, b"", "expect: 100-continue", length=len(body)))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await client.send(body)
        assert (await client.answer()).status == 200


async def test_a_websocket_is_refused_with_501(unhurt):
    head = "host: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\n"
    for path in ("/v1/realtime", "/v1/chat/completions", "/"):
        async with raw_client(unhurt.gateway.port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\n{head}sec-websocket-version: 13\r\n\r\n".encode())
            answer = await client.answer()
            assert answer.status == 501
            assert "WebSockets" in answer.error()["message"]


async def test_an_offer_of_http2_is_declined_by_answering(unhurt):
    """Java's client offers an upgrade with every first request."""
    upgrade = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with raw_client(unhurt.gateway.port) as client:
        await client.send(post(TEXT, GOOD, *upgrade))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["usage"]["completion_tokens"]) == (200, 2)
        if not answer.closed:
            await client.send(post(TEXT, GOOD))
            assert (await client.answer()).status == 200


async def test_keys_are_asked_for_before_the_body_is_taken_in():
    clients = [{"name": "team", "keys": ["right-key-0123456789"]}]
    async with running_fleet(clients=clients) as fleet:
        for headers, words in (
            ({}, "needed"),
            ({"authorization": "Bearer wrong"}, "not known"),
            ({"authorization": "Basic right-key-0123456789"}, "Bearer"),
            ({"x-api-key": "wrong"}, "not known"),
        ):
            for path in (CHAT, TEXT, "/tokenize", "/v1/responses/resp_1/cancel"):
                answer = await fleet.http.post(path, content=b"{", headers=headers)
                assert is_openai_error(answer, 401, words)
                assert "right-key" not in answer.text
        for headers in ({"authorization": "bearer right-key-0123456789"}, {"x-api-key": "right-key-0123456789"}):
            assert (await fleet.http.post(TEXT, json=GOOD, headers=headers)).status_code == 200
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(TEXT, b"", "expect: 100-continue", length=10_000_000))
            assert (await client.answer()).status == 401
        await fleet.at_rest()


async def test_an_unknown_model_is_a_404_and_two_models_need_a_name():
    one, other = SimulatorConfig(model="one", profile="instant"), SimulatorConfig(model="other", profile="instant")
    async with (
        simulated_worker(one) as a,
        simulated_worker(other) as b,
        running_gateway([a.url, b.url]) as gateway,
    ):
        answer = await gateway.http.post(TEXT, json={"model": "nope", "prompt": "x"})
        assert is_openai_error(answer, 404, "The model `nope` does not exist. Valid aliases: one, other.")
        assert answer.json()["error"]["type"] == "NotFoundError"
        answer = await gateway.http.post(TEXT, json={"prompt": "x"})
        assert is_openai_error(answer, 400, "`model` is missing, and there are several: one, other")
        for model in ("one", "other"):
            answer = await gateway.http.post(TEXT, json={"model": model, "prompt": "x", "max_tokens": 1})
            assert answer.json()["model"] == model
        await gateway.at_rest(a, b)
        labels = {labels["model"] for labels, count in gateway.series("fairlead_requests_total") if count}
        assert labels == {"one", "other", ""}


@pytest.mark.parametrize("kind", ["multipart/form-data", "Multipart/Form-Data"])
async def test_an_alias_in_a_form_reaches_the_worker_as_the_models_own_name(kind):
    async def script(_asked, writer):
        writer.write(whole_answer(b'{"text":"hello"}'))

    def body(model):
        head = b"--xx\r\ncontent-disposition: form-data; name="
        sound = head + b'"file"; filename="a.wav"\r\n\r\n' + b'name="model"\r\n' * 9999 + b"\r\n"
        return sound + head + b'"model"\r\n\r\n' + model + b"\r\n--xx--\r\n"

    async with (
        scripted_worker(script) as worker,
        running_gateway([worker.url], models={"whisper-1": MODEL}) as gateway,
    ):
        headers = {"content-type": f"{kind}; boundary=xx"}
        ask = partial(gateway.http.post, "/v1/audio/transcriptions", headers=headers)
        answer = await ask(content=body(b"whisper-1"))
        assert (answer.status_code, answer.json()) == (200, {"text": "hello"})
        assert worker.bodies == [body(MODEL.encode())]
        assert is_openai_error(await ask(content=body(b"whisper-1")[:-9]), 400, "before its closing boundary")
        assert is_openai_error(await ask(content=body(b"other")), 404, "`other` does not exist")
        assert len(worker.bodies) == 1


@pytest.mark.parametrize(
    "given",
    ["", "x" * 129, "a\x7fb", "a\tb", "é", 'quo"te\n'.strip() + "\x01"],
    ids=["empty", "too long", "delete", "tab", "not ascii", "control"],
)
async def test_a_nasty_request_id_is_replaced(shared_fleet, given):
    async with raw_client(shared_fleet.gateway.port) as client:
        await client.send(post(TEXT, GOOD, f"x-request-id: {given}"))
        answer = await client.answer()
        if answer.status == 400:  # the parser does not even let it in
            return
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 32


async def test_a_request_id_is_accepted_sent_on_returned_and_logged(unhurt):
    for body in (GOOD, {**GOOD, "stream": True}, {"model": "nope"}, {**GOOD, "n": "x"}):
        answer = await unhurt.http.post(TEXT, json=body, headers={"x-request-id": "mine-1/2:3"})
        assert answer.headers.get_list("x-request-id") == ["mine-1/2:3"]
    await unhurt.at_rest()  # a line is written when the answer has been
    assert [line["request_id"] for line in unhurt.gateway.lines()][-4:] == ["mine-1/2:3"] * 4
    received = [r.headers["x-request-id"] for r in unhurt.workers[0].app.received if r.method == "POST"]
    assert received[-3:] == ["mine-1/2:3"] * 3
    made = [(await unhurt.http.post(TEXT, json=GOOD)).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2


async def test_one_id_for_several_requests_at_once_is_no_trouble(unhurt):
    send = [unhurt.http.post(TEXT, json=GOOD, headers={"x-request-id": "same"}) for _ in range(20)]
    assert {answer.status_code for answer in await asyncio.gather(*send)} == {200}


async def test_anthropic_s_surface_gets_anthropic_s_errors(unhurt):
    path = "/v1/messages"
    good = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for body, status in ((b"{", 400), (b"[]", 400), ({**good, "model": "nope"}, 404), ({**good, "model": 5}, 400)):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await unhurt.http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert answer.json()["type"] == "error"
        assert set(answer.json()["error"]) == {"type", "message"}
    assert (await unhurt.http.post(path, json=good)).json()["type"] == "message"


async def test_no_secret_and_no_prompt_stands_in_the_log():
    clients = [{"name": "team", "keys": ["right-key-0123456789"]}]
    async with running_fleet(clients=clients) as fleet:
        headers = {"authorization": "Bearer right-key-0123456789"}
        body = {**GOOD, "prompt": "a private matter"}
        await fleet.http.post(TEXT, json=body, headers=headers)
        await fleet.http.post(TEXT, json={**body, "model": 5}, headers=headers)
        await fleet.http.post(TEXT, json=body, headers={"authorization": "Bearer wrong-key-42"})
        text = json.dumps(fleet.gateway.lines())
        assert "private" not in text
        assert "-key-" not in text
        assert [line["client"] for line in fleet.gateway.lines()] == ["team", "team", ""]


async def test_a_name_of_megabytes_is_cut_in_the_answer_and_in_the_log():
    async with running_fleet(1) as fleet:
        answer = await fleet.http.post(TEXT, json={**GOOD, "model": "m" * 5_000_000})
        is_openai_error(answer, 404, "mmm…` does not exist")
        is_openai_error(await fleet.http.get("/" + "p" * 5_000), 404, "ppp…: Not Found")
        await fleet.http.post("/v1/" + "p" * 5_000, json=GOOD)
        is_openai_error(await fleet.http.get("/v1/models/" + "m" * 5_000), 404, "mmm…` does not exist")
        lines = fleet.gateway.lines()
        assert "does not exist" in lines[0]["error"]
        assert max(len(json.dumps(line)) for line in lines) < 2_000
        assert len(answer.content) < 1_000
        await fleet.at_rest()
