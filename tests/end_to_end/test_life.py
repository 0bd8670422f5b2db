"""How requests end: clients that leave, workers that fail, full queues. Whatever happens, all is given back."""

import asyncio
import json
import random
import socket
from dataclasses import replace

import openai
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

from router.edge.execution.lifecycle import Lifecycle
from workers.simulator.faults import Fault
from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SHORT = {"model": MODEL, "prompt": "x", "max_tokens": 4, "ignore_eos": True}
LONG = {**SHORT, "max_tokens": 5000}
SLOW = {"speed": 0.02}
"""A token every 5 ms."""
IN_TURN = {"placement": "round_robin"}


# -- clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/responses", "/v1/messages"])
async def test_a_client_that_leaves_frees_its_slot_on_the_worker_at_once(path, stream):
    words = [{"role": "user", "content": "x"}]
    body = {**LONG, "messages": words, "input": "x", "max_output_tokens": 5000, "stream": stream}
    async with running_fleet(1, SLOW) as fleet:
        [worker] = fleet.workers
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(path, body))
            await until(lambda: worker.engine.running == 1)
            if stream:
                await client.reader.readuntil(b"data: ")
            generated = worker.state()["generation_tokens"]
            client.vanish()
            await until(lambda: worker.engine.running == 0)
            assert worker.state()["generation_tokens"] - generated < 200  # of 5000: it did not wait for the end
        await fleet.at_rest()
        assert worker.state()["gone"] == 1
        assert fleet.gateway.outcomes() == {"cancelled": 1}
        assert sum(count for _, count in fleet.gateway.series("fairlead_cancellations_total")) == 1


async def test_a_client_that_closes_politely_in_mid_stream_frees_its_slot_too():
    async with running_fleet(1, SLOW) as fleet:
        async with fleet.http.stream("POST", TEXT, json={**LONG, "stream": True}) as answer:
            async for _ in answer.aiter_bytes():
                break
        await fleet.at_rest()
        assert fleet.workers[0].state()["gone"] == 1


async def test_a_client_that_leaves_the_queue_is_never_sent_to_a_worker():
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, worker={"max_num_seqs": 1}) as fleet:
        [worker] = fleet.workers
        async with raw_client(fleet.gateway.port) as first, raw_client(fleet.gateway.port) as second:
            await first.send(post(TEXT, LONG))
            await until(lambda: worker.engine.running == 1)
            await second.send(post(TEXT, LONG))
            depth = fleet.gateway.gateway.pools.by_model[MODEL].scheduler
            await until(lambda: depth.snapshot().queued == 1)
            second.vanish()
            await until(lambda: depth.snapshot().queued == 0)
            assert fleet.gateway.gateway.intake.open == 1
        await fleet.at_rest()
        assert worker.state()["started"] == 1
        assert fleet.gateway.outcomes() == {"cancelled": 2}


async def test_the_place_of_a_client_that_leaves_goes_to_the_next_in_the_queue():
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, worker={"max_num_seqs": 1}) as fleet:
        async with raw_client(fleet.gateway.port) as first:
            await first.send(post(TEXT, LONG))
            await until(lambda: fleet.running == 1)
            waiting = asyncio.create_task(fleet.http.post(TEXT, json=SHORT))
            await until(lambda: fleet.gateway.gateway.intake.open == 2)
            first.vanish()
            assert (await waiting).status_code == 200
        await fleet.at_rest()
        assert fleet.gateway.lines()[-1]["wait_s"] > 0


@pytest.mark.parametrize("path", [TEXT, "/tokenize"])
async def test_a_client_that_leaves_while_the_worker_says_nothing_ends_the_request(path):
    async with running_fleet(1) as fleet:
        fleet.workers[0].set_fault(Fault("hang"))
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(path, SHORT))
            await until(lambda: len(fleet.workers[0].app.received) and fleet.gateway.gateway.intake.open == 1)
            await asyncio.sleep(0.05)
            client.vanish()
            await fleet.at_rest()
        assert fleet.gateway.outcomes() == {"cancelled": 1}


