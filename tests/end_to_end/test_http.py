"""HTTP/1.1 and 1.0 towards clients as RFC 9112 says, byte for byte: framing, pipelines, broken answers, CORS."""

import asyncio
import gzip
import json
import logging
import random
import zlib

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

from workers.simulator.faults import Fault

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
SHORT = {"model": MODEL, "prompt": "x", "max_tokens": 4, "ignore_eos": True}
LONG = {**SHORT, "max_tokens": 5000}
SLOW = {"speed": 0.02}
EVENT = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


async def everything(client):
    """All that comes until the end of the connection, and whether it was reset."""
    received = b""
    async with asyncio.timeout(20):
        while True:
            try:
                piece = await client.reader.read(1 << 16)
            except ConnectionError:
                return received, True
            if not piece:
                return received, False
            received += piece


# -- answers that break off


def breaks_off(kind, *pieces):
    async def say(_asked, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0.05)

    return say


@pytest.mark.parametrize("kind", [b"audio/mpeg", b"application/json", b"text/plain", b"application/x-ndjson"])
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/tokenize", "/pooling"])
async def test_an_answer_that_breaks_off_has_no_end_and_nothing_is_glued_to_it(kind, path):
    async with (
        scripted_worker(breaks_off(kind, b"one", b"two")) as worker,
        running_gateway([worker.url]) as gateway,
    ):
        async with raw_client(gateway.port) as client:
            await client.send(post(path, {"model": MODEL, "input": "x"}))
            received, _ = await everything(client)
        assert received.endswith(b"3\r\none\r\n3\r\ntwo\r\n")
        await gateway.at_rest()
        assert gateway.outcomes() == {"failed": 1}


