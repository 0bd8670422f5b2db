"""The edge over real sockets, with a control plane that is a script."""

import asyncio
import io
import json
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
import msgspec
import pytest
from fake_control import MODEL, FakeControl

from policies.model import AttemptFailure, Outcome, Usage
from router.config.sections import Limits, Listen
from router.edge.execution.continuations import Continuations
from router.edge.execution.recorder import Recorder
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.intake import Intake
from router.edge.listener import Listener
from router.edge.routes import Routes
from router.edge.server import make_server, stop
from router.observability.log_writer import Lines
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog
from router.port import Dispatch, Reject, RejectKind, Unscheduled
from workers.http.upstream import Timeouts, Upstream

TEXT = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
WHOLE = {"id": "c", "choices": [{"text": "x", "finish_reason": "stop"}], "usage": USAGE}


def answer(body, status="200 OK", kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def event(text):
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None}]}).encode() + b"\n\n"
    )


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def worker(reply):
    """A server that says the same bytes to each request and closes; None: it hangs up at once."""
    bodies = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        bodies.append(await reader.readexactly(length))
        if reply is not None:
            writer.write(reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", bodies
    finally:
        server.close()


@asynccontextmanager
async def edge(control, timeouts=None):
    """The edge, listening: a client for it, and what counts its open requests."""
    async with AsyncExitStack() as stack:
        connections = WorkerConnections(lambda worker: Upstream(worker.url, timeouts=timeouts))
        stack.push_async_callback(connections.aclose)
        connections.follow(control.routes())
        intake = Intake(Limits())
        lines = Lines(io.BytesIO())
        stack.callback(lines.close)
        metrics = Metrics("1")
        recorder = Recorder(metrics, RequestLog(lines, text=False), deque())
        routes = Routes(
            nothing_else,
            control=control,
            intake=intake,
            recorder=recorder,
            connections=connections,
            continuations=Continuations("exact", metrics.continuations.count, metrics.continuations.gap),
            tokenizers={},
        )
        server = make_server(routes, Listener(), Listen(), host="127.0.0.1", port=0, tls=False)
        serving = asyncio.create_task(server.serve())
        stack.push_async_callback(stop, [server], [serving])
        await until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20)), intake


async def until(fact):
    async with asyncio.timeout(20):
        while not fact():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def nothing_else(_scope, _receive, _send):
    raise AssertionError("a page was asked for")


async def test_a_whole_answer_is_admitted_once_and_settled_with_what_the_worker_reports():
    async with worker(answer(WHOLE)) as (url, _):
        control = FakeControl(url)
        async with edge(control) as (http, intake):
            reply = await http.post("/v1/completions", json={**TEXT, "user": "ann"})
            assert reply.json() == WHOLE
            assert intake.open == 0
    [[facts]] = control.told("admit")
    assert (facts.identity.client, facts.model, facts.prompt, facts.sequences) == ("ann", MODEL, b"hello", 1)
    [[end]] = control.told("settled")
    assert (end.outcome, end.usage, end.exact) == (Outcome.COMPLETED, Usage(2, 3), True)
    assert control.open == set()


async def test_each_message_of_a_request_can_cross_a_socket():
    async with worker(None) as (dead, _), worker(answer(WHOLE)) as (url, _):
        control = FakeControl(dead, url)
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json=TEXT)).status_code == 200
    for _, *values in control.heard:
        for value in values:
            crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))
            assert crossed == value


async def test_a_stream_tells_of_its_first_token_and_of_its_output():
    events = b"".join(event(str(number)) for number in range(70))
    async with worker(STREAM + events + b"data: [DONE]\n\n") as (url, _):
        control = FakeControl(url)
        async with edge(control) as (http, _):
            reply = await http.post("/v1/completions", json={**TEXT, "stream": True})
            assert reply.content == events + b"data: [DONE]\n\n"
    assert len(control.told("first_token")) == 1
    [[end]] = control.told("settled")
    assert (end.outcome, end.usage.output_tokens, end.exact) == (Outcome.COMPLETED, 69, False)


OPENINGS = {
    "/v1/completions": b": ping\n\n: ping\n\n",
    "/v1/chat/completions": b":\n\n: data: {}\n\n",
    "/v1/responses": b'event: response.created\ndata: {"response":{"id":"resp_1"}}\n\n: ping\n\n',
    "/v1/messages": b'event: message_start\ndata: {"type":"message_start"}\n\nevent: ping\ndata: {}\n\n',
}
ANY = {**TEXT, "messages": [{"role": "user", "content": "x"}], "input": "x", "stream": True}
LAST = {
    "/v1/responses": b"event: response.completed\ndata: {}\n\n",
    "/v1/messages": b"event: message_stop\ndata: {}\n\n",
}