async def test_a_client_that_leaves_while_the_connection_is_being_made_ends_the_request():
    with socket.socket() as deaf:  # takes no connection: its backlog is full
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        async with scripted_worker(unreached) as worker, running_gateway([worker.url]) as gateway:
            upstream = next(iter(gateway.gateway.connections)).upstream
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            for kept in list(upstream._idle):
                kept.close()
            upstream._port = deaf.getsockname()[1]
            async with raw_client(gateway.port) as client:
                await client.send(post(TEXT, SHORT))
                await until(lambda: gateway.gateway.intake.open == 1)
                await asyncio.sleep(0.05)
                client.vanish()
                await gateway.at_rest()
            for filler in fillers:
                filler.close()
        assert upstream._dialing == 0


async def unreached(_body, _writer):
    raise AssertionError("this worker was not to be asked")


# -- workers that fail before the client has seen anything


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("refuse"), "connect"),
        (Fault("crash"), "connect"),
        (Fault("hang"), "timeout"),
        (Fault("error_500"), "error"),
        (Fault("draining"), "shutdown"),
        (Fault("die_mid_stream"), "lost"),
        (Fault("error_in_stream"), "error"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
async def test_another_worker_answers_and_the_client_sees_nothing_of_it(fault, reason, stream):
    timeouts = {"first_byte_s": 0.3, "whole_answer_s": 0.3}
    async with running_fleet(2, policies=IN_TURN, timeouts=timeouts, health={"probe_every_s": 30}) as fleet:
        bad, good = fleet.workers
        bad.set_fault(fault)
        answers = [await fleet.http.post(TEXT, json={**SHORT, "stream": stream}) for _ in range(2)]
        await fleet.at_rest()
        assert [answer.status_code for answer in answers] == [200, 200]
        for answer in answers:
            assert b"error" not in answer.content
            assert answer.content.count(b"[DONE]") == int(stream)
        assert fleet.gateway.outcomes() == {"completed": 2}
        rows = fleet.gateway.series("fairlead_attempt_failures_total")
        assert {(row["worker"], row["reason"]) for row, count in rows if count} == {(bad.url, reason)}
        assert set(fleet.gateway.placements()) == {good.url}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_is_busy_passes_the_request_on_and_keeps_its_good_name(stream):
    free = SimulatorConfig(model=MODEL, profile="instant")
    async with (
        simulated_worker(replace(free, max_num_queued_reqs=0)) as busy,
        simulated_worker(free) as good,
        running_gateway([busy.url, good.url], policies=IN_TURN) as gateway,
    ):
        for _ in range(8):
            answer = await gateway.http.post(TEXT, json={**SHORT, "stream": stream})
            assert answer.status_code == 200
            assert b"error" not in answer.content
        rows = gateway.series("fairlead_attempt_failures_total")
        assert sum(count for row, count in rows if row["worker"] == busy.url) >= 4
        assert gateway.gateway.pools.members[busy.url].worker.state.value == "up"
        await gateway.at_rest(busy, good)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_given_up_before_its_first_word_comes_from_another_worker(stream):
    choice = {"index": 0, "text": "", "finish_reason": "abort"}

    async def give_up(_body, writer):
        whole = json.dumps({"id": "cmpl-1", "choices": [choice]}, separators=(",", ":")).encode()
        writer.write(STREAM_HEAD + b"data: " + whole + b"\n\ndata: [DONE]\n\n" if stream else whole_answer(whole))

    async with (
        simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as good,
        scripted_worker(give_up) as quitter,
        running_gateway([quitter.url, good.url], policies=IN_TURN) as gateway,
    ):
        answers = [await gateway.http.post(TEXT, json={**SHORT, "stream": stream}) for _ in range(2)]
        assert quitter.asked
        for answer in answers:
            assert answer.status_code == 200
            assert b"abort" not in answer.content
        assert gateway.outcomes() == {"completed": 2}
        await gateway.at_rest(good)


async def test_four_hundreds_of_a_worker_pass_and_do_not_count_against_it():
    async with running_fleet(1) as fleet:
        for _ in range(10):
            assert (await fleet.http.post(TEXT, json={**SHORT, "max_tokens": -1})).status_code == 400
        [member] = fleet.gateway.gateway.pools.members.values()
        assert member.worker.state.value == "up"
        assert fleet.gateway.outcomes() == {"refused": 10}


async def test_a_worker_that_refuses_the_gateway_s_own_key_is_not_the_client_s_fault():
    async with running_fleet(1, {"api_key": "inner-key-012345"}, worker={"api_key": "inner-key-012345"}) as fleet:
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 200
        fleet.workers[0].app._api_key = "changed"
        answer = await fleet.http.post(TEXT, json=SHORT)
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "WorkerError"
        assert "inner-key" not in answer.text
        await fleet.at_rest()


# -- workers that fail in mid-stream


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/responses", "/v1/messages"])
async def test_a_stream_that_breaks_ends_with_an_error_in_its_own_words(path):
    words = [{"role": "user", "content": "x"}]
    body = {**LONG, "messages": words, "input": "x", "max_output_tokens": 5000, "stream": True}
    async with running_fleet(1, SLOW) as fleet:
        fleet.workers[0].set_fault(Fault("die_mid_stream", after_tokens=5))
        answer = await fleet.http.post(path, json=body)  # the HTTP message itself is whole
        assert answer.status_code == 200
        last = answer.text.rstrip().split("\n\n")
        if path == "/v1/messages":
            assert last[-1].startswith("event: error\ndata: ")
            assert json.loads(last[-1].partition("data: ")[2])["error"]["type"] == "WorkerError"
        elif path == "/v1/responses":
            assert last[-1].startswith("event: error\ndata: ")
            error = json.loads(last[-1].partition("data: ")[2])
            assert (error["type"], error["code"]) == ("error", "WorkerError")
        else:
            error = json.loads(last[-2].partition("data: ")[2])["error"]
            assert (error["type"], error["code"]) == ("WorkerError", 502)
            assert last[-1] == "data: [DONE]"
        await fleet.at_rest()
        assert fleet.gateway.outcomes() == {"failed": 1}
        [line] = fleet.gateway.lines()
        assert (line["status"], line["outcome"]) == (200, "failed")
        assert "broke off" in line["error"]


async def test_the_openai_client_raises_when_a_stream_breaks():
    async with running_fleet(1, SLOW) as fleet:
        url = f"{fleet.gateway.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            for fault in ("die_mid_stream", "error_in_stream"):
                fleet.workers[0].set_fault(Fault(fault, after_tokens=5))
                stream = await client.completions.create(
                    model=MODEL, prompt="x", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
                )
                await anext(stream)
                with pytest.raises(openai.APIError, match="broke off"):
                    await drained(stream)
        await fleet.at_rest()


async def drained(stream):
    return [chunk async for chunk in stream]


async def test_a_stream_that_falls_silent_is_ended():
    async with running_fleet(1, SLOW, timeouts={"idle_s": 0.3}) as fleet:
        fleet.workers[0].set_fault(Fault("hang", after_tokens=3))
        answer = await fleet.http.post(TEXT, json={**LONG, "stream": True})
        assert "WorkerError" in answer.text
        assert fleet.gateway.outcomes() == {"failed": 1}
        await fleet.at_rest()


async def test_an_answer_in_one_piece_that_breaks_off_comes_from_another_worker():
    async with running_fleet(2, SLOW, policies=IN_TURN) as fleet:
        first = asyncio.create_task(fleet.http.post(TEXT, json={**SHORT, "max_tokens": 100}))
        await until(lambda: fleet.running == 1)
        bad = next(worker for worker in fleet.workers if worker.engine.running)
        bad.set_fault(Fault("crash"))
        assert (await first).status_code == 200
        assert fleet.gateway.lines()[-1]["attempt"] == 2
        bad.clear_fault()
        await fleet.at_rest()


# -- no worker, or no room


async def test_when_every_worker_is_gone_the_answer_is_503_until_one_is_back():
    async with running_fleet(2) as fleet:
        for worker in fleet.workers:
            worker.set_fault(Fault("crash"))
        for stream in (False, True):
            answer = await fleet.http.post(TEXT, json={**SHORT, "stream": stream})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "ServiceUnavailableError"
        assert (await fleet.http.post("/tokenize", json={"prompt": "x"})).status_code == 503
        members = fleet.gateway.gateway.pools.members
        await until(lambda: not any(member.worker.routable for member in members.values()))
        ready = await fleet.http.get("/ready")
        assert ready.status_code == 503
        assert any(fleet.workers[0].url in why for why in ready.json()["missing"])
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 503
        fleet.workers[0].clear_fault()
        await until(lambda: any(member.worker.routable for member in members.values()))
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 200
        fleet.workers[1].clear_fault()
        await fleet.at_rest()


async def test_who_waits_when_the_last_worker_goes_is_told():
    settings = {"worker": {"max_num_seqs": 1}, "health": {"probe_every_s": 0.1, "probe_timeout_s": 0.2}}
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, **settings) as fleet:
        async with raw_client(fleet.gateway.port) as first:
            await first.send(post(TEXT, {**LONG, "stream": True}))
            await until(lambda: fleet.running == 1)
            waiting = asyncio.create_task(fleet.http.post(TEXT, json=SHORT))
            await until(lambda: fleet.gateway.gateway.intake.open == 2)
            fleet.workers[0].set_fault(Fault("crash"))
            assert (await waiting).status_code == 503
        fleet.workers[0].clear_fault()
        await fleet.at_rest()