async def test_to_a_client_of_http_1_0_it_is_told_by_a_reset():
    async with (
        scripted_worker(breaks_off(b"audio/mpeg", b"one", b"two")) as worker,
        running_gateway([worker.url]) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/audio/speech", {"model": MODEL}).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        received, reset = await everything(client)
        assert reset
        assert b"error" not in received
        await gateway.at_rest()


async def test_a_stream_of_events_that_breaks_off_ends_with_an_error_event_behind_the_last_whole_one():
    whole, half = b'data: {"text":"a"}\n\n', b'data: {"te'
    async with (
        scripted_worker(breaks_off(b"text/event-stream", whole, half)) as worker,
        running_gateway([worker.url]) as gateway,
    ):
        answer = await gateway.http.post("/v1/audio/transcriptions", json={"model": MODEL, "stream": True})
        first, error, done, rest = answer.text.split("\n\n")
        assert (first + "\n\n", done, rest) == (whole.decode(), "data: [DONE]", "")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == 502
        await gateway.at_rest()


# -- pipelines


@pytest.mark.parametrize(
    "behind",
    [HEALTH, post(TEXT, SHORT), post(TEXT, {**SHORT, "prompt": "y" * 500_000}), HEALTH + b"x" * 9_000_000],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_its_request_whatever_it_has_sent_behind_it(behind, stream):
    async with running_fleet(1, SLOW) as fleet:
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(TEXT, {**LONG, "stream": stream}))
            await until(lambda: fleet.running == 1)
            client.writer.write(behind)
            await asyncio.sleep(0.3)
            client.vanish()
        await until(lambda: fleet.running == 0)
        await fleet.at_rest()
        assert fleet.gateway.outcomes() == {"cancelled": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 99_999 + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_wrong_behind_a_request_is_answered_behind_its_answer(garbage, stream):
    async with running_fleet(1) as fleet:
        for together in (True, False):
            async with raw_client(fleet.gateway.port) as client:
                requests = post(TEXT, {**SHORT, "stream": stream}) + HEALTH
                if together:
                    await client.send(requests + garbage)
                else:
                    await client.send(requests)
                    await client.send(garbage)
                first, second, last = [await client.answer() for _ in range(3)]
                assert (first.status, second.status, last.closed) == (200, 200, True)
                assert b"error" not in first.body
                assert last.error()["code"] == last.status
                assert last.status in (400, 431)
        await fleet.at_rest()
        assert fleet.gateway.outcomes() == {"completed": 2}


async def test_a_body_that_turns_into_garbage_behind_a_running_request_harms_that_alone_which_it_belongs_to():
    async with running_fleet(1, SLOW) as fleet, raw_client(fleet.gateway.port) as client:
        bad = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        await client.send(post(TEXT, {**SHORT, "max_tokens": 50, "stream": True}) + bad)
        first, last = await client.answer(), await client.answer()
        assert (first.status, last.status, last.closed) == (200, 400, True)
        assert first.body.endswith(b"data: [DONE]\n\n")
        assert b"error" not in first.body


@pytest.mark.parametrize("body", [b"", b"content-length: 2\r\n"])
async def test_hundreds_of_offers_of_another_protocol_are_declined_one_by_one(body, caplog):
    offer = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: h2c\r\n" + body + b"\r\n"
    offers = (offer + (b"{}" if body else b"")) * 600
    async with running_gateway() as gateway, raw_client(gateway.port) as client:
        with caplog.at_level(logging.INFO):
            await client.send(offers)
            assert [(await client.answer()).status for _ in range(600)] == [200] * 600
        assert [record for record in caplog.records if record.name.startswith("fairlead")] == []


async def test_a_slow_head_behind_a_request_does_not_cut_its_answer_short(monkeypatch):
    monkeypatch.setattr("router.edge.connection.HEAD_WITHIN_S", 0.1)
    async with running_fleet(1, SLOW) as fleet, raw_client(fleet.gateway.port) as client:
        await client.send(post(TEXT, {**SHORT, "max_tokens": 100, "stream": True}) + HEALTH[:10])
        assert (await client.answer()).body.endswith(b"data: [DONE]\n\n")


async def test_thousands_of_requests_ahead_of_their_answers_are_too_many():
    async with running_fleet(1, SLOW) as fleet, raw_client(fleet.gateway.port) as client:
        await client.send(post(TEXT, {**LONG, "max_tokens": 300}))
        await until(lambda: fleet.running == 1)
        await client.send(HEALTH * 1200)
        answers = [await client.answer()]
        while answers[-1].status == 200:
            answers.append(await client.answer())
        assert (answers[-1].status, answers[-1].closed) == (400, True)
        assert 1 < len(answers) < 1500
        await fleet.at_rest()


# -- HTTP/1.0


def old(request, *headers):
    added = "".join(f"{line}\r\n" for line in headers).encode()
    first, _, rest = request.partition(b"\r\n")
    return first.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + added + rest


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_client_of_http_1_0_gets_no_chunks(stream, kept):
    async with running_fleet(1) as fleet, raw_client(fleet.gateway.port) as client:
        wishes = ["connection: keep-alive"] if kept else []
        await client.send(old(post(TEXT, {**SHORT, "stream": stream}), *wishes))
        answer = await client.answer()
        assert answer.status == 200
        assert "transfer-encoding" not in answer.headers
        if kept and not stream:
            assert answer.headers["connection"] == "keep-alive"
            await client.send(old(HEALTH))
            assert (await client.answer()).closed
        else:
            assert answer.headers["connection"] == "close"
        assert answer.body.endswith(b"data: [DONE]\n\n") == stream


async def test_a_client_of_http_1_0_may_leave_out_its_host_and_hears_of_no_continuation():
    async with running_fleet(1) as fleet, raw_client(fleet.gateway.port) as client:
        body = json.dumps(SHORT).encode()
        head = f"POST {TEXT} HTTP/1.0\r\nexpect: 100-continue\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await client.send(head.encode() + body)
        assert (await client.answer()).status == 200


# -- heads


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHOST: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a, b\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere:443\r\n\r\n", 405),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx : y\r\n\r\n", 400),
    ],
)
async def test_heads_that_rfc_9112_forbids_are_refused_and_the_connection_closed(head, status):
    async with running_gateway() as gateway, raw_client(gateway.port) as client:
        await client.send(head)
        answer = await client.answer()
        assert (answer.status, answer.closed) == (status, True)
        assert answer.error()["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: [::1]:8000\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET http://elsewhere/health HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health/ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health?a=b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\r\n" + HEALTH,
    ],
)
async def test_heads_that_it_allows_are_answered(head):
    async with running_gateway() as gateway, raw_client(gateway.port) as client:
        await client.send(head)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/openapi.json", "/metrics"])
