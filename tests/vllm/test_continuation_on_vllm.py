"""Streams of a real vLLM that is killed in mid-answer go on at another one: float32, greedy, the same answers."""

import asyncio
import os
import signal

import httpx
import pytest
from gateway_under_test import running_gateway, until
from real_vllm import Wanted
from streams import CHAT, SECRET, TEXT, USAGE, counted, same, streamed

pytestmark = pytest.mark.timeout(400)

PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 3, "scrape_every_s": 0.5, "stale_after_s": 5}
QUESTIONS = ("Tell me of the sea.", "请讲讲大海。", "🌊🐟🐠 🙂?", "What is the capital of France?")
TOKENS = 150


def asks():
    """Chats and completions in several scripts, each with a prompt that must not come out."""
    for number in range(12):
        words = f"{number}: {QUESTIONS[number % len(QUESTIONS)]}"
        limits = {"model": "smollm2", "temperature": 0, "max_tokens": TOKENS, **USAGE}
        if number % 2:
            yield (
                CHAT,
                {
                    "messages": [{"role": "system", "content": SECRET}, {"role": "user", "content": words}],
                    **limits,
                },
            )
        else:
            yield TEXT, {"prompt": f"{SECRET} {words}", **limits}


async def test_every_answer_of_a_killed_server_is_the_undisturbed_one(servers):
    room = ("--max-model-len", "2048", "--kv-cache-memory-bytes", str(384 << 20))
    wanted = [Wanted(model="smollm2", args=room, number=number) for number in (71, 72)]
    first, second = servers.fresh(*wanted)
    asked = list(asks())
    async with (
        httpx.AsyncClient(base_url=second.url, timeout=120) as direct,
        running_gateway([first.url, second.url], health=PATIENT, continuation="exact") as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=120) as http,
    ):
        whole = await asyncio.gather(*(streamed(direct, path, body) for path, body in asked))
        tasks = [asyncio.create_task(streamed(http, path, body)) for path, body in asked]
        await until(lambda: len(gateway.gateway.control) == len(asked))
        await asyncio.sleep(1.5)
        os.killpg(os.getpgid(first.pid), signal.SIGKILL)
        for told, undisturbed in zip([await task for task in tasks], whole, strict=True):
            same(told, undisturbed)
        assert counted(gateway)
        assert {outcome for outcome, _ in counted(gateway)} == {"continued"}
        await gateway.at_rest()
