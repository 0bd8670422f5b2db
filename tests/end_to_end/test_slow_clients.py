"""Clients that do not read: what they hold, and for how long."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager

from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    post,
    raw_client,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

TEXT = "/v1/completions"
ASK = {"model": MODEL, "prompt": "x", "max_tokens": 4}
EVENT = b'data: {"choices":[{"index":0,"text":"' + b"x" * 16_000 + b'"}]}\n\n'
END = b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def streaming(events):
    """A worker's answer of `events` events of 16 kB, as fast as it is taken."""

    async def say(_asked, writer):
        writer.write(STREAM_HEAD)
        for _ in range(events):
            writer.write(EVENT)
            await writer.drain()
        writer.write(END)

    return say


@asynccontextmanager
async def deaf_client(port, request):
    """A client that asks, and reads nothing of the answer."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
    async with AsyncExitStack() as stack:
        stack.callback(small.close)
        await asyncio.get_running_loop().sock_sendall(small, request)
        yield small


def in_flight(gateway):
    return gateway.gateway.pools.by_model[MODEL].scheduler.snapshot().in_flight


async def test_a_worker_is_free_when_its_engine_is_done_and_not_when_the_client_has_read():
    worker_of_one = {"max_num_seqs": 1}
    async with scripted_worker(streaming(400)) as worker:  # 6.4 MB: more than sockets hold of it
        known = [{"url": worker.url, **worker_of_one}]
        async with running_gateway(known, limits={"send_timeout_s": 600}) as gateway:
            async with AsyncExitStack() as stack:
                for _ in range(3):  # one after the other on a single slot, none of them read
                    asks = post(TEXT, {**ASK, "stream": True})
                    await stack.enter_async_context(deaf_client(gateway.port, asks))
                await until(lambda: len(worker.asked) == 3)
                await until(lambda: in_flight(gateway) == 0)
            await gateway.at_rest()


async def test_a_client_that_takes_nothing_is_cut_off_and_its_worker_is_left_alone():
    limits = {"send_timeout_s": 0.4, "held_bytes": 1_000_000}
    async with (
        scripted_worker(streaming(4000)) as worker,  # 64 MB: the worker has to wait for its client
        running_gateway([worker.url], limits=limits) as gateway,
        deaf_client(gateway.port, post(TEXT, {**ASK, "stream": True})),
    ):
        await until(lambda: gateway.outcomes() == {"cancelled": 1})
        await gateway.at_rest()


async def test_a_client_that_reads_slowly_but_reads_is_not_cut_off():
    limits = {"send_timeout_s": 0.4, "held_bytes": 1_000_000}
    async with (
        scripted_worker(streaming(700)) as worker,
        running_gateway([worker.url], limits=limits) as gateway,
        deaf_client(gateway.port, post(TEXT, {**ASK, "stream": True})) as client,
    ):
        loop = asyncio.get_running_loop()
        for _ in range(40):  # over several times the timeout; the kernel's own buffer is never empty
            assert await loop.sock_recv(client, 2000)
            await asyncio.sleep(0.05)
        assert gateway.outcomes() == {}


async def test_a_complete_answer_that_is_never_read_does_not_keep_its_connection():
    async def say(_asked, writer):
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        writer.write(whole_answer(json.dumps({"choices": [{"text": "x" * 20_000_000}], "usage": usage}).encode()))
        await writer.drain()

    async with (
        scripted_worker(say) as worker,
        running_gateway([worker.url], limits={"send_timeout_s": 0.4}) as gateway,
        deaf_client(gateway.port, post(TEXT, ASK)) as client,
    ):
        await gateway.at_rest()
        await until(lambda: gateway.outcomes() == {"completed": 1})
        await asyncio.sleep(1)
        loop, read = asyncio.get_running_loop(), 1
        while read:  # what the sockets hold, and then the end of the connection
            try:
                read = len(await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 5))
            except ConnectionError:
                break


async def test_what_slow_clients_leave_unread_is_bounded_in_sum():
    limits = {"send_timeout_s": 600, "held_bytes": 24 << 20}
    async with (
        scripted_worker(streaming(4000)) as worker,
        running_gateway([worker.url], limits=limits) as gateway,
        AsyncExitStack() as stack,
    ):
        held = gateway.gateway.intake.held
        for _ in range(4):
            asks = post(TEXT, {**ASK, "stream": True})
            await stack.enter_async_context(deaf_client(gateway.port, asks))
        await until(lambda: held.answers >= 6 << 20)  # a share of 4 MiB, and one of what is left of a quarter
        assert {"what": "answers"} in [labels for labels, _ in gateway.series("fairlead_held_bytes")]
        await stack.aclose()
        await until(lambda: held.answers == 0)
        await gateway.at_rest()


async def test_a_page_that_is_not_read_is_given_up_too():
    async with running_gateway(limits={"send_timeout_s": 0.2}) as gateway:
        async with deaf_client(gateway.port, b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 900):
            held = gateway.gateway.intake.held
            await until(lambda: held.answers > 0)
            await until(lambda: held.answers == 0)
        async with raw_client(gateway.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer()).status == 200