async def test_a_full_queue_and_a_long_wait_are_429s_that_say_when_to_come_back():
    limits = {"queue_requests": 1, "queue_wait_s": 0.3}
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, worker={"max_num_seqs": 1}, limits=limits) as fleet:
        async with raw_client(fleet.gateway.port) as first:
            await first.send(post(TEXT, LONG))
            await until(lambda: fleet.running == 1)
            patient = asyncio.create_task(fleet.http.post(TEXT, json=SHORT))
            await until(lambda: fleet.gateway.gateway.intake.open == 2)
            turned_away = await fleet.http.post(TEXT, json={**SHORT, "stream": True})
            waited = await patient
        for answer, words in (
            (turned_away, "Too many requests are waiting"),
            (waited, "waiting for a free worker"),
        ):
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert words in answer.json()["error"]["message"]
            assert answer.json()["error"]["type"] == "OverloadedError"
        await fleet.at_rest()
        assert fleet.gateway.outcomes() == {"rejected": 2, "cancelled": 1}


async def test_more_open_requests_than_allowed_are_429():
    async with running_fleet(1, SLOW, limits={"concurrent_requests": 2}) as fleet:
        async with raw_client(fleet.gateway.port) as one, raw_client(fleet.gateway.port) as other:
            for client in (one, other):
                await client.send(post(TEXT, LONG))
            await until(lambda: fleet.gateway.gateway.intake.open == 2)
            for path in (TEXT, "/tokenize"):
                answer = await fleet.http.post(path, json=SHORT)
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) >= 1
            assert (await fleet.http.get("/health")).status_code == 200
        await fleet.at_rest()
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 200


