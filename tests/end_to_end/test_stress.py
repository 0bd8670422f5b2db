"""Many streams at once, slow readers, clients that leave, long prompts: the others do not suffer from them."""

import asyncio
import json
import random
import socket
from contextlib import AsyncExitStack

from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    WATCHFUL,
    post,
    raw_client,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EVENT = b'data: {"id":"1","choices":[{"index":0,"text":" word","finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
PATIENT = {**WATCHFUL, "probe_timeout_s": 20}
"""Hundreds of streams in one loop with their clients and workers: a late probe says nothing about a worker."""
STREAM = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 5}


async def stream_of(stack, gateway, body):
    """A streamed answer that has begun: its client, whose next chunks are events."""
    client = await stack.enter_async_context(raw_client(gateway.port))
    await client.send(post(TEXT, {**STREAM, **body}))
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return client


async def test_hundreds_of_streams_at_once_each_get_all_of_their_own_and_leave_nothing_behind():
    count, all_open = 300, asyncio.Event()

    def event(number, of):
        return b'data: {"id":"%s-%d","choices":[{"index":0,"text":" x"}]}\n\n' % (of.encode(), number)

    async def say(body, writer):
        writer.write(STREAM_HEAD + event(0, body["prompt"]))
        await all_open.wait()
        for number in range(1, 6):
            writer.write(event(number, body["prompt"]))
            await asyncio.sleep(0)
        writer.write(DONE)

    async with (
        scripted_worker(say) as one,
        scripted_worker(say) as other,
        running_gateway([one.url, other.url], health=PATIENT) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [await stream_of(stack, gateway, {"prompt": str(number)}) for number in range(count)]
        assert gateway.series("fairlead_open_streams") == [({}, count)]
        assert gateway.gateway.intake.open == count
        all_open.set()
        for number, client in enumerate(clients):
            body = b"".join([piece async for piece in client.chunks()])
            assert body == b"".join(event(n, str(number)) for n in range(6)) + DONE
            client.vanish()
        await gateway.at_rest()
        assert gateway.outcomes() == {"completed": count}
        assert gateway.series("fairlead_open_streams") == [({}, 0.0)]
        for gauge in ("worker_requests", "worker_sequences", "worker_kv_reserved_tokens"):
            assert {value for _, value in gateway.series(f"fairlead_{gauge}")} == {0.0}


async def test_who_leaves_in_the_middle_of_a_stream_takes_the_workers_connection_along_and_nobody_elses():
    chance, count, go_on = random.Random(7), 200, asyncio.Event()

    async def say(body, writer):
        writer.write(STREAM_HEAD + EVENT)
        await go_on.wait()
        for _ in range(20):
            writer.write(EVENT)
            await writer.drain()
            await asyncio.sleep(0)
        while body["prompt"] == "endless":
            writer.write(EVENT)
            await writer.drain()  # ends when the gateway hangs up
            await asyncio.sleep(0.05)
        writer.write(DONE)

    async with (
        scripted_worker(say) as worker,
        running_gateway([worker.url], health=PATIENT) as gateway,
        AsyncExitStack() as stack,
    ):
        prompts = ("x", "endless")
        clients = [await stream_of(stack, gateway, {"prompt": prompts[n % 2]}) for n in range(count)]

        async def read(client, events):
            """A number of events, then leave; None: all of them."""
            pieces = client.chunks()
            seen = b""
            async for piece in pieces:
                seen += piece
                if events is not None and seen.count(EVENT) > events:
                    break
            await pieces.aclose()
            client.vanish()
            return seen

        leaves = [chance.randrange(25) if number % 2 else None for number in range(count)]
        reading = [asyncio.create_task(read(*pair)) for pair in zip(clients, leaves, strict=True)]
        go_on.set()
        seen = await asyncio.gather(*reading)
        assert seen[::2] == [21 * EVENT + DONE] * (count // 2)
        await gateway.at_rest()
        assert gateway.outcomes() == {"completed": count // 2, "cancelled": count // 2}
        await until(lambda: worker.left >= count, lambda: worker.left)


async def test_half_of_the_clients_leave_at_random_times_and_nothing_of_them_stays_behind():
    chance = random.Random(5)
    async with running_fleet(2, {"speed": 0.1, "max_num_seqs": 16}, worker={"max_num_seqs": 16}) as fleet:

        async def ask(number):
            await asyncio.sleep(chance.random())
            stream = number % 3 > 0
            body = {"model": MODEL, "prompt": f"{number} " * 40, "max_tokens": 60, "ignore_eos": True}
            async with raw_client(fleet.gateway.port) as client:
                await client.send(post(TEXT, {**body, "stream": stream}))
                if number % 2:
                    await asyncio.sleep(chance.random() * 0.5)
                    client.vanish()
                    return None
                answer = await client.answer()
                assert answer.status == 200
                if stream:
                    return answer.body.endswith(DONE)
                return json.loads(answer.body)["usage"]["completion_tokens"] == 60

        whole = await asyncio.gather(*(ask(number) for number in range(120)))
        await fleet.at_rest()
        assert whole[::2] == [True] * 60
        outcomes = fleet.gateway.outcomes()
        assert set(outcomes) <= {"completed", "cancelled"}
        assert outcomes["completed"] >= 60
        for gauge in ("open_requests", "queue_depth", "worker_requests", "worker_kv_reserved_tokens"):
            assert {value for _, value in fleet.gateway.series(f"fairlead_{gauge}")} == {0.0}


async def test_many_slow_readers_hold_a_bounded_amount_each_and_the_others_get_their_answers():
    event = b'data: {"choices":[{"index":0,"text":"' + b"x" * 16_000 + b'"}]}\n\n'
    readers = 12

    async def say(body, writer):
        writer.write(STREAM_HEAD)
        for _ in range(4000 if body["prompt"] == "long" else 3):
            writer.write(event)
            await writer.drain()
        writer.write(DONE)

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        slow = []
        for _ in range(readers):
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            small.setblocking(False)
            await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", gateway.port))
            client = raw_client(0, sock=small)
            slow.append(client)
            await (await client.__aenter__()).send(post(TEXT, {**STREAM, "prompt": "long"}))
        [connection] = gateway.gateway.connections
        connections = connection.upstream._connections
        await until(lambda: sum(c.paused for c in connections) == readers, within_s=20)
        for connection in connections:
            # The bound, and one read of the socket on top.
            assert connection.response.buffered <= 512 * 1024
        answer = await gateway.http.post(TEXT, json=STREAM)
        assert answer.content == 3 * event + DONE
        for client in slow:
            await client.__aexit__(None, None, None)
        await gateway.at_rest()


async def test_an_upload_of_a_megabyte_in_pieces_comes_between_no_two_events_of_another_stream():
    more = asyncio.Queue()

    async def say(body, writer):
        writer.write(STREAM_HEAD)
        if body.get("messages"):
            writer.write(EVENT + DONE)
            return
        while (event := await more.get()) is not None:
            writer.write(event)
        writer.write(DONE)

    async with scripted_worker(say) as worker, running_gateway([worker.url]) as gateway:
        prompt = {"messages": [{"role": "user", "content": "word " * 200_000}], "stream": True, "model": MODEL}
        upload = post(CHAT, prompt)
        step = len(upload) // 20
        more.put_nowait(EVENT)
        async with (
            raw_client(gateway.port) as uploading,
            gateway.http.stream("POST", TEXT, json=STREAM) as answer,
        ):
            pieces = answer.aiter_raw()
            assert await anext(pieces) == EVENT
            for at in range(0, len(upload), step):
                await uploading.send(upload[at : at + step])
                # While the upload is where it is, an event goes all the way.
                more.put_nowait(EVENT)
                assert await anext(pieces) == EVENT
            assert (await uploading.answer()).body == EVENT + DONE
            more.put_nowait(EVENT)
            assert await anext(pieces) == EVENT
            more.put_nowait(None)
            assert b"".join([piece async for piece in pieces]) == DONE
        # The prompt has reached the worker as it came, but for the usage that the gateway asks for.
        [forwarded] = [body for body in worker.bodies if len(body) > 1_000_000]
        assert json.loads(forwarded) == {**prompt, "stream_options": {"include_usage": True}}
        await gateway.at_rest()


async def test_prompts_of_a_megabyte_leave_a_tree_within_its_bound():
    async def say(_body, writer):
        writer.write(STREAM_HEAD + EVENT + DONE)

    async with (
        scripted_worker(say) as worker,
        running_gateway([{"url": worker.url, "kv_tokens": 600_000}]) as gateway,
    ):
        [pool] = gateway.gateway.pools.by_model.values()
        for number in range(8):
            answer = await gateway.http.post(TEXT, json={**STREAM, "prompt": f"{number} word " * 130_000})
            assert answer.status_code == 200
            assert pool.scheduler.prefixes.held_tokens(worker.url) <= 600_000
        await gateway.at_rest()
        assert pool.scheduler.prefixes.pinned_tokens(worker.url) == 0