@pytest.mark.parametrize("path", OPENINGS)
async def test_a_worker_that_dies_before_its_first_token_is_replaced_whatever_it_has_sent(path):
    whole = STREAM + event("a") + LAST.get(path, b"data: [DONE]\n\n")
    async with worker(STREAM + OPENINGS[path]) as (dead, bodies), worker(whole) as (url, again):
        control = FakeControl(dead, url)
        async with edge(control) as (http, _):
            reply = await http.post(path, json=ANY)
            assert (reply.status_code, reply.content) == (200, whole.removeprefix(STREAM))
        assert json.loads(bodies[0]) == json.loads(again[0])  # the body has been kept
    [[failure]] = control.told("failed")
    assert (failure.worker, failure.answering) == (dead, False)
    assert len(control.told("first_token")) == 1


async def test_comments_are_not_the_first_token_and_no_sign_of_an_answer():
    async def comments(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b": ping\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)

    server = await asyncio.start_server(comments, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    control = FakeControl(url, plan=[Dispatch(MODEL, url), Reject(RejectKind.WORKER_TIMEOUT, "No.")])
    async with edge(control, Timeouts(first_byte_s=0.3)) as (http, _):
        reply = await http.post("/v1/completions", json={**TEXT, "stream": True})
    server.close()
    assert reply.status_code == 504
    [[failure]] = control.told("failed")
    assert (failure.reason, failure.answering) == (AttemptFailure.TIMEOUT, False)
    assert control.told("first_token") == []


async def test_nothing_but_comments_in_mid_stream_is_silence():
    async def falls_silent(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM + event("a"))
        with suppress(ConnectionError):
            while not writer.is_closing():
                await asyncio.sleep(0.05)
                writer.write(b": ping\n\n")
                await writer.drain()

    server = await asyncio.start_server(falls_silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    control = FakeControl(url)
    async with edge(control, Timeouts(idle_s=0.4)) as (http, _):
        reply = await http.post("/v1/completions", json={**TEXT, "stream": True})
    server.close()
    assert b"nothing but comments" in reply.content
    [[failure]] = control.told("failed")
    assert (failure.reason, failure.answering) == (AttemptFailure.TIMEOUT, True)
    assert sum(tokens for _, tokens in control.told("output")) <= 1


async def test_what_control_decides_after_a_failure_is_done():
    async with worker(None) as (dead, _), worker(answer(WHOLE)) as (url, bodies):
        control = FakeControl(dead, url)
        async with edge(control) as (http, _):
            reply = await http.post("/v1/completions", json={**TEXT, "model": "alias"})
            assert reply.json() == WHOLE
    [[failure]] = control.told("failed")
    assert (failure.worker, failure.reason, failure.answering) == (dead, AttemptFailure.LOST, False)
    assert json.loads(bodies[0])["model"] == MODEL


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("500 X", AttemptFailure.ERROR),
        ("429 X", AttemptFailure.BUSY),
        ("503 X", AttemptFailure.BUSY),
        ("401 X", AttemptFailure.ERROR),
    ],
)
async def test_a_status_of_the_worker_becomes_a_kind_of_failure(status, reason):
    async with worker(answer({}, status)) as (url, _):
        no = Reject(RejectKind.WORKER_FAILED, "No.")
        control = FakeControl(url, plan=[Dispatch(MODEL, url), no])
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json=TEXT)).status_code == 502
    [[failure]] = control.told("failed")
    assert failure.reason is reason


@pytest.mark.parametrize(("code", "reason"), [(503, AttemptFailure.BUSY), (500, AttemptFailure.ERROR)])
async def test_an_error_inside_a_stream_is_judged_by_its_code(code, reason):
    error = b'data: {"error": {"message": "no", "code": %d}}\n\ndata: [DONE]\n\n' % code
    async with worker(STREAM + error) as (url, _):
        control = FakeControl(url, plan=[Dispatch(MODEL, url), Reject(RejectKind.BAD_REQUEST, "No.")])
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json={**TEXT, "stream": True})).status_code == 400
    [[failure]] = control.told("failed")
    assert failure.reason is reason


async def test_a_clients_error_inside_a_stream_is_answered_with_the_status_that_it_names():
    error = {"error": {"message": "no", "code": 422}}
    async with worker(STREAM + b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n") as (url, _):
        control = FakeControl(url)
        async with edge(control) as (http, _):
            reply = await http.post("/v1/completions", json={**TEXT, "stream": True})
            assert (reply.status_code, reply.json()) == (422, error)
    [[end]] = control.told("settled")
    assert (end.outcome, end.usage) == (Outcome.REFUSED, Usage(0, 0))
    assert control.told("failed") == []


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
async def test_control_may_have_the_workers_own_error_relayed(path):
    said = {"error": {"message": "cannot be done"}}
    async with worker(answer(said, "500 X")) as (url, _):
        control = FakeControl(url, plan=[Dispatch(MODEL, url), Reject(RejectKind.RELAY, "as the worker says")])
        async with edge(control) as (http, _):
            reply = await http.post(path, json=TEXT)
            assert (reply.status_code, reply.json()) == (500, said)
    [[failure]] = control.told("failed")
    assert (failure.reason, failure.status) == (AttemptFailure.ERROR, 500)


async def test_a_name_that_is_not_known_is_looked_for_once_more():
    async with worker(answer(WHOLE)) as (url, bodies):
        control = FakeControl(url)
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json={**TEXT, "model": "sql"})).status_code == 404
            control.appears = True
            assert (await http.post("/v1/completions", json={**TEXT, "model": "sql"})).json() == WHOLE
    assert control.told("look_again") == [["sql"], ["sql"]]
    assert json.loads(bodies[0])["model"] == "sql"