# -- bytes


SAYS_DONE = [
    b'data: {"id":"1","choices":[{"index":0,"text":"A stream ends with data: [DONE]"}]}\n\n',
    b'data: {"id":"1","choices":[{"index":0,"text":" event: message_stop and \\"choices\\":[] too"}]}\n\n',
    b": a comment that keeps the line open\n\n",
    'data: {"id":"1","choices":[{"index":0,"text":"é\u2028\U0001f600","finish_reason":"stop"}]}\n\n'.encode(),
]
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 40, 10_000])
async def test_a_stream_passes_byte_for_byte_however_it_is_cut(size, asked):
    stream = b"".join(SAYS_DONE) + USAGE + DONE

    async def say(_body, writer):
        writer.write(STREAM_HEAD)
        for start in range(0, len(stream), size):
            writer.write(stream[start : start + size])
            await asyncio.sleep(0)

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        body = {**SHORT, "stream": True, **({"stream_options": {"include_usage": True}} if asked else {})}
        answer = await gateway.http.post(TEXT, json=body)
        assert answer.content == (stream if asked else stream.replace(USAGE, b""))
        assert worker.asked[0]["stream_options"] == {"include_usage": True}
        await gateway.at_rest()
        assert gateway.outcomes() == {"completed": 1}
        [line] = gateway.lines()
        assert (line["input_tokens"], line["output_tokens"]) == (3, 4)