async def test_head_is_get_without_its_body(path):
    async with running_fleet(1) as fleet, raw_client(fleet.gateway.port) as client:
        head = f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        await client.send(head + HEALTH)
        first = (await client.reader.readuntil(b"\r\n\r\n")).lower()
        assert first.startswith(b"http/1.1 200")
        assert b"content-length: " in first
        assert (await client.answer()).body == b'{"status":"ok"}'  # nothing came between the two


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        (CHAT, "POST, OPTIONS"),
        ("/tokenize", "POST, OPTIONS"),
        ("/v1/responses/resp_1", "GET, DELETE, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("*", "GET, POST, DELETE, HEAD, OPTIONS"),
    ],
)
async def test_options_says_what_a_path_takes(target, allowed):
    async with running_gateway() as gateway, raw_client(gateway.port) as client:
        await client.send(f"OPTIONS {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode() + HEALTH)
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 204")
        assert f"\r\nallow: {allowed.lower()}\r\n" in head
        assert "content-length" not in head
        assert "access-control" not in head
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions", "/v1/chat//completions/"])
async def test_a_path_with_doubled_slashes_does_not_exist_and_the_error_says_which_does(path, fleet):
    answer = await fleet.http.post(f"{fleet.gateway.url}{path}", json=SHORT)
    assert answer.status_code == 404
    assert CHAT in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/nothing", "/openapi.json", "/v1/models", "/docs", CHAT])
async def test_every_page_of_its_own_carries_the_requests_id(path, fleet):
    answer = await fleet.http.get(path, headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert len((await fleet.http.get(path)).headers["x-request-id"]) == 32


async def test_below_a_proxy_s_path_everything_is_found_with_and_without_it():
    async with running_fleet(1, listen={"root_path": "/llm"}) as fleet:
        for prefix in ("/llm", ""):
            assert (await fleet.http.post(prefix + TEXT, json=SHORT)).status_code == 200
            assert (await fleet.http.get(prefix + "/health")).status_code == 200
            assert "/llm/openapi.json" in (await fleet.http.get(prefix + "/docs")).text
            assert (await fleet.http.get(prefix + "/llmx")).status_code == 404
        assert (await fleet.http.get("/llm/llm/health")).status_code == 404
        assert (await fleet.http.post("/llm/pause")).status_code == 404


# -- browsers

ORIGIN = "https://chat.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize("origins", [[ORIGIN], ["*"], ["http://localhost:3000", ORIGIN]])
async def test_a_page_of_a_named_origin_may_ask_and_sees_every_answer(origins):
    keys = [{"name": "a", "keys": ["a-key-for-tests-0123456789"]}]
    async with running_fleet(1, listen={"cors_origins": origins}, clients=keys) as fleet:
        shown = "*" if origins == ["*"] else ORIGIN
        for path in (CHAT, "/v1/models", "/tokenize"):
            answer = await fleet.http.options(path, headers=PREFLIGHT)
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-origin"] == shown
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
            assert "access-control-allow-credentials" not in answer.headers
        key = {"authorization": "Bearer a-key-for-tests-0123456789"}
        for path, headers, body, status in (
            (TEXT, key, SHORT, 200),
            (TEXT, key, {**SHORT, "stream": True}, 200),
            (TEXT, {}, SHORT, 401),
            (TEXT, key, {"model": "other"}, 404),
            ("/nothing", key, {}, 404),
            ("/pause", key, {}, 404),
        ):
            answer = await fleet.http.post(path, json=body, headers={**headers, "origin": ORIGIN})
            assert answer.status_code == status
            assert answer.headers.get_list("access-control-allow-origin") == [shown]
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        async with raw_client(fleet.gateway.port) as client:
            await client.send(f"GET / HTTP/1.1\r\norigin: {ORIGIN}\r\n\r\n".encode())
            answer = await client.answer()
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (400, shown)


async def test_a_page_of_another_origin_may_not():
    async with running_fleet(1, listen={"cors_origins": [ORIGIN]}) as fleet:
        for origin in ("https://evil.example", "null", "https://chat.example.evil", "http://chat.example"):
            answer = await fleet.http.post(TEXT, json=SHORT, headers={"origin": origin})
            assert "access-control-allow-origin" not in answer.headers
            assert "origin" in answer.headers["vary"]


# -- bodies that come compressed


def bare_deflate(data):
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


@pytest.mark.parametrize("size", [1, 200_000])
@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:])),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", bare_deflate),
        ("identity", bytes),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