async def test_a_worker_that_has_left_is_a_failed_attempt():
    async with worker(answer(WHOLE)) as (url, _):
        control = FakeControl(url, plan=[Dispatch(MODEL, "http://gone"), Dispatch(MODEL, url)])
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json=TEXT)).status_code == 200
    [[failure]] = control.told("failed")
    assert (failure.worker, failure.reason) == ("http://gone", AttemptFailure.CONNECT)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (RejectKind.BAD_REQUEST, 400),
        (RejectKind.UNAUTHORIZED, 401),
        (RejectKind.NO_MODEL, 404),
        (RejectKind.NOT_FOUND, 404),
        (RejectKind.WRONG_METHOD, 405),
        (RejectKind.TOO_LARGE, 413),
        (RejectKind.OVER_QUOTA, 429),
        (RejectKind.OVERLOADED, 429),
        (RejectKind.UNAVAILABLE, 503),
        (RejectKind.RELAY, 502),
        (RejectKind.WORKER_FAILED, 502),
        (RejectKind.WORKER_TIMEOUT, 504),
    ],
)
async def test_a_rejection_is_told_in_the_shape_of_the_surface(kind, status):
    control = FakeControl(plan=[Reject(kind, "Not now.", retry_after_s=7)] * 2)
    async with edge(control) as (http, _):
        openai = await http.post("/v1/completions", json=TEXT)
        anthropic = await http.post("/v1/messages", json={"model": MODEL, "messages": []})
    assert (openai.status_code, anthropic.status_code) == (status, status)
    assert openai.json()["error"]["message"] == "Not now."
    assert anthropic.json()["type"] == "error"
    assert control.open == set()


def test_every_kind_of_rejection_has_its_test():
    [marks] = [
        m for m in test_a_rejection_is_told_in_the_shape_of_the_surface.pytestmark if m.name == "parametrize"
    ]
    assert {kind for kind, _ in marks.args[1]} == set(RejectKind)


async def test_a_client_that_leaves_while_control_lets_it_wait_is_given_up():
    waiting = asyncio.Event()

    async def never():
        waiting.set()
        await asyncio.sleep(60)

    control = FakeControl(plan=[never])
    async with edge(control) as (http, intake):
        asking = asyncio.create_task(http.post("/v1/completions", json=TEXT))
        await waiting.wait()
        asking.cancel()
        await until(lambda: not intake.open)
    assert len(control.told("cancelled")) == 1
    assert control.open == set()


async def test_where_keys_are_needed_a_request_without_one_is_turned_away_before_its_body_is_read():
    control = FakeControl(keys_needed=True)
    async with edge(control) as (http, _):
        assert (await http.post("/v1/completions", content=b"{")).status_code == 401
        assert (await http.post("/v1/completions", content=b"{", headers={"x-api-key": "k"})).status_code == 400
    assert control.told("admit") == []
    assert all(b"k" not in keys for keys, _ in control.told("identify"))


async def test_what_passes_through_is_placed_by_control_too():
    async with worker(None) as (dead, _), worker(answer({"tokens": [1]})) as (url, _):
        control = FakeControl(dead, url)
        async with edge(control) as (http, _):
            assert (await http.post("/tokenize", json=TEXT)).json() == {"tokens": [1]}
    [[asked]] = control.told("admit")
    assert (type(asked), asked.model, asked.response) == (Unscheduled, MODEL, None)
    assert len(control.told("failed")) == len(control.told("settled")) == 1


async def test_a_pair_is_run_one_after_the_other_and_brings_the_parameters():
    first = {**WHOLE, "choices": [{"text": "x", "finish_reason": "length"}], "kv_transfer_params": {"from": "a"}}
    async with worker(answer(first)) as (prefill, prefilled), worker(answer(WHOLE)) as (decode, decoded):
        control = FakeControl(prefill, decode, plan=[Dispatch(MODEL, decode, prefill=prefill)])
        async with edge(control) as (http, _):
            assert (await http.post("/v1/completions", json=TEXT)).json() == WHOLE
    assert json.loads(prefilled[0])["max_tokens"] == 1
    assert json.loads(decoded[0])["kv_transfer_params"] == {"from": "a"}
    assert [name for name, *_ in control.heard if name in ("prefill_done", "settled")] == [
        "prefill_done",
        "settled",
    ]
    [[end]] = control.told("settled")
    assert end.fetched


async def test_a_request_that_fails_in_mid_answer_ends_there():
    async with worker(STREAM + event("x")) as (url, _):
        control = FakeControl(url)
        async with edge(control) as (http, _):
            reply = await http.post("/v1/completions", json={**TEXT, "stream": True})
            assert b"broke off in mid-answer" in reply.content
    [[failure]] = control.told("failed")
    assert (failure.reason, failure.answering) == (AttemptFailure.LOST, True)
    assert control.open == set()