async def test_a_stream_cut_behind_words_that_look_like_its_end_is_not_taken_for_complete():
    async def say(_body, writer):
        writer.write(STREAM_HEAD + SAYS_DONE[0])

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        answer = await gateway.http.post(TEXT, json={**SHORT, "stream": True})
        assert b"WorkerError" in answer.content
        assert gateway.outcomes() == {"failed": 1}
        await gateway.at_rest()


async def test_the_first_event_is_passed_on_before_the_second_exists():
    go_on = asyncio.Event()

    async def say(_body, writer):
        writer.write(STREAM_HEAD + SAYS_DONE[0])
        await go_on.wait()
        writer.write(USAGE + DONE)

    async with (
        scripted_worker(say) as worker,
        running_gateway([worker.url]) as gateway,
        gateway.http.stream("POST", TEXT, json={**SHORT, "stream": True}) as answer,
    ):
        pieces = answer.aiter_raw()
        assert await anext(pieces) == SAYS_DONE[0]
        go_on.set()
        assert b"".join(await drained(pieces)) == DONE


async def test_a_client_that_does_not_read_makes_the_worker_pause_and_nobody_hoard():
    event = b'data: {"choices":[{"index":0,"text":"' + b"x" * 16_000 + b'"}]}\n\n'
    written = 0

    async def say(_body, writer):
        nonlocal written
        writer.write(STREAM_HEAD)
        for _ in range(4000):  # 64 MB
            writer.write(event)
            await writer.drain()
            written += len(event)
        writer.write(DONE)

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", gateway.port))
        async with raw_socket(small) as client:
            await client.send(post(TEXT, {**SHORT, "stream": True}))
            before = -1
            while before != written:  # until it stands still
                before = written
                await asyncio.sleep(0.2)
            assert 0 < written < 24_000_000  # kernel buffers of two sockets on each side, and little of ours
            upstream = next(iter(gateway.gateway.connections)).upstream
            held = sum(c.response.buffered for c in upstream._connections if c.response is not None)
            assert held <= 512 * 1024
            client.vanish()
            await until(lambda: worker.left >= 1)
        await gateway.at_rest()


def raw_socket(sock):
    return raw_client(0, sock=sock)


# -- what passes through


async def test_a_form_passes_through_untouched_to_a_worker_of_its_model():
    async def hear(_body, writer):
        writer.write(whole_answer(b'{"text":"hello"}'))

    async with (
        scripted_worker(hear, "whisper") as ears,
        scripted_worker(unreached) as other,
        running_gateway([other.url, ears.url]) as gateway,
    ):
        sound = bytes(range(256)) * 1000
        form = {"data": {"model": "whisper", "language": "en"}, "files": {"file": ("a.wav", sound, "audio/wav")}}
        answer = await gateway.http.post("/v1/audio/transcriptions", **form)
        assert answer.json() == {"text": "hello"}
        assert sound in ears.bodies[0]
        assert len(ears.bodies[0]) == int(answer.request.headers["content-length"])
        await gateway.at_rest()
        assert gateway.outcomes() == {"completed": 1}
        [line] = gateway.lines()
        assert (line["model"], line["path"]) == ("whisper", "/v1/audio/transcriptions")


async def test_an_answer_of_unknown_length_passes_through_as_it_comes():
    go_on = asyncio.Event()

    async def say(_body, writer):
        writer.write(STREAM_HEAD.replace(b"text/event-stream; charset=utf-8", b"audio/mpeg") + b"one")
        await go_on.wait()
        writer.write(b"two")

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        async with gateway.http.stream("POST", "/v1/audio/speech", json={"model": MODEL}) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"one"
            go_on.set()
            assert b"".join([piece async for piece in pieces]) == b"two"
        await gateway.at_rest()


async def test_what_passes_through_goes_round_a_worker_that_is_not_there():
    async with running_fleet(2, health={"probe_every_s": 30}) as fleet:
        fleet.workers[0].set_fault(Fault("crash"))
        for _ in range(4):
            assert (await fleet.http.post("/tokenize", json={"prompt": "x"})).status_code == 200
        fleet.workers[0].clear_fault()
        await fleet.at_rest()


# -- everything at once


