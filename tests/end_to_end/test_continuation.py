"""Streams whose worker dies, over real sockets: they go on at another worker, or end with an error event.

The workers are processes, and are killed as the kernel kills: without a word.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
import pytest

from tests.end_to_end.gateway_under_test import MODEL, running_gateway, until
from tests.end_to_end.streams import ASKED, CHAT, MESSAGES, TEXT, counted, same, streamed

SYSTEM = MESSAGES[0]


class Process:
    """One simulated worker with a process of its own."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    def kill(self, number=signal.SIGKILL):
        os.kill(self.process.pid, number)


@asynccontextmanager
async def worker_process(*options):
    command = ("-m", "workers.simulator", "--model", MODEL, "--die-with-parent", "--speed", "0.5", *options)
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        yield Process(process, json.loads(line)["ready"][0])
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def fleet_of(count, *options, **settings):
    """Processes behind a gateway."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker_process(*options)) for _ in range(count)]
        known = [{"url": worker.url} for worker in workers]
        yield workers, await stack.enter_async_context(running_gateway(known, continuation="exact", **settings))


def serving(workers, gateway):
    """The worker that has the stream."""
    [one] = [member.worker.spec.url for member in gateway.gateway.pools.members.values() if member.open]
    return next(worker for worker in workers if worker.url == one)


@pytest.mark.parametrize("vocabulary", ["english", "chinese", "emoji"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_whose_worker_is_killed_goes_on_at_another_one(vocabulary, path):
    async with fleet_of(3, "--vocabulary", vocabulary) as (workers, gateway):
        async with httpx.AsyncClient(base_url=workers[0].url, timeout=30) as direct:
            undisturbed = await streamed(direct, path, ASKED[path])
        for after in (3, 41):
            told = await streamed(gateway.http, path, ASKED[path], after, lambda: serving(workers, gateway).kill())
            same(told, undisturbed)
        await gateway.at_rest()
        assert counted(gateway) == {("continued", "cut"): 2}


async def test_a_worker_that_is_stopped_is_dead_as_soon_as_it_is_known_to_be_down():
    async with fleet_of(2) as (workers, gateway):
        async with httpx.AsyncClient(base_url=workers[0].url, timeout=30) as direct:
            undisturbed = await streamed(direct, CHAT, ASKED[CHAT])
        stopped = []

        def stop():
            stopped.append(serving(workers, gateway))
            stopped[0].kill(signal.SIGSTOP)

        same(await streamed(gateway.http, CHAT, ASKED[CHAT], 20, stop), undisturbed)
        assert counted(gateway) == {("continued", "silent"): 1}
        stopped[0].kill(signal.SIGCONT)
        await gateway.at_rest()


async def test_streams_of_a_worker_that_gets_sigterm_go_on():
    async with fleet_of(2) as (workers, gateway):
        async with httpx.AsyncClient(base_url=workers[0].url, timeout=30) as direct:
            undisturbed = await streamed(direct, CHAT, ASKED[CHAT])

        def end():
            serving(workers, gateway).kill(signal.SIGTERM)

        same(await streamed(gateway.http, CHAT, ASKED[CHAT], 20, end), undisturbed)
        assert counted(gateway) == {("continued", "aborted"): 1}
        await gateway.at_rest()


async def test_when_the_last_worker_dies_the_stream_ends_with_an_error_event():
    async with fleet_of(1) as (workers, gateway):
        told = await streamed(gateway.http, CHAT, ASKED[CHAT], 20, workers[0].kill)
        assert len(told.errors) == 1
        assert told.finishes == []
        assert told.ended, "the error event is followed by [DONE], as vLLM does it"
        assert set(counted(gateway)) == {("broken", "no_worker")}
        await gateway.at_rest()


async def test_forty_streams_of_a_killed_worker_are_each_whole():
    async with fleet_of(3, "--vocabulary", "emoji") as (workers, gateway):
        asked = [
            {
                **ASKED[CHAT],
                "messages": [SYSTEM, {"role": "user", "content": f"{n}?"}],
            }
            for n in range(40)
        ]
        async with httpx.AsyncClient(base_url=workers[0].url, timeout=60) as direct:
            undisturbed = await asyncio.gather(*(streamed(direct, CHAT, body) for body in asked))
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
            streams = [asyncio.create_task(streamed(http, CHAT, body)) for body in asked]
            await until(lambda: len(gateway.gateway.control) == 40)
            await asyncio.sleep(0.3)
            workers[1].kill()
            for task, whole in zip(streams, undisturbed, strict=True):
                same(await task, whole)
        assert set(counted(gateway)) == {("continued", "cut")}
        await gateway.at_rest()
        assert gateway.gateway.intake.held.answers == 0