async def test_a_compressed_body_reaches_the_worker_plain(size, coding, encode):
    async def say(_asked, writer):
        writer.write(whole_answer(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'))

    body = json.dumps({**SHORT, "prompt": "".join(random.Random(1).choices("abcdefgh", k=size))}).encode()
    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        headers = {"content-encoding": coding, "content-type": "application/json"}
        for path in (TEXT, "/tokenize"):
            answer = await gateway.http.post(path, content=encode(body), headers=headers)
            assert answer.status_code == 200
        assert worker.bodies == [body, body]


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("br", b"\x0b\x02\x80{}\x03", 415),
        ("gzip, br", b"x", 415),
        ("gzip, gzip, gzip", b"x", 415),
        ("gzip", b"not at all", 400),
        ("gzip", gzip.compress(b"{" + b" " * 5000)[:-9], 400),
        ("gzip", gzip.compress(b"{}") + b"behind", 400),
        ("deflate", zlib.compress(b"{}") + b"behind", 400),
        ("gzip", gzip.compress(b" " * 50_000_000), 413),
        ("deflate", zlib.compress(b" " * 50_000_000), 413),
        ("gzip, gzip", gzip.compress(gzip.compress(b" " * 50_000_000)), 413),
    ],
)
async def test_a_body_that_cannot_be_decoded_is_refused_by_name(coding, body, status):
    async with running_fleet(1, limits={"body_bytes": 1_000_000}) as fleet:
        answer = await fleet.http.post(TEXT, content=body, headers={"content-encoding": coding})
        assert answer.status_code == status
        assert coding.rpartition(", ")[2] in answer.json()["error"]["message"] or status == 415
        if status == 415:
            assert "gzip" in answer.headers["accept-encoding"]
        assert fleet.workers[0].engine.running == 0


async def test_a_stream_that_dies_is_broken_off_for_no_one_else():
    """An error event belongs to the stream that broke; the next request on the connection is answered as ever."""
    async with running_fleet(1, SLOW) as fleet, raw_client(fleet.gateway.port) as client:
        fleet.workers[0].set_fault(Fault("die_mid_stream", after_tokens=5))
        await client.send(post(TEXT, {**LONG, "stream": True}) + HEALTH)
        first, second = await client.answer(), await client.answer()
        assert first.body.endswith(b"data: [DONE]\n\n")
        assert (second.status, second.body) == (200, b'{"status":"ok"}')


async def test_comments_of_a_worker_leave_a_death_in_prefill_to_be_retried():
    async def comments(_asked, writer):
        writer.write(STREAM_HEAD + b": ping\n\n")
        await writer.drain()
        await asyncio.sleep(0.1)

    async def answers(_asked, writer):
        writer.write(STREAM_HEAD + EVENT + b"data: [DONE]\n\n")

    async with (
        scripted_worker(comments) as bad,
        scripted_worker(answers) as good,
        running_gateway([bad.url, good.url], policies={"placement": "round_robin"}) as gateway,
    ):
        for _ in range(2):
            answer = await gateway.http.post(TEXT, json={**SHORT, "stream": True})
            assert answer.content == EVENT + b"data: [DONE]\n\n"
        assert gateway.lines()[0]["ttft_s"] > 0
        assert max(line["attempt"] for line in gateway.lines()) == 2


# -- streams that wait

BEATS = {"listen": {"heartbeat_s": 0.1}}
WAITING = b": waiting\n\n"
ASKED = {**SHORT, "messages": [{"role": "user", "content": "x"}], "input": "x", "stream": True}


def events(content):
    """What an answer holds beside heartbeats, of which there are some, all before it."""
    assert content.startswith(WAITING)
    while content.startswith(WAITING):
        content = content[len(WAITING) :]
    assert WAITING not in content
    return content


def slow_then(*pieces, after_s=0.4):
    async def say(_asked, writer):
        await asyncio.sleep(after_s)
        for piece in pieces:
            writer.write(piece)
        await writer.drain()

    return say


