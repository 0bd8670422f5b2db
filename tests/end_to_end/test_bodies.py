"""Bodies of every size and shape over real sockets: counted, parsed beside the gateway, changed by splicing."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack, suppress

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

from router.control.view import count_input
from router.edge.api import body_reader
from router.edge.api.facts import facts_of
from router.edge.api.parsed_request import Surface, parse
from router.edge.execution.scheduled import ScheduledRequest
from router.port import Identity

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS, RERANK = "/v1/messages", "/v1/embeddings", "/v1/rerank"
SPEECH = "/v1/audio/transcriptions"
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
WHOLE = {"id": "c", "choices": [{"text": "x", "finish_reason": "stop"}], "usage": USAGE}


def body(fields, more=b""):
    return json.dumps({"model": MODEL, **fields}).encode()[:-1] + more + b"}"


def nested(levels, name):
    return b',"%s":' % name.encode() + b"[" * levels + b"]" * levels


async def asked(port, request):
    async with raw_client(port) as client:
        await client.send(request)
        return await client.answer()


def is_an_error(answer, path, words):
    assert answer.status == 400, answer.body[:500]
    content = json.loads(answer.body)
    if path == MESSAGES:
        assert content["type"] == "error"
        assert set(content["error"]) == {"type", "message"}
    else:
        assert set(content["error"]) == {"message", "type", "param", "code"}
    assert words in content["error"]["message"]


MANY = [
    (TEXT, {"prompt": [[5]] * 262_144}, "`prompt` has 262144 prompts; at most 2048"),
    (TEXT, {"prompt": ["x"] * 3000}, "`prompt` has 3000 prompts; at most 2048"),
    (TEXT, {"prompt": "x", "stop": ["a"] * 300}, "`stop` has 300 stop strings; at most 256"),
    (TEXT, {"prompt": [7] * 2_100_000}, "JSON values"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "x"}] * 20_000},
        "`messages` has 20000 messages; at most 16384",
    ),
    (CHAT, {"messages": [{"role": "user", "content": [{}] * 20_000}]}, "`messages` has 20000 content parts"),
    (CHAT, {"messages": [], "tools": [{}] * 3000}, "`tools` has 3000 tools; at most 2048"),
    (CHAT, {f"f{number}": 1 for number in range(2000)}, "The request body has 2001 fields; at most 1024"),
    (CHAT, {"messages": [], "metadata": [0] * 20_000}, "`metadata` has 20000 items; at most 16384"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{}] * 20_000}]}, "`messages` has 20000 content parts"),
    (MESSAGES, {"messages": [], "stop_sequences": ["a"] * 300}, "`stop_sequences` has 300 stop strings"),
    (RESPONSES, {"input": [{}] * 20_000}, "`input` has 20000 items; at most 16384"),
    (EMBEDDINGS, {"input": ["x"] * 3000}, "`input` has 3000 inputs; at most 2048"),
    (RERANK, {"query": "x", "documents": ["x"] * 20_000}, "`documents` has 20000 documents; at most 16384"),
]


@pytest.mark.parametrize(("path", "fields", "words"), MANY, ids=lambda value: str(value)[:24])
async def test_more_of_anything_than_is_possible_is_refused_by_name(unhurt, path, fields, words):
    if len(request := post(path, body(fields))) > 1_000_000:
        pytest.skip("larger than this gateway takes; `test_large_ones` sends it to another one")
    is_an_error(await asked(unhurt.gateway.port, request), path, words)


async def test_large_ones_are_refused_by_another_process_in_the_same_words(monkeypatch):
    monkeypatch.setattr(body_reader, "parse", None)
    async with running_fleet(1) as fleet:
        for path, fields, words in MANY:
            request = post(path, body(fields, b" " * 200_000))
            is_an_error(await asked(fleet.gateway.port, request), path, words)
        await fleet.at_rest()


DEEP = [
    (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "tools"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "documents"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "stream": True}, "metadata"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "priority": 1}, "x"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "model": "alias"}, "x"),
    (TEXT, {"prompt": "x", "stream": True, "stream_options": {"x": 1}}, "x"),
    (TEXT, {}, "prompt"),
    (RESPONSES, {}, "input"),
    (RESPONSES, {"input": "x"}, "tools"),
    (MESSAGES, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}, "system"),
    (MESSAGES, {"max_tokens": 2}, "messages"),
    (EMBEDDINGS, {}, "input"),
    (RERANK, {"query": "x", "documents": ["x"], "model": "alias"}, "x"),
    (RERANK, {"query": "x"}, "documents"),
]


@pytest.mark.parametrize("levels", [200, 255, 300, 600, 1000, 1024, 100_000])
async def test_nesting_is_answered_by_the_worker_or_refused_and_never_an_error_of_ours(levels, caplog):
    async def answer(_fields, writer):
        writer.write(whole_answer(json.dumps(WHOLE).encode()))

    async with (
        scripted_worker(answer) as worker,
        running_gateway([{"url": worker.url}], models={"alias": MODEL}) as gateway,
    ):
        for path, fields, name in DEEP:
            async with raw_client(gateway.port) as client:
                await client.send(post(path, body({"max_tokens": 2, **fields}, nested(levels, name))))
                reply = await client.answer()
            assert reply.status in (200, 400), (path, name, reply.body)
            if reply.status == 400:
                is_an_error(reply, path, "nested" if levels < 1000 else "")
            elif path != RERANK and name not in ("messages", "input", "prompt"):
                assert worker.bodies[-1].count(b"[") >= levels
    assert "Traceback" not in caplog.text
    assert "bug of the gateway" not in caplog.text


async def test_a_part_of_a_turn_in_a_part_of_a_turn_without_end_is_no_error_of_ours(unhurt):
    for levels in (10, 100, 300, 500):
        part = '{"type":"tool_result","content":[' * levels + "]}" * levels
        content = '[{"role":"user","content":[' + part + "]}]"
        for path in (CHAT, MESSAGES):
            request = post(path, f'{{"model":"{MODEL}","max_tokens":1,"messages":{content}}}'.encode())
            assert (await asked(unhurt.gateway.port, request)).status in (200, 400)


async def test_what_is_changed_is_spliced_and_every_other_byte_goes_on_as_it_came():
    """In one process or the other, whatever is odd about the rest."""
    odd = b'"seed" : 123456789012345678901234567890, "x":[1.50, 1E30 ,"\\u00e9\\/\\ud83d\\ude00"], "prompt":"a"'

    async def answer(_fields, writer):
        writer.write(whole_answer(json.dumps(WHOLE).encode()))

    async with (
        scripted_worker(answer) as worker,
        running_gateway([{"url": worker.url}], models={"alias": MODEL}) as gateway,
    ):
        for blanks in (b"", b" " * 300_000):
            text = (
                b'{"priority":2, "model" : "alias",' + odd + b',"vllm_xargs":{"a":1,"priority":5}' + blanks + b"}"
            )
            assert (await asked(gateway.port, post(TEXT, text))).status == 200
            expected = b'{"model" : "%b",' % MODEL.encode() + odd + b',"vllm_xargs":{"a":1}' + blanks + b"}"
            assert worker.bodies[-1] == expected


async def test_a_stream_goes_on_while_large_bodies_are_read(monkeypatch):
    """The mechanism: nothing of a large body is parsed, joined or copied here but in pieces."""
    monkeypatch.setattr(body_reader, "parse", None)
    async with running_fleet(1) as fleet:
        text = body({"prompt": "x" * 20_000_000, "max_tokens": 1})
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        answer = await asked(fleet.gateway.port, post(TEXT, text))
        counting.cancel()
        assert answer.status in (200, 400)
        assert turns > 200
        await fleet.at_rest()


async def test_a_large_form_is_passed_on_whole_and_its_alias_replaced():
    async def answer(_fields, writer):
        writer.write(whole_answer(b'{"text":"x"}'))

    form = b'--b\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    audio = bytes(range(256)) * 4000
    text = form % (b"file", b'; filename="a"', audio) + form % (b"model", b"", b"alias") + b"--b--\r\n"
    async with (
        scripted_worker(answer) as worker,
        running_gateway([{"url": worker.url}], models={"alias": MODEL}) as gateway,
    ):
        head = f"POST {SPEECH} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        reply = await asked(gateway.port, f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
        assert reply.status == 200
        assert worker.bodies[-1] == text.replace(b"\r\nalias\r\n", b"\r\n%b\r\n" % MODEL.encode())


# -- what waits, and what is not read


async def test_what_waits_is_bytes_and_bounded_in_sum():
    """A queue of large bodies: those beyond the bound are turned away, and nothing is held at the end."""
    released, reached = asyncio.Event(), asyncio.Event()

    async def answer(_fields, writer):
        reached.set()
        await released.wait()
        writer.write(whole_answer(json.dumps(WHOLE).encode()))

    text = body({"prompt": "x" * 400_000, "max_tokens": 1})
    async with (
        scripted_worker(answer) as worker,
        running_gateway([{"url": worker.url}], limits={"held_bytes": 2_000_000}) as gateway,
    ):
        waiting = [asyncio.create_task(asked(gateway.port, post(TEXT, text)))]
        await reached.wait()
        waiting += [asyncio.create_task(asked(gateway.port, post(TEXT, text))) for _ in range(5)]
        held = gateway.gateway.intake.held
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: len([task for task in waiting if not task.done()]) <= 2)
        assert 0 < held.requests <= 2_000_000
        page = {labels["what"]: value for labels, value in gateway.series("fairlead_held_bytes")}
        assert page["requests"] == held.requests
        assert all(task.result().status == 429 for task in done)
        assert b"its limit is 2000000" in next(iter(done)).result().body
        released.set()
        statuses = sorted([reply.status for reply in await asyncio.gather(*waiting)])
        assert statuses[:1] == [200]
        assert set(statuses) == {200, 429}
        await gateway.at_rest()
        assert (held.requests, held.answers) == (0, 0)


async def test_no_parsed_body_waits():
    """What was parsed may be thirty times as large as its text."""
    asked_for = []
    released = asyncio.Event()

    class Kept(ScheduledRequest):
        async def _attempted(self, dispatch, ask, route):
            asked_for.append((ask.fields, bytes(ask.body)))
            return await super()._attempted(dispatch, ask, route)

    async def answer(_fields, writer):
        await released.wait()
        writer.write(whole_answer(json.dumps(WHOLE).encode()))

    released.set()
    async with scripted_worker(answer) as worker, running_gateway([{"url": worker.url}]) as gateway:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("router.edge.routes.ScheduledRequest", Kept)
            text = body({"prompt": "x", "x": [[]] * 5000})
            assert (await asked(gateway.port, post(TEXT, text))).status == 200
    assert asked_for == [(None, text)]


@pytest.mark.parametrize("path", [TEXT, "/tokenize"])
async def test_answers_that_are_not_read_are_counted_bounded_in_sum_and_keep_their_request_open(path):
    large = json.dumps({**WHOLE, "x": "y" * 6_000_000}).encode()

    async def answer(_fields, writer):
        writer.write(whole_answer(large))
        await writer.drain()

    async with (
        scripted_worker(answer) as worker,
        running_gateway([{"url": worker.url}], limits={"held_bytes": 20_000_000}) as gateway,
    ):
        intake = gateway.gateway.intake
        async with AsyncExitStack() as stack:
            sockets = []
            for _ in range(5):
                mine = socket.socket()
                mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                mine.connect(("127.0.0.1", gateway.port))
                stack.callback(mine.close)
                mine.sendall(post(path, body({"prompt": "x"})))
                sockets.append(mine)
            await until(lambda: intake.held.answers > 0)
            await asyncio.sleep(0.5)
            assert intake.held.answers <= 20_000_000
            assert 0 < intake.open <= 5
            assert gateway.series("fairlead_open_requests") == [({}, intake.open)]
        await gateway.at_rest()
        assert intake.held.answers == 0


async def test_a_large_answer_is_whole_however_slowly_it_is_read():
    large = json.dumps({"x": "y" * 3_000_000, **WHOLE}, separators=(",", ":")).encode()

    async def answer(_fields, writer):
        for at in range(0, len(whole := whole_answer(large)), 99_999):
            writer.write(whole[at : at + 99_999])
            await writer.drain()

    async with scripted_worker(answer) as worker, running_gateway([{"url": worker.url}]) as gateway:
        reply = await asked(gateway.port, post(TEXT, body({"prompt": "x"})))
        assert reply.body == large
        assert gateway.lines()[-1]["output_tokens"] == 3


# -- as vLLM does it


async def sent_as(worker_heads, port, request):
    async with raw_client(port) as client:
        await client.send(request)
        answer = await client.answer()
    return worker_heads[-1], answer


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
async def test_the_id_that_a_body_names_is_the_request_s_unless_a_header_names_one(path):
    """vLLM takes the header where there is one, and the gateway always sends one."""
    heads = []

    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET"):
                models = json.dumps({"data": [{"id": MODEL, "root": MODEL}]}).encode()
                writer.write(whole_answer(models if b"/v1/models" in head else b""))
                continue
            heads.append(head.lower())
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(whole_answer(json.dumps(WHOLE).encode()))

    async def quiet(reader, writer):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(quiet, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with running_gateway([{"url": url}]) as gateway:
        fields = {"prompt": "x", "messages": [], "input": "x", "request_id": "mine-1"}
        head, answer = await sent_as(heads, gateway.port, post(path, body(fields)))
        assert b"\r\nx-request-id: mine-1\r\n" in head
        assert answer.headers["x-request-id"] == "mine-1"
        assert gateway.lines()[-1]["request_id"] == "mine-1"
        head, answer = await sent_as(heads, gateway.port, post(path, body(fields), "x-request-id: header-1"))
        assert b"\r\nx-request-id: header-1\r\n" in head
        for odd in ("a\r\nb: c", "é", "x" * 200, "", 5):
            head, answer = await sent_as(heads, gateway.port, post(path, body({**fields, "request_id": odd})))
            assert answer.status == 200
            assert len(answer.headers["x-request-id"]) == 32
    server.close()


@pytest.mark.parametrize("word", [True, 1, 1.0, "true", "True", "yes", "ON", "t", "y", "1"])
async def test_a_truth_value_in_any_of_vllm_s_words_streams(word):
    events = b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def answer(fields, writer):
        writer.write(STREAM_HEAD + events)

    async with scripted_worker(answer) as worker, running_gateway([{"url": worker.url}]) as gateway:
        reply = await asked(gateway.port, post(TEXT, body({"prompt": "x", "stream": word})))
        assert (reply.status, reply.body) == (200, events)
        assert worker.asked[-1]["stream"] == word
        assert worker.asked[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("word", ["maybe", 2, 0.5, [], {}, "tru"])
async def test_what_vllm_takes_for_no_truth_value_is_refused_by_name(unhurt, word):
    answer = await asked(unhurt.gateway.port, post(TEXT, body({"prompt": "x", "stream": word})))
    is_an_error(answer, TEXT, "`stream` must be a boolean")


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
async def test_usage_that_was_not_asked_for_is_taken_out_however_the_json_is_spaced(separators):
    def event(**more):
        return b"data: " + json.dumps({"id": "c", "object": "x", **more}, separators=separators).encode() + b"\n\n"

    def choice(text, reason):
        return [{"index": 0, "text": text, "finish_reason": reason}]

    events = [
        event(choices=choice('"usage": {"choices": []} ', None)),
        event(choices=choice("", "stop")),
        event(choices=[], usage={**USAGE, "total_tokens": 5}, system_fingerprint="f"),
        b"data: [DONE]\n\n",
    ]

    async def answer(_fields, writer):
        for each in events:
            writer.write(STREAM_HEAD + each if each is events[0] else each)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with scripted_worker(answer) as worker, running_gateway([{"url": worker.url}]) as gateway:
        request = post(TEXT, body({"prompt": "x", "stream": True}))
        reply = await asked(gateway.port, request)
        seen = [json.loads(each[6:]) for each in reply.body.split(b"\n\n") if each.startswith(b"data: {")]
        assert reply.body.startswith(events[0])
        assert len(seen) == 2
        assert all("usage" not in each and each["choices"] for each in seen)
        assert seen[-1]["system_fingerprint"] == "f"
        assert gateway.lines()[-1]["output_tokens"] == 3
        wanted = await asked(
            gateway.port, post(TEXT, body({"stream": True, "stream_options": {"include_usage": True}}))
        )
        assert b'"usage"' in wanted.body.split(b"\n\n")[2]


# -- what a prompt counts


async def test_each_part_counts_for_what_it_is_and_only_whole_prompts_teach_what_a_byte_is_worth():
    usage = {"prompt_tokens": 0, "completion_tokens": 3}

    async def answer(_fields, writer):
        writer.write(whole_answer(json.dumps({**WHOLE, "usage": usage}, separators=(",", ":")).encode()))

    async with scripted_worker(answer) as worker, running_gateway([{"url": worker.url}]) as gateway:
        ratio = gateway.gateway.control.ratio

        async def told(path, tokens, **fields):
            usage["prompt_tokens"] = tokens
            await asked(gateway.port, post(path, body(fields)))

        text, turn = "word " * 200, [{"role": "user", "content": "word " * 200}]
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
        for _ in range(10):
            await told(RESPONSES, 90_000, input=text, previous_response_id="resp_1")
            await told(RESPONSES, 90_000, input=text, conversation="conv_1")
            await told(TEXT, 90_000, prompt=text, prompt_embeds="AAAA")
            await told(TEXT, 3, prompt=text, truncate_prompt_tokens=3)
            await told(CHAT, 9_000, messages=turn, chat_template="{{ messages }}" * 99)
            await told(CHAT, 1_300, messages=[{"role": "user", "content": [picture]}])
        assert ratio.tokens_per_byte(MODEL) == 0.25
        assert 1_200 < ratio.tokens_per_medium(MODEL) < 1_300
        usage["prompt_tokens"] = 1
        result = {"type": "tool_result", "tool_use_id": "t", "content": "word " * 12_000}
        in_list = {**result, "content": [{"type": "text", "text": "word " * 12_000}]}
        with_picture = {**result, "content": [{"type": "text", "text": "word " * 12_000}, picture]}
        for block, least, most in (
            (result, 14_900, 15_100),
            (in_list, 14_900, 15_100),
            (with_picture, 16_100, 16_400),
        ):
            given = {"messages": [{"role": "user", "content": [block]}], "max_tokens": 5}
            view = parse(Surface.MESSAGES, json.dumps(given).encode())
            facts = facts_of(
                view, request="r", identity=Identity("a", "a"), served_name=MODEL, age_s=0, whole=False
            )
            assert least < count_input(facts, 0.25, ratio.tokens_per_medium(MODEL)) < most