async def test_a_storm_leaves_every_counter_at_zero_and_counts_each_request_once(monkeypatch):
    begun, run = [], Lifecycle.run

    async def counted(self):
        begun.append(self)
        await run(self)

    monkeypatch.setattr(Lifecycle, "run", counted)
    chance = random.Random(20)
    limits = {"queue_requests": 40, "queue_wait_s": 2}
    timeouts = {"first_byte_s": 0.5, "idle_s": 0.5, "whole_answer_s": 0.5}
    async with running_fleet(
        3, {"speed": 0.05, "max_num_seqs": 8}, worker={"max_num_seqs": 8}, limits=limits, timeouts=timeouts
    ) as fleet:
        kinds = ["refuse", "crash", "hang", "error_500", "draining", "die_mid_stream", "error_in_stream", "paused"]

        async def trouble():
            while True:
                worker = chance.choice(fleet.workers)
                worker.set_fault(Fault(chance.choice(kinds), after_tokens=chance.choice([0, 3]), for_s=0.2))
                await asyncio.sleep(0.1)

        async def ask(number):
            await asyncio.sleep(chance.random() * 2)
            path = chance.choice([TEXT, TEXT, CHAT, "/v1/responses", "/tokenize"])
            body = {
                **SHORT,
                "prompt": f"{number % 7} " * chance.randint(1, 300),
                "messages": [{"role": "user", "content": "x" * chance.randint(1, 900)}],
                "input": "x",
                "max_tokens": chance.randint(1, 120),
                "stream": chance.random() < 0.6,
            }
            if path in (TEXT, CHAT):
                body["n"] = chance.choice([1, 1, 3])
            async with raw_client(fleet.gateway.port) as client:
                await client.send(post(path, body))
                if chance.random() < 0.4:
                    await asyncio.sleep(0.05 + chance.random() * 0.3)
                    client.vanish()
                    return None
                answer = await client.answer()
                # What passes through is the worker's own answer, and so is a 500 on which two workers agree.
                assert b"The gateway failed" not in answer.body
                return answer.status

        troubling = asyncio.create_task(trouble())
        statuses = await asyncio.gather(*(ask(number) for number in range(200)))
        troubling.cancel()
        for worker in fleet.workers:
            worker.clear_fault()
        await fleet.at_rest()
        assert set(statuses) <= {None, 200, 429, 500, 502, 503, 504}
        assert statuses.count(200) > 0
        outcomes = fleet.gateway.outcomes()
        assert 190 <= len(begun) <= 200  # a client may be gone before it was heard
        assert outcomes.total() == len(fleet.gateway.lines()) == len(begun)
        assert {"completed", "cancelled"} <= set(outcomes)
        for gauge in (
            "open_requests",
            "queue_depth",
            "worker_requests",
            "worker_prefill_owed_tokens",
            "worker_kv_reserved_tokens",
        ):
            assert {value for _, value in fleet.gateway.series(f"fairlead_{gauge}")} == {0.0}
        tree = fleet.gateway.gateway.pools.by_model[MODEL].scheduler.prefixes
        assert all(tree.pinned_tokens(worker.url) == 0 for worker in fleet.workers)


async def test_a_stored_response_is_found_by_its_id_among_several_models():
    one, two = SimulatorConfig(model="one", profile="instant"), SimulatorConfig(model="two", profile="instant")
    async with (
        simulated_worker(one) as first,
        simulated_worker(two) as second,
        running_gateway([first.url, second.url]) as gateway,
    ):
        await until(lambda: len(gateway.gateway.pools.by_model) == 2)
        for model in ("one", "two"):
            asked = {"model": model, "input": "x", "max_output_tokens": 4}
            made = (await gateway.http.post("/v1/responses", json=asked)).json()
            found = await gateway.http.get(f"/v1/responses/{made['id']}")
            assert (found.status_code, found.json()["model"]) == (200, model)
        assert (await gateway.http.get("/v1/responses/resp_unknown")).status_code == 404
        await gateway.at_rest()


async def test_an_answer_that_has_said_its_last_word_is_whole_though_its_framing_is_cut():
    async def say(_, writer):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        events = b'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        writer.write(head + b"%x\r\n%s\r\n" % (len(events), events))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        answer = await gateway.http.post(TEXT, json={**SHORT, "stream": True})
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "error" not in answer.text
        assert gateway.outcomes() == {"completed": 1}
        await gateway.at_rest()
