"""What may go wrong where two legs of a stream meet: each trap that was found on vLLM 0.32, over sockets."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.end_to_end.gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)
from tests.end_to_end.streams import (
    ASKED,
    CHAT,
    SECRET,
    TEXT,
    USAGE,
    counted,
    same,
    streamed,
)
from workers.simulator.faults import Fault

SLOW = {"profile": "h100-llama-3.1-8b", "speed": 0.3}


async def undisturbed(fleet, path, body):
    async with httpx.AsyncClient(base_url=fleet.workers[0].url, timeout=30) as direct:
        return await streamed(direct, path, body)


async def cut_everywhere(fleet, path, body, cuts):
    """A stream for each of these cuts, whose first worker dies after so many tokens."""
    tries = 0
    for cut in cuts:
        before = sum(counted(fleet.gateway).values())
        while sum(counted(fleet.gateway).values()) == before:
            tries += 1
            asked = varied(path, body, tries)
            whole = await undisturbed(fleet, path, asked)
            for worker in fleet.workers:
                if worker is not fleet.workers[tries % 3]:
                    worker.set_fault(Fault("die_mid_stream", after_tokens=cut, times=1))
            same(await streamed(fleet.http, path, asked), whole)
            for worker in fleet.workers:
                worker.clear_fault()
            assert tries < 10 * len(cuts)
    await fleet.at_rest()
    assert set(counted(fleet.gateway)) == {("continued", "cut")}


def varied(path, body, number):
    """The same request in other words, so that it is nowhere in a cache."""
    if path == TEXT:
        return {**body, "prompt": f"{number}. {SECRET}"}
    return {**body, "messages": [{"role": "system", "content": f"{number}. {SECRET}"}, *body["messages"][1:]]}


@pytest.mark.parametrize("vocabulary", ["english", "chinese", "emoji"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_wherever_a_stream_is_cut_its_answer_is_the_same(vocabulary, path):
    async with running_fleet(3, {"vocabulary": vocabulary}, continuation="exact") as fleet:
        body = {**ASKED[path], "max_tokens": 40, "ignore_eos": True}
        await cut_everywhere(fleet, path, body, (*range(1, 25), 39, 40))


@pytest.mark.parametrize("shows", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_stop_strings_are_found_across_the_seam(path, shows):
    async with running_fleet(3, continuation="exact") as fleet:
        body = {**ASKED[path], "max_tokens": 60, "ignore_eos": True, "include_stop_str_in_output": shows}
        stops = ["e t", " on so", "never said, and longer than the others"]
        await cut_everywhere(fleet, path, {**body, "stop": stops}, (*range(1, 16), 20, 30))


@pytest.mark.parametrize(("kind", "reason"), [("abort", "aborted"), ("paused", "aborted")])
async def test_an_end_that_looks_clean_is_a_death(kind, reason):
    async with running_fleet(2, SLOW, continuation="exact") as fleet:
        whole = await undisturbed(fleet, CHAT, ASKED[CHAT])

        def act():
            [worker] = [one for one in fleet.workers if one.engine.running]
            worker.set_fault(Fault(kind))

        same(await streamed(fleet.http, CHAT, ASKED[CHAT], 20, act), whole)
        assert counted(fleet.gateway) == {("continued", reason): 1}
        for worker in fleet.workers:
            worker.clear_fault()
        await fleet.at_rest()


async def test_an_error_inside_a_stream_is_a_death_of_the_engine():
    async with running_fleet(3, continuation="exact") as fleet:
        body = {**ASKED[CHAT], "max_tokens": 60, "ignore_eos": True}
        whole = await undisturbed(fleet, CHAT, body)
        for worker in fleet.workers[:2]:
            worker.set_fault(Fault("error_in_stream", after_tokens=9, times=1))
        same(await streamed(fleet.http, CHAT, body), whole)
        assert set(counted(fleet.gateway)) <= {("continued", "engine")}
        await fleet.at_rest()


NOT_CONTINUED = [
    (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"n": 2, "temperature": 1}, "n"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
    (CHAT, {"seed": 3, "temperature": 1}, "seed"),
    (CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
    (CHAT, {"what_is_this": 1}, "unknown_member"),
    (CHAT, {"return_token_ids": True}, "return_token_ids"),
    (TEXT, {"logprobs": 1}, "logprobs"),
    (TEXT, {"prompt": ["one", "two"]}, "several_prompts"),
    (TEXT, {"stop": "xyz", "min_tokens": 5}, "min_tokens_with_stop"),
]


@pytest.mark.parametrize(("path", "more", "reason"), NOT_CONTINUED)
async def test_what_cannot_go_on_ends_with_an_error_event(path, more, reason):
    async with running_fleet(2, continuation="exact") as fleet:
        body = {**ASKED[path], "max_tokens": 40, "ignore_eos": True, **more}
        for worker in fleet.workers:
            worker.set_fault(Fault("die_mid_stream", after_tokens=1))
        told = await streamed(fleet.http, path, body)
        assert [error["type"] for error in told.errors] == ["WorkerError"]
        assert told.finishes == []
        assert counted(fleet.gateway) == {("broken", reason): 1}
        await fleet.at_rest()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": MODEL, "input": "hello", "max_output_tokens": 40}),
        ("/v1/messages", {"model": MODEL, "messages": ASKED[CHAT]["messages"][1:], "max_tokens": 40}),
    ],
)
async def test_surfaces_without_ids_end_with_an_error_event_of_their_own(path, body):
    async with running_fleet(2, continuation="exact") as fleet:
        for worker in fleet.workers:
            worker.set_fault(Fault("die_mid_stream", after_tokens=3))
        answer = await fleet.http.post(path, json={**body, "stream": True, "ignore_eos": True})
        assert "event: error\n" in answer.text
        assert "event: message_stop" not in answer.text
        assert "event: response.completed" not in answer.text
        assert counted(fleet.gateway) == {("broken", "surface"): 1}
        await fleet.at_rest()


@pytest.mark.parametrize(
    ("more", "mode", "goes_on"),
    [
        ({"seed": 3, "temperature": 0}, "exact", True),
        ({"seed": 3, "temperature": 1}, "best_effort", True),
        ({"presence_penalty": 0.5}, "best_effort", True),
        ({}, "off", False),
    ],
)
async def test_how_far_it_goes_is_for_the_operator_to_say(more, mode, goes_on):
    async with running_fleet(3, continuation=mode) as fleet:
        body = {**ASKED[CHAT], "max_tokens": 40, "ignore_eos": True, **more}
        for worker in fleet.workers[:2]:
            worker.set_fault(Fault("die_mid_stream", after_tokens=3, times=1))
        while not (told := await streamed(fleet.http, CHAT, body)).errors and not counted(fleet.gateway):
            pass
        assert (told.errors == []) is goes_on
        asked = [json.loads(one.body) for worker in fleet.workers for one in worker.app.received if one.body]
        assert any(one.get("return_token_ids") for one in asked) is (mode != "off")
        rest = [one for one in asked if isinstance(one.get("prompt"), list)]
        assert all(one[name] == value for one in rest for name, value in more.items())
        await fleet.at_rest()


async def test_limits_go_on_with_what_is_left_of_them():
    async with running_fleet(3, continuation="exact") as fleet:
        body = {**ASKED[TEXT], "max_tokens": 30, "min_tokens": 20, "stop_token_ids": [1], "logit_bias": {"5": 1}}
        for worker in fleet.workers[:2]:
            worker.set_fault(Fault("die_mid_stream", after_tokens=4, times=1))
        told = await streamed(fleet.http, TEXT, body)
        asked = [json.loads(one.body) for worker in fleet.workers for one in worker.app.received if one.body]
        rest = [one for one in asked if isinstance(one.get("prompt"), list)]
        assert rest
        for one in rest:
            assert (one["max_tokens"], one["min_tokens"]) in {(26, 16), (22, 12)}
            assert one["stop_token_ids"] == [1]
            assert one["logit_bias"] == {"5": 1}
            assert "echo" not in one
        assert told.usages[0]["completion_tokens"] == 30 or told.finishes[0][0] == "stop"


# -- workers that lie


def event(content):
    return b"data: %b\n\n" % json.dumps(content, separators=(",", ":")).encode()


def piece(text, ids, *, finish=None, prompt=None, model=MODEL):
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    choice |= {"prompt_token_ids": prompt, "token_ids": ids}
    return event({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model, "choices": [choice]})


def detokenizing(script, words):
    """A script with /detokenize before it: each id is a word."""

    async def answer(body, writer):
        if "tokens" in body:
            text = "".join(words[token] for token in body["tokens"])
            said = whole_answer(json.dumps({"prompt": text}).encode())
            writer.write(said.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            return
        await script(body, writer)

    return answer


WORDS = {7: " a", 8: " prompt", 1: " one", 2: " two", 3: " three", 4: " four", 9: " nine"}


async def asked_until_broken(gateway, worker):
    """Streams until the one that the gateway has given to this worker first is over."""
    before = len([one for one in worker.asked if "tokens" not in one])
    while True:
        told = await streamed(gateway.http, TEXT, ASKED[TEXT])
        if len([one for one in worker.asked if "tokens" not in one]) > before:
            return told


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([piece(" one", None), piece(" two", None)], "no_ids"),
        ([piece(" one", [1], prompt=[7]), piece(" two", [9])], "text"),
    ],
)
async def test_a_worker_whose_ids_are_no_use_is_asked_for_none_any_more(chunks, reason, caplog):
    async def dies(_body, writer):
        writer.write(STREAM_HEAD + b"".join(chunks))
        await writer.drain()

    async def good(_body, writer):
        writer.write(STREAM_HEAD + piece(" two", [2], prompt=[7], finish="stop") + b"data: [DONE]\n\n")

    async with (
        scripted_worker(detokenizing(dies, WORDS)) as first,
        scripted_worker(detokenizing(good, WORDS)) as second,
        running_gateway([{"url": first.url}, {"url": second.url}], continuation="exact") as gateway,
    ):
        for _ in range(2):
            told = await asked_until_broken(gateway, first)
            assert len(told.errors) == 1
            assert told.text == " one two"
            gateway.gateway.fleet.drain(second.url)  # the next one goes to the first, whatever is thought of it
        asked = [one for one in first.asked if "tokens" not in one]
        assert (asked[0].get("return_token_ids"), asked[-1].get("return_token_ids")) == (True, None)
        assert len([one for one in caplog.messages if "cannot go on at another worker" in one]) == 1
        assert counted(gateway) == {("broken", reason): 1, ("broken", "distrusted"): 1}
        await gateway.at_rest()


@asynccontextmanager
async def two_that(answer):
    """A gateway in front of two workers that follow this script, each of which a stream may try."""
    async with (
        scripted_worker(detokenizing(answer, WORDS)) as first,
        scripted_worker(detokenizing(answer, WORDS)) as second,
        running_gateway(
            [{"url": first.url}, {"url": second.url}], limits={"attempts": 2}, continuation="exact"
        ) as gateway,
    ):
        yield gateway


async def test_another_model_is_no_place_to_go_on():
    async def dies(body, writer):
        if body["prompt"] == ASKED[TEXT]["prompt"]:
            writer.write(STREAM_HEAD + piece(" one", [1], prompt=[7]))
            await writer.drain()
        else:
            writer.write(STREAM_HEAD + piece(" two", [2], prompt=[7, 1], model="other"))
            writer.write(b"data: [DONE]\n\n")

    async with two_that(dies) as gateway:
        told = await streamed(gateway.http, TEXT, {**ASKED[TEXT], "max_tokens": 9})
        assert told.text == " one"
        assert len(told.errors) == 1
        await gateway.at_rest()


DEEP = "[" * 500 + "]" * 500
GOOD = {"index": 0, "text": " two", "token_ids": [2], "finish_reason": "stop", "stop_reason": None}


@pytest.mark.parametrize(
    "odd",
    [
        json.dumps({"choices": [{**GOOD, "token_ids": ["2"]}]}),
        json.dumps({"choices": [{**GOOD, "token_ids": [{}]}]}),
        json.dumps({"choices": [{**GOOD, "finish_reason": {"a": 1}}]}),
        json.dumps({"choices": [{**GOOD, "stop_reason": "DEEP"}]}).replace('"DEEP"', DEEP),
        json.dumps(
            {"choices": [GOOD], "system_fingerprint": "DEEP", "usage": {"prompt_tokens_details": {"a": "DEEP"}}}
        ).replace('"DEEP"', DEEP),
    ],
    ids=["text", "objects", "finish", "stop", "details"],
)
async def test_a_worker_that_goes_on_in_another_form_meets_no_bug(odd, caplog):
    head = json.dumps({"id": "x", "object": "text_completion", "created": 1, "model": MODEL})[:-1]

    async def dies(body, writer):
        if body["prompt"] == ASKED[TEXT]["prompt"]:
            writer.write(STREAM_HEAD + piece(" one", [1], prompt=[7]))
            await writer.drain()
        else:
            writer.write(STREAM_HEAD + f"data: {head}, {odd[1:]}\n\n".encode() + b"data: [DONE]\n\n")

    async with two_that(dies) as gateway:
        told = await streamed(gateway.http, TEXT, {**ASKED[TEXT], "max_tokens": 9})
        assert told.text in (" one", " one two")
        assert len(told.errors) == (told.text == " one")
        assert not [one for one in caplog.messages if "met a bug" in one]
        await gateway.at_rest()


@pytest.mark.parametrize("odd", ['"created": DEEP', '"id": {}', '"object": ["x"]'])
async def test_a_dead_worker_whose_chunks_do_not_say_what_they_are_is_not_followed(odd, caplog):
    opening = json.dumps({"model": MODEL, "choices": [{**GOOD, "prompt_token_ids": [7], "finish_reason": None}]})

    async def dies(_body, writer):
        writer.write(STREAM_HEAD + f"data: {{{odd.replace('DEEP', DEEP)}, {opening[1:]}\n\n".encode())
        await writer.drain()

    async with two_that(dies) as gateway:
        told = await streamed(gateway.http, TEXT, {**ASKED[TEXT], "max_tokens": 9})
        assert len(told.errors) == 1
        assert not [one for one in caplog.messages if "met a bug" in one]
        await gateway.at_rest()


def lines_of_vllm(chat, ids):
    """A stream of vLLM 0.32, with token ids or without."""
    head = {"id": "x-1", "object": "chat.completion.chunk" if chat else "text_completion", "created": 1}
    head["model"] = MODEL
    prompt = [7, 8] if ids else None
    if chat:
        role = {"role": "assistant", "content": ""}
        first = {"index": 0, "delta": role, "logprobs": None, "finish_reason": None}
        yield event({**head, "choices": [first], "prompt_token_ids": prompt, "prompt_text": None})
    texts = ["", " one", " two", ' "token_ids":[1]', "", " 海", " four"]
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        said = {"delta": {"content": text}} if chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "stop" if last else None}
        if not chat:
            choice |= {"stop_reason": None, "prompt_token_ids": None if number else prompt}
        elif last:
            choice["stop_reason"] = None
        yield event({**head, "choices": [{**choice, "token_ids": [number, 5] if ids else None}]})
    if chat and ids:  # a parser that keeps a token to itself sends it only to those who want ids
        yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": None, "token_ids": [3]}]})
    yield event({**head, "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 14}})
    yield b": a comment\n\n"
    yield b"data: [DONE]\n\n"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("more", [{"stream": True}, USAGE])
@pytest.mark.parametrize("size", [1, 7, 64, 300, 10_000])
async def test_the_clients_lines_are_those_of_a_stream_that_is_not_watched(path, more, size):
    async def tells(body, writer):
        told = b"".join(lines_of_vllm(path == CHAT, body.get("return_token_ids")))
        writer.write(STREAM_HEAD)
        for at in range(0, len(told), size):
            writer.write(told[at : at + size])
            await asyncio.sleep(0)

    seen = []
    for mode in ("off", "exact"):
        async with (
            scripted_worker(tells) as worker,
            running_gateway([{"url": worker.url}], continuation=mode) as gateway,
        ):
            answer = await gateway.http.post(path, json={**ASKED[path], **more})
            seen.append(answer.content)
            assert worker.asked[-1].get("return_token_ids", False) is (mode == "exact")
    assert seen[0] == seen[1]
    assert seen[0].endswith(b"data: [DONE]\n\n")


async def test_an_answer_of_which_only_the_end_is_missing_gets_it():
    async def dies(_body, writer):
        writer.write(STREAM_HEAD + piece(" one", [1], prompt=[7, 8]) + piece(" two", [2, 0], finish="stop"))
        await writer.drain()

    async with (
        scripted_worker(detokenizing(dies, WORDS)) as worker,
        running_gateway([{"url": worker.url}], continuation="exact") as gateway,
    ):
        for more in (USAGE, {"stream": True}):
            told = await streamed(gateway.http, TEXT, {**ASKED[TEXT], **more})
            assert (told.text, told.errors, told.finishes) == (" one two", [], [("stop", None)])
            assert told.ended
            if more is USAGE:
                assert told.usages == [{"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3}]
            else:
                assert told.usages == []
        await gateway.at_rest()


async def test_with_no_token_left_no_worker_is_asked_for_one():
    asked = []

    async def dies(body, writer):
        asked.append(body)
        writer.write(STREAM_HEAD + piece(" one", [1], prompt=[7, 8]) + piece(" two", [2]))
        await writer.drain()

    async with two_that(dies) as gateway:
        for worker in gateway.gateway.pools.members.values():
            assert worker.worker.max_model_len is None
        told = await streamed(gateway.http, TEXT, {**ASKED[TEXT], "max_tokens": 2})
        assert (told.text, told.errors, told.finishes) == (" one two", [], [("length", None)])
        assert told.usages == [{"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2}]
        assert len(asked) == 1
        await gateway.at_rest()


async def test_a_client_that_leaves_on_the_way_to_another_worker_leaves_nothing_behind():
    gate = asyncio.Event()

    async def waits(body, writer):
        if "tokens" in body:
            gate.set()
            await asyncio.Event().wait()
        writer.write(STREAM_HEAD + piece(" one", [1], prompt=[7, 8]))
        await writer.drain()

    async with (
        scripted_worker(waits) as first,
        scripted_worker(waits) as second,
        running_gateway([{"url": first.url}, {"url": second.url}], continuation="exact") as gateway,
    ):
        task = asyncio.create_task(streamed(gateway.http, TEXT, ASKED[TEXT]))
        await asyncio.wait_for(gate.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gateway.at_rest()
        assert len(gateway.gateway.control.seams) == 0


async def test_a_burst_of_deaths_goes_on_a_few_at_a_time():
    async with running_fleet(2, SLOW, limits={"continuations": 2}, continuation="exact") as fleet:
        body = {**ASKED[CHAT], "max_tokens": 40, "ignore_eos": True}
        whole = await undisturbed(fleet, CHAT, body)
        seams, most = fleet.gateway.gateway.control.seams, 0
        streams = [asyncio.create_task(streamed(fleet.http, CHAT, body)) for _ in range(12)]
        await until(lambda: fleet.running == 12)
        await asyncio.sleep(0.1)
        for worker in fleet.workers[:1]:
            worker.set_fault(Fault("crash"))
        while not all(task.done() for task in streams):
            most = max(most, len(seams))
            await asyncio.sleep(0)
        for task in streams:
            same(task.result(), whole)
        assert 1 <= most <= 2
        assert (len(seams), seams.waiting) == (0, 0)
        await fleet.gateway.at_rest()