async def test_a_stream_that_prefills_hears_that_it_is_alive_and_then_gets_its_answer():
    whole = EVENT + b"data: [DONE]\n\n"
    async with (
        scripted_worker(slow_then(STREAM_HEAD, whole)) as worker,
        running_gateway([worker.url], **BEATS) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post(TEXT, {**SHORT, "stream": True}, "x-request-id: mine"))
        head = await asyncio.wait_for(client.reader.readuntil(WAITING), 5)  # before the worker has said anything
        assert worker.asked
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-type: text/event-stream" in head
        assert b"x-request-id: mine" in head
        rest = b"".join([piece async for piece in client.chunks()]) if await client.reader.readline() else b""
        assert rest.replace(WAITING, b"") == whole
        await gateway.at_rest()
        [line] = gateway.lines()
        assert (line["outcome"], line["status"]) == ("completed", 200)
        assert line["ttft_s"] >= 0.4


async def test_a_stream_that_queues_hears_it_too_and_one_in_a_piece_does_not():
    async with running_fleet(1, SLOW, worker={"max_num_seqs": 1}, **BEATS) as fleet:
        first = asyncio.create_task(fleet.http.post(TEXT, json={**SHORT, "max_tokens": 100}))
        await until(lambda: fleet.running == 1)
        second = await fleet.http.post(TEXT, json={**SHORT, "stream": True})
        assert events(second.content).endswith(b"data: [DONE]\n\n")
        assert (await first).json()["choices"]
        await fleet.at_rest()


async def test_after_heartbeats_a_failed_attempt_is_still_replaced():
    whole = EVENT + b"data: [DONE]\n\n"
    async with (
        scripted_worker(slow_then()) as dies,
        scripted_worker(slow_then(STREAM_HEAD, whole)) as answers,
        running_gateway([dies.url, answers.url], policies={"placement": "round_robin"}, **BEATS) as gateway,
    ):
        for _ in range(2):
            answer = await gateway.http.post(TEXT, json={**SHORT, "stream": True})
            assert events(answer.content) == whole
        assert len(dies.asked) >= 1
        assert max(line["attempt"] for line in gateway.lines()) == 2
        await gateway.at_rest()


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (
            whole_answer(b'{"error":{"message":"not this way","type":"BadRequestError"}}', "400 Bad Request"),
            "refused",
        ),
        (whole_answer(b'{"message":"not this way"}', "422 X"), "refused"),
        (STREAM_HEAD + b'data: {"error":{"message":"not this way","code":400}}\n\ndata: [DONE]\n\n', "refused"),
        (whole_answer(b'{"error":{"message":"not this way"}}', "500 X"), "failed"),
    ],
)
async def test_an_error_after_heartbeats_is_an_event_of_the_stream(path, said, outcome):
    async with (
        scripted_worker(slow_then(said)) as worker,
        running_gateway([worker.url], limits={"attempts": 1}, **BEATS) as gateway,
    ):
        answer = await gateway.http.post(path, json=ASKED)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        said_at_last = events(answer.content).decode()
        assert "not this way" in said_at_last
        if path == "/v1/messages":
            assert said_at_last.startswith('event: error\ndata: {"type":"error","error":{')
        elif path == "/v1/responses":
            assert said_at_last.startswith('event: error\ndata: {"type":"error",')
        else:
            assert said_at_last.startswith('data: {"error":{')
            assert said_at_last.endswith("data: [DONE]\n\n")
        await gateway.at_rest()
        assert gateway.outcomes() == {outcome: 1}


async def test_an_error_before_the_first_heartbeat_keeps_its_status():
    async with running_fleet(1, **BEATS) as fleet:
        assert (await fleet.http.post(TEXT, json={**ASKED, "model": "other"})).status_code == 404


# -- paths that vLLM has too


async def test_probes_of_other_systems_are_answered(fleet):
    for path in ("/health", "/healthz", "/livez", "/ping", "/readyz", "/ready"):
        answer = await fleet.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["x-request-id"]
    assert (await fleet.http.post("/ping")).status_code == 200
    assert (await fleet.http.get("/load")).json() == {"server_load": 0}


@pytest.mark.parametrize(
    "path", ["/tokenizer_info", "/inference/v1/generate", "/abort_requests", "/cohere/v2/chat"]
)
async def test_what_is_left_out_by_decision_says_why_and_reaches_no_worker(path, fleet):
    for method in ("GET", "POST"):
        answer = await fleet.http.request(method, path)
        assert answer.status_code == 404
        assert path in answer.json()["error"]["message"]
        assert "use" in answer.json()["error"]["message"] or "close" in answer.json()["error"]["message"]
