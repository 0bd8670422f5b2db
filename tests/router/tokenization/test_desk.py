import asyncio
import json
import threading
from array import array
from contextlib import asynccontextmanager

import pytest
from asked_worker import FakeWorker, member_of, until

from router.edge.api.parsed_request import Surface, parse
from router.tokenization import desk as desks
from router.tokenization import lanes
from router.tokenization.desk import Desk
from router.tokenization.lanes import Lanes
from router.tokenization.local import LocalTokenizer, load
from router.tokenization.prompt import Inexact, Why
from router.tokenization.remote import RemoteTokenizer


def asked(surface=Surface.COMPLETIONS, **fields):
    return parse(surface, json.dumps(fields).encode())


def count(data):
    return len(array("I", data))


class Held(LocalTokenizer):
    """A tokenizer that says where it works, and in a thread waits for leave."""

    def __init__(self, made):
        super().__init__(made.source, made.encoder, made._template)
        self.leave = threading.Event()
        self.threads = []

    def finish(self, looks):
        self.threads.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            self.leave.wait(20)
        return super().finish(looks)


@asynccontextmanager
async def sat_at(tokenizer, *, wait_s=20.0, told=lambda: None, **more):
    lanes = Lanes(2)
    try:
        yield Desk("m", tokenizer, lanes, wait_s=wait_s, distrusted=told, **more)
    finally:
        if isinstance(tokenizer, Held):
            tokenizer.leave.set()
        lanes.close()


async def test_a_short_prompt_is_tokenized_on_the_spot(folder):
    async with sat_at(Held(load(folder, 1 << 20))) as desk:
        assert count(await desk.ids(asked(prompt="hello there")))
        assert desk._tokenizer.threads == [threading.current_thread().name]
        assert (desk.exact, desk.as_text) == (1, {})


async def test_a_long_one_goes_to_a_thread_and_the_loop_runs_on(folder):
    tokenizer = Held(load(folder, 1 << 20))
    async with sat_at(tokenizer) as desk:
        waiting = asyncio.create_task(desk.ids(asked(prompt="quick " * desks.INLINE_CHARS)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert await desk.ids(asked(prompt="hello"))
        tokenizer.leave.set()
        assert count(await waiting) > 100
        assert any(name.startswith("tokenize-short") for name in tokenizer.threads)


async def test_known_prompts_need_no_thread_however_long(folder):
    tokenizer = Held(load(folder, 1 << 20))
    tokenizer.leave.set()
    async with sat_at(tokenizer) as desk:
        await desk.ids(asked(prompt="quick " * desks.INLINE_CHARS))
        here = threading.current_thread().name
        before = len(tokenizer.threads)
        await desk.ids(asked(prompt="quick " * desks.INLINE_CHARS + "<|end|>!"))
        assert set(tokenizer.threads[before:]) == {here}


async def test_long_prompts_do_not_stand_before_short_ones(folder):
    tokenizer = Held(load(folder, 1 << 20))
    async with sat_at(tokenizer, inline_chars=-1) as desk:
        long = asyncio.create_task(desk.ids(asked(prompt="x " * lanes.SHORT_BYTES)))
        short = asyncio.create_task(desk.ids(asked(prompt="hello")))
        await until(lambda: len(tokenizer.threads) == 2)
        assert sorted(name[: len("tokenize-short")] for name in tokenizer.threads) == [
            "tokenize-long_",
            "tokenize-short",
        ]
        tokenizer.leave.set()
        await asyncio.gather(long, short)


async def test_nobody_waits_longer_than_is_allowed(folder):
    tokenizer = Held(load(folder, 1 << 20))
    async with sat_at(tokenizer, wait_s=0.02, inline_chars=-1) as desk:
        assert await desk.ids(asked(prompt="hello")) is None
        assert desk.as_text == {Why.SLOW: 1}
        assert desk.exact == 0


async def test_a_full_lane_takes_nothing_more_and_is_empty_again_after_that(folder, monkeypatch):
    monkeypatch.setattr(lanes, "_BACKLOG_BYTES", 100)
    tokenizer = Held(load(folder, 1 << 20))
    async with sat_at(tokenizer, inline_chars=-1) as desk:
        first = asyncio.create_task(desk.ids(asked(prompt="hello " * 20)))
        await asyncio.sleep(0)
        assert await desk.ids(asked(prompt="hello")) is None
        assert desk.as_text == {Why.BUSY: 1}
        tokenizer.leave.set()
        assert await first
        assert await desk.ids(asked(prompt="hello"))
        assert desk._lanes._short._backlog == 0


async def test_a_client_that_leaves_gives_its_place_in_the_lane_back(folder):
    tokenizer = Held(load(folder, 1 << 20))
    async with sat_at(tokenizer, inline_chars=-1) as desk:
        leaving = [asyncio.create_task(desk.ids(asked(prompt="hello"))) for _ in range(5)]
        await until(lambda: tokenizer.threads)
        for task in leaving:
            task.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*leaving, return_exceptions=True)
        )
        tokenizer.leave.set()
        await until(lambda: not desk._lanes._short._backlog)
        assert len(tokenizer.threads) == 1, "those that had not begun never do"


