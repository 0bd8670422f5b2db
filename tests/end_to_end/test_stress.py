"""Many streams at once, slow readers, clients that leave, long prompts: the others do not suffer from them."""

import asyncio
import json
import random
import socket

from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
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
STREAM = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 5}


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
        [member] = gateway.gateway.pools.members.values()
        connections = member.upstream._connections
        await until(lambda: sum(c.paused for c in connections) == readers, within_s=20)
        for connection in connections:
            # The bound, and one read of the socket on top.
            assert connection.exchange.buffered <= 512 * 1024
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
