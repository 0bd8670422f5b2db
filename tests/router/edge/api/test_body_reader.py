"""Large bodies in a process beside the gateway: what comes of them, and of a process that ends."""

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager

import pytest

from router.edge.api import body_reader
from router.edge.api.body_reader import INLINE_BYTES, BodyReader
from router.edge.api.continuable import continuation_of
from router.edge.api.parsed_request import KEY_BYTES, Surface, parse
from router.edge.api.rewrite import for_worker
from router.edge.errors import BadRequest, RequestError
from router.edge.pieces import PieceCollector, Pieces

LONG = "word " * 100_000


@asynccontextmanager
async def reader():
    made = BodyReader()
    try:
        yield made
    finally:
        await made.aclose()
    assert not made._processes
    assert not made._reading


def pieces(fields, size=70_000):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return Pieces([text[at : at + size] for at in range(0, len(text), size)])


@pytest.mark.parametrize(
    ("surface", "fields"),
    [
        (Surface.CHAT, {"model": "m", "messages": [{"role": "user", "content": LONG}], "stream": True, "n": 2}),
        (
            Surface.CHAT,
            {"priority": 3, "messages": [{"content": LONG}], "stream": True, "stream_options": {"x": 1}},
        ),
        (Surface.COMPLETIONS, {"prompt": [7] * 90_000, "user": "ann"}),
        (Surface.COMPLETIONS, {"prompt": [LONG, "b"], "max_tokens": 3}),
        (Surface.RESPONSES, {"input": LONG, "previous_response_id": "resp_1", "store": False}),
        (Surface.MESSAGES, {"messages": [{"content": LONG}], "metadata": {"user_id": "u"}}),
        (Surface.EMBEDDINGS, {"input": [LONG]}),
    ],
)
async def test_a_large_body_is_read_as_a_small_one_is_but_elsewhere(surface, fields, monkeypatch):
    body = pieces(fields)
    here = parse(surface, b"".join(body))
    monkeypatch.setattr(body_reader, "parse", None)  # nothing of it is parsed in this process
    async with reader() as bodies:
        found = await bodies.read(surface, body)
    assert found.body is body
    assert found.fields is None
    assert b"".join(for_worker(found, "other")) == for_worker(here, "other")
    for name in here.__slots__:
        if name not in ("body", "fields", "members", "structure", "continuation"):
            assert getattr(found, name) == getattr(here, name), name
    # Whether its stream could go on elsewhere is read from the fields, which are gone here.
    assert found.continuation == continuation_of(surface, here.fields)


async def test_other_bodies_are_read_there_too():
    async with reader() as bodies:
        found = await bodies.read_passed(pieces({"model": "m", "documents": [LONG], "user": "ann"}))
        assert (found.model, found.user) == ("m", "ann")


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (b'{"prompt":"' + b"x" * 300_000, "not valid JSON", "body"),
        (b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}", "not valid JSON", "body"),
        (b'{"model":5,"prompt":"' + b"x" * 300_000 + b'"}', "`model` must be a str", "model"),
        (b'{"prompt":[' + b'"",' * 99_999 + b'""]}', "`prompt` has 100000 prompts; at most 2048", "prompt"),
        (b'{"x":[' + b"[]," * 3_000_000 + b"0]}", "more than 2097152 JSON values", "body"),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_a_large_body_is_refused_in_the_same_words(body, words, param):
    async with reader() as bodies:
        with pytest.raises(BadRequest, match=words) as refused:
            await bodies.read(Surface.COMPLETIONS, pieces(body))
        assert refused.value.param == param


async def test_only_so_much_of_a_prompt_is_a_key():
    async with reader() as bodies:
        found = await bodies.read(Surface.COMPLETIONS, pieces({"prompt": "x" * (KEY_BYTES + 100)}))
    assert (len(found.prompt), found.prompt_bytes) == (KEY_BYTES, KEY_BYTES + 100)


async def test_other_work_has_its_turn_between_the_pieces():
    """A loop that stood still would turn once or twice for a body of 200 pieces."""
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with reader() as bodies:
        counting = asyncio.create_task(count())
        await bodies.read(Surface.COMPLETIONS, pieces({"prompt": "x" * 14_000_000}))
        counting.cancel()
    assert turns >= 100


async def test_a_process_that_has_ended_is_replaced():
    body = pieces({"prompt": LONG})
    async with reader() as bodies:
        await bodies.read(Surface.COMPLETIONS, body)
        [process] = bodies._processes
        os.kill(process.pid, signal.SIGKILL)
        assert (await bodies.read(Surface.COMPLETIONS, body)).prompt_bytes == len(LONG)
        assert process not in bodies._processes


async def test_a_process_that_cannot_start_is_an_error_and_not_a_wait(monkeypatch):
    monkeypatch.setattr(body_reader.sys, "executable", "/bin/false")
    async with reader() as bodies:
        with pytest.raises(RequestError, match="failed to read the request's body"):
            await bodies.read(Surface.COMPLETIONS, pieces({"prompt": LONG}))


async def test_a_client_that_leaves_costs_no_process():
    body = pieces({"prompt": "x" * 8_000_000})
    async with reader() as bodies:
        await bodies.read(Surface.COMPLETIONS, body)
        [before] = bodies._processes
        leaving = asyncio.create_task(bodies.read(Surface.COMPLETIONS, body))
        await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert await bodies.read(Surface.COMPLETIONS, body)
        assert before in bodies._processes


async def test_a_body_whose_client_has_left_before_its_turn_is_not_read_nor_kept():
    body = pieces({"prompt": "x" * 8_000_000})
    async with reader() as bodies:
        asked = [asyncio.create_task(bodies.read(Surface.COMPLETIONS, body)) for _ in range(6)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for _ in range(20):  # turns of the loop, no time: a process has not answered by then
            await asyncio.sleep(0)
        assert len(bodies._reading) <= body_reader._PROCESSES
        assert await bodies.read(Surface.COMPLETIONS, body)


def test_a_body_in_tiny_chunks_is_not_kept_in_tiny_objects():
    collected = PieceCollector()
    for _ in range(INLINE_BYTES // 2 + 1):
        collected.add(b"ab")
    body = collected.finished(INLINE_BYTES)
    assert isinstance(body, Pieces)
    assert len(list(body)) == 3
    assert b"".join(body) == b"ab" * (INLINE_BYTES // 2 + 1)