async def test_what_is_too_long_or_has_no_exact_form_goes_on_as_text_and_is_counted(folder, monkeypatch):
    async with sat_at(load(folder, 1 << 20)) as desk:
        monkeypatch.setattr(desks, "_LONGEST_BYTES", 1000)
        assert await desk.ids(asked(prompt="x" * 1000)) is None
        assert await desk.ids(asked(Surface.CHAT, messages=5)) is None
        assert await desk.ids(asked(Surface.EMBEDDINGS, input="x")) is None
        assert desk.as_text == {Why.LONG: 1, Why.SHAPE: 1, Why.EMBEDDINGS: 1}


async def test_a_slow_tokenize_endpoint_is_not_waited_for():
    async def never():
        await asyncio.sleep(30)

    async with (
        member_of(FakeWorker(tokenize=lambda _: (200, never()))) as member,
        sat_at(RemoteTokenizer("m", lambda: member, 1000), wait_s=0.05) as desk,
    ):
        assert desk.kind == "worker"
        assert await desk.ids(asked(prompt="hello")) is None
        assert desk.as_text == {Why.SLOW: 1}


async def test_a_surface_whose_counts_are_wrong_in_a_row_is_distrusted(folder, caplog):
    told = []
    async with sat_at(load(folder, 1 << 20), told=lambda: told.append(1)) as desk:
        for counted, reported in ((5, 6), (5, 6), (5, 5), (5, 6), (5, 6)):
            desk.saw(Surface.COMPLETIONS, counted, reported)
            assert await desk.ids(asked(prompt="hello"))
        assert not told
        desk.saw(Surface.COMPLETIONS, 5, 7)
        assert await desk.ids(asked(prompt="hello")) is None
        assert await desk.ids(asked(Surface.CHAT, messages=[{"role": "user", "content": "x"}]))
        assert desk.as_text == {Why.DISTRUSTED: 1}
        assert (desk.miscounts, told) == (5, [1])
        assert "5 tokens, its worker says 7" in caplog.text


async def test_a_tokenizer_that_fails_is_no_failure_of_the_request(folder):
    class Failing(LocalTokenizer):
        def look(self, prompt):
            raise Inexact(Why.FAILED, "no")

    made = load(folder, 1 << 20)
    async with sat_at(Failing(made.source, made.encoder, None)) as desk:
        assert await desk.ids(asked(prompt="hello")) is None
        assert desk.as_text == {Why.FAILED: 1}


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_threads_leave_most_cores_to_others(cores):
    made = Lanes(cores)
    assert 1 <= made._short._threads._max_workers <= max(1, min(4, cores // 4))
    made.close()
