"""Workers that freeze, fail, sleep, load, lie and refuse: what becomes of the requests, over sockets.

The workers here are listeners that say what a test wants said, on every path that a gateway asks.
"""

import asyncio
import json
import re
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.end_to_end.gateway_under_test import MODEL, STREAM_HEAD, running_gateway, until, whole_answer

TEXT = "/v1/completions"
SHORT = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
DONE = json.dumps(
    {"id": "cmpl-1", "choices": [{"text": "hi", "finish_reason": "length"}], "usage": USAGE}
).encode()
CHUNK = {
    "id": "cmpl-1",
    "object": "text_completion",
    "choices": [{"index": 0, "text": "hi", "finish_reason": None}],
}
LAST = {**CHUNK, "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
STREAM = b"".join(b"data: %b\n\n" % json.dumps(part, separators=(",", ":")).encode() for part in (CHUNK, LAST))


class Vllm:
    """One listener. `answer(body)` gives the bytes for a POST, None for silence, or closes the connection."""

    def __init__(self, model=MODEL):
        self.models = [{"id": model, "root": f"/models/{model}", "parent": None, "max_model_len": 2048}]
        self.answer = good
        self.frozen = False
        self.awake = True
        self.kept = {}
        """Stored responses by id."""
        self.asked = []
        self.url = ""
        self._thaw = asyncio.Event()

    async def serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length.group(1))) if length else b""
                if self.frozen:
                    await asyncio.Event().wait()
                method, path, _ = head.split(" ", 2)
                if method == "GET" and not path.startswith("/v1/responses"):
                    writer.write(self.page(path))
                    continue
                self.asked.append((path, json.loads(body or b"{}")))
                if path.startswith("/v1/responses/"):
                    found = self.kept.get(path.split("/")[3])
                    missing = b'{"error":{"message":"not found","type":"NotFoundError","param":null,"code":404}}'
                    writer.write(whole_answer(missing, "404 Not Found") if found is None else whole_answer(found))
                    continue
                said = self.answer(self.asked[-1][1])
                said = await said if asyncio.iscoroutine(said) else said
                if said is None:
                    await asyncio.Event().wait()
                writer.write(said)
                if said == b"" or said.startswith(STREAM_HEAD):
                    await writer.drain()
                    return

    def page(self, path):
        if path == "/v1/models":
            return whole_answer(json.dumps({"object": "list", "data": self.models}).encode())
        if path == "/metrics":
            sleep = f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {int(self.awake)}.0\n'
            return whole_answer(b"vllm:num_requests_running 0.0\n" + sleep.encode(), kind="text/plain")
        return whole_answer(b"{}")

    def texts(self):
        return [body for path, body in self.asked if path == TEXT]


def good(body):
    if body.get("stream"):
        return STREAM_HEAD + STREAM + b"data: [DONE]\n\n"
    return whole_answer(DONE)


def silent(_body):
    return None


def failing(status, message="it broke", code=500):
    error = json.dumps({"error": {"message": message, "type": "InternalServerError", "param": None, "code": code}})
    return lambda _body: whole_answer(error.encode(), status)


@asynccontextmanager
async def listening(vllm):
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):
            await vllm.serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    vllm.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield vllm
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def fleet_of(count, *, worker=None, model=MODEL, **settings):
    """A number of listeners, and a gateway in front of them."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(listening(Vllm(model))) for _ in range(count)]
        known = [{"url": one.url, **(worker or {})} for one in workers]
        yield workers, await stack.enter_async_context(running_gateway(known, **settings))


def states(gateway):
    found = gateway.series("fairlead_worker_state")
    return {labels["worker"]: labels["state"] for labels, value in found if value}


async def asked_by(workers):
    """The worker that gets the next request, once it has it."""
    await until(lambda: any(one.texts() for one in workers))
    return next(one for one in workers if one.texts())


# -- workers that stop working


@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_frozen_worker_held_is_answered_by_another_within_seconds(stream):
    async with fleet_of(2) as (workers, gateway):
        for one in workers:
            one.answer = silent
        sent = asyncio.create_task(gateway.http.post(TEXT, json={**SHORT, "stream": stream}))
        frozen = await asked_by(workers)
        frozen.frozen = True
        for one in workers:
            one.answer = good
        answer = await sent
        assert (answer.status_code, "hi" in answer.text) == (200, True)
        assert states(gateway)[frozen.url] == "down"
        assert len(frozen.texts()) == 1
        await gateway.at_rest()


async def test_what_a_sleeping_engine_held_is_answered_by_another_at_the_reading_that_shows_it():
    async with fleet_of(2) as (workers, gateway):
        for one in workers:
            one.answer = silent
        sent = asyncio.create_task(gateway.http.post(TEXT, json=SHORT))
        asleep = await asked_by(workers)
        asleep.awake = False
        for one in workers:
            one.answer = good
        assert (await sent).status_code == 200
        assert states(gateway)[asleep.url] == "down"


async def test_an_answer_in_one_piece_may_take_longer_than_a_first_byte_and_is_generated_once():
    async def late(body):
        await asyncio.sleep(0.8)
        return good(body)

    async with fleet_of(3, timeouts={"first_byte_s": 0.2}) as (workers, gateway):
        for one in workers:
            one.answer = late
        assert (await gateway.http.post(TEXT, json=SHORT)).status_code == 200
        assert sum(len(one.texts()) for one in workers) == 1
        assert set(states(gateway).values()) == {"up"}


# -- whose fault it is


@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_failure_on_two_workers_is_the_requests_and_no_worker_is_doubted(stream):
    async with fleet_of(3) as (workers, gateway):
        for one in workers:
            one.answer = failing("500 Internal Server Error", "cannot be tokenized")
        for number in range(4):
            answer = await gateway.http.post(TEXT, json={**SHORT, "stream": stream})
            assert (answer.status_code, "cannot be tokenized" in answer.text) == (500, True)
            assert sum(len(one.texts()) for one in workers) == 2 * (number + 1)
        assert set(states(gateway).values()) == {"up"}


async def test_a_failure_that_another_worker_does_not_share_is_the_workers():
    async with fleet_of(2, policies={"placement": "round_robin"}) as (workers, gateway):
        workers[0].answer = failing("500 Internal Server Error")
        for number in range(40):
            assert (await gateway.http.post(TEXT, json={**SHORT, "prompt": f"{number}"})).status_code == 200
            if states(gateway)[workers[0].url] == "suspect":
                break
        assert states(gateway) == {workers[0].url: "suspect", workers[1].url: "up"}


async def test_a_prompt_that_kills_connections_is_tried_on_two_workers():
    async with fleet_of(4) as (workers, gateway):
        for one in workers:
            one.answer = lambda _body: b""
        answer = await gateway.http.post(TEXT, json=SHORT)
        assert answer.status_code == 502
        assert sum(len(one.texts()) for one in workers) == 2


async def test_a_request_on_a_kept_connection_that_dies_is_a_failed_attempt_and_not_sent_again_there():
    """Two connections to one worker would be a whole generation twice, and uncounted."""
    async with fleet_of(2) as (workers, gateway):
        for number in range(6):
            assert (await gateway.http.post(TEXT, json={**SHORT, "prompt": f"{number}"})).status_code == 200
        used = [one for one in workers if one.texts()]
        before = {one.url: len(one.texts()) for one in workers}
        for one in workers:
            one.answer = lambda _body: b""
        assert (await gateway.http.post(TEXT, json=SHORT)).status_code == 502
        assert used
        assert [len(one.texts()) - before[one.url] for one in workers] == [1, 1]
        assert gateway.lines()[-1]["attempt"] == 2


def in_stream(code):
    error = {"error": {"message": "too long", "type": "BadRequestError", "param": "prompt", "code": code}}
    return lambda _body: STREAM_HEAD + b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("code", [400, 404, 422])
async def test_a_clients_error_inside_a_stream_is_the_clients_and_is_tried_once(code):
    async with fleet_of(3) as (workers, gateway):
        for one in workers:
            one.answer = in_stream(code)
        for _ in range(4):
            answer = await gateway.http.post(TEXT, json={**SHORT, "stream": True})
            assert (answer.status_code, answer.json()["error"]["message"]) == (code, "too long")
        assert sum(len(one.texts()) for one in workers) == 4
        assert set(states(gateway).values()) == {"up"}


BUSY = {
    "503": (failing("503 Service Unavailable", "busy", 503), False),
    "429": (failing("429 Too Many Requests", "busy", 429), False),
    "503 inside a stream": (in_stream(503), True),
}


@pytest.mark.parametrize(("answer", "stream"), BUSY.values(), ids=BUSY)
async def test_where_every_worker_is_busy_the_client_is_told_when_to_come_back(answer, stream):
    async with fleet_of(2) as (workers, gateway):
        for one in workers:
            one.answer = answer
        told = await gateway.http.post(TEXT, json={**SHORT, "stream": stream})
        assert told.status_code in (429, 503)
        assert int(told.headers["retry-after"]) > 0
        assert set(states(gateway).values()) == {"up"}


# -- what is served


async def test_a_configured_model_that_is_still_loading_is_503_and_an_unknown_one_404():
    async with listening(Vllm()) as vllm:
        known = [{"url": vllm.url}, {"url": "http://127.0.0.1:1", "model": "large"}]
        async with running_gateway(known, ready=False, models={"big": "large"}) as gateway:
            async with asyncio.timeout(20):
                while (await gateway.http.post(TEXT, json=SHORT)).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            for name in ("large", "big"):
                answer = await gateway.http.post(TEXT, json={**SHORT, "model": name})
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
                assert name in answer.json()["error"]["message"]
            assert (await gateway.http.post(TEXT, json={**SHORT, "model": "typo"})).status_code == 404


async def test_an_adapter_that_was_loaded_a_moment_ago_is_found_when_it_is_asked_for():
    async with fleet_of(2) as (workers, gateway):
        workers[1].models.append({"id": "sql", "root": "/lora/sql", "parent": MODEL})
        answer = await gateway.http.post(TEXT, json={**SHORT, "model": "sql"})
        assert answer.status_code == 200
        assert [body["model"] for body in workers[1].texts()] == ["sql"]
        listed = (await gateway.http.get("/v1/models")).json()["data"]
        assert {card["id"]: (card["root"], card["parent"]) for card in listed} == {
            MODEL: (f"/models/{MODEL}", None),
            "sql": ("/lora/sql", MODEL),
        }


async def test_an_adapter_that_was_loaded_a_moment_ago_is_listed():
    async with fleet_of(1) as ([worker], gateway):
        worker.models.append({"id": "sql", "root": "/lora/sql", "parent": MODEL})
        assert (await gateway.http.get("/v1/models/sql")).json()["root"] == "/lora/sql"
        del worker.models[1]

        async def listed():
            return [card["id"] for card in (await gateway.http.get("/v1/models")).json()["data"]]

        async with asyncio.timeout(10):  # within the second that lies between two rounds of asking
            while await listed() != [MODEL]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_adapter_that_a_resolver_may_load_is_asked_for_where_that_is_configured():
    def resolving(body):
        known = body["model"] in (MODEL, "sql")
        return good(body) if known else failing("404 Not Found", "does not exist", 404)(body)

    async with fleet_of(1, worker={"resolves_adapters": True}) as ([worker], gateway):
        worker.answer = resolving
        assert (await gateway.http.post(TEXT, json={**SHORT, "model": "sql"})).status_code == 200
        answer = await gateway.http.post(TEXT, json={**SHORT, "model": "typo"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "does not exist")
        assert states(gateway) == {worker.url: "up"}


async def test_a_stored_response_is_looked_for_on_every_worker_before_it_is_said_not_to_exist():
    """After a restart nothing here says which worker stores it."""
    async with fleet_of(3) as (workers, gateway):
        workers[2].kept["resp_1"] = b'{"id":"resp_1"}'
        for _ in range(3):
            answer = await gateway.http.get("/v1/responses/resp_1")
            assert (answer.status_code, answer.json()) == (200, {"id": "resp_1"})
        asked = sum(len(one.asked) for one in workers)
        answer = await gateway.http.get("/v1/responses/resp_2")
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "not found")
        assert sum(len(one.asked) for one in workers) == asked + 3
        assert set(states(gateway).values()) == {"up"}


# -- what passes through


@pytest.mark.parametrize(
    "broken", [failing("503 Service Unavailable", "busy", 503), failing("500 Oh"), lambda _b: b""]
)
async def test_what_passes_through_goes_on_to_a_worker_that_answers(broken):
    async with fleet_of(2) as (workers, gateway):
        workers[0].answer = broken
        workers[1].answer = lambda _body: whole_answer(b'{"tokens":[1]}')
        for _ in range(8):
            answer = await gateway.http.post("/tokenize", json={"model": MODEL, "prompt": "x"})
            assert (answer.status_code, answer.json()) == (200, {"tokens": [1]})


async def test_a_client_s_error_passes_through_once():
    async with fleet_of(2) as (workers, gateway):
        for one in workers:
            one.answer = failing("400 Bad Request", "no prompt", 400)
        answer = await gateway.http.post("/tokenize", json={"model": MODEL})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no prompt")
        assert sum(len(one.asked) for one in workers) == 1


# -- what workers say is checked


NO_ANSWERS = {
    "redirect": b"HTTP/1.1 307 Elsewhere\r\nlocation: http://10.9.8.7/\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "page": whole_answer(b"<html>Sign in</html>", kind="text/html; charset=utf-8"),
}


@pytest.mark.parametrize("path", [TEXT, "/tokenize"])
@pytest.mark.parametrize("said", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_what_is_no_answer_of_a_model_is_no_success(said, path):
    async with fleet_of(2) as (workers, gateway):
        workers[0].answer = lambda _body: said
        for number in range(8):
            assert (await gateway.http.post(path, json={**SHORT, "prompt": f"{number}"})).status_code == 200
        workers[1].answer = workers[0].answer
        answer = await gateway.http.post(path, json=SHORT)
        assert answer.status_code == 502
        assert "10.9.8.7" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "7", "completion_tokens": []}, {"prompt_tokens": -7}, None, 3]
)
@pytest.mark.parametrize("stream", [True, False])
async def test_usage_that_is_no_count_is_not_believed(usage, stream):
    async with fleet_of(1, log={"format": "json"}) as ([worker], gateway):
        whole = json.dumps({**json.loads(DONE), "usage": usage}, separators=(",", ":")).encode()
        last = b"data: " + json.dumps({"choices": [], "usage": usage}, separators=(",", ":")).encode() + b"\n\n"
        worker.answer = lambda _body: (
            STREAM_HEAD + STREAM + last + b"data: [DONE]\n\n" if stream else whole_answer(whole)
        )
        answer = await gateway.http.post(TEXT, json={**SHORT, "stream": stream})
        assert (answer.status_code, "hi" in answer.text) == (200, True)
        await gateway.at_rest()
        line = gateway.lines()[-1]
        assert line["input_tokens"] > 0
        assert line["output_tokens"] >= 0
        assert gateway.outcomes() == {"completed": 1}


async def test_a_head_that_trickles_is_a_worker_that_does_not_answer():
    async def trickle(_reader, writer):
        with suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"x-a: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with fleet_of(2, timeouts={"first_byte_s": 0.3}) as (workers, gateway):
        serve = workers[0].serve

        async def serve_or_trickle(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(workers[0].page(head.split(b" ")[1].decode()))
            else:
                await trickle(reader, writer)

        workers[0].serve = serve_or_trickle
        for number in range(4):
            answer = await gateway.http.post(TEXT, json={**SHORT, "prompt": f"{number}", "stream": True})
            assert answer.status_code == 200
        workers[0].serve = serve
