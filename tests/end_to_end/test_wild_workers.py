"""Each way in which a worker can misbehave, over sockets: what a client hears, and that nothing stays behind."""

import asyncio

from tests.end_to_end.gateway_under_test import raw_client
from tests.end_to_end.wild import sound
from tests.end_to_end.wild.listener import Listener
from tests.end_to_end.wild.storm import WORKERS, Tally, watched_gateway
from tests.end_to_end.wild.strict_http import responses
from tests.end_to_end.wild.worker_shapes import CHAT, CUT, SHAPES, SOUND


def answer(message):
    fields = sound.fields_of(message)
    shape = SHAPES.get(fields.get("shape"))
    if shape is None:
        return sound.answer(message)
    return shape.stream if fields.get("stream") else shape.whole


def model_of(name):
    """A model of its own for what spoils the next request on the same connection or worker."""
    shape = SHAPES[name]
    shuts_down = 503 in shape.hears_whole | shape.hears_stream
    return name if shuts_down or name == "a second answer a moment later" else sound.MODEL


async def heard_from(gateway, name, *, stream):
    """What a client of this worker hears, in the words of `worker_shapes`, and the end of it."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    body |= {"model": model_of(name), "shape": name}
    async with raw_client(gateway.port) as client:
        await client.send(sound.ask(CHAT, body))
        data = b""
        async with asyncio.timeout(60):
            while piece := await client.reader.read(1 << 20):
                data += piece
                [message] = responses(data, ended=False)
                if message.complete:
                    break
    [message] = responses(data, ended=True)
    assert message.complete, data[-200:]
    for secret in (b"10.9.8.7", b"stolen", b"x-secret", b"set-cookie", b"127.0.0.1:"):
        assert secret not in data, data[:500]
    if message.status == 429:
        assert int(message.value(b"retry-after")) > 0
    if message.status != 200:
        return message.status, message.body[-300:]
    return CUT if b'"type":"WorkerError"' in message.body else SOUND, message.body[-300:]


async def test_of_each_misbehaving_worker_a_client_hears_what_it_should_and_nothing_stays_behind():
    tally = Tally("misbehaving workers", 0)
    models = [sound.MODEL] * WORKERS + [name for name in SHAPES if model_of(name) == name]
    workers = [Listener(model, answer) for model in models]
    came = {}
    async with watched_gateway(tally, workers, silence_s=6.0) as gateway:
        together = asyncio.Semaphore(16)

        async def ask(name, stream):
            async with together:
                try:
                    came[name, stream] = await heard_from(gateway, name, stream=stream)
                except (AssertionError, TimeoutError) as fault:
                    came[name, stream] = "failed", repr(fault)

        await asyncio.gather(*(ask(name, stream) for stream in (False, True) for name in SHAPES))
    assert [offence for worker in workers for offence in worker.offences] == []
    expected = {
        (name, stream): shape.hears_stream if stream else shape.hears_whole
        for name, shape in SHAPES.items()
        for stream in (False, True)
    }
    wrong = {case: (heard, expected[case]) for case, heard in came.items() if heard[0] not in expected[case]}
    assert wrong == {}
    assert len(came) == 2 * len(SHAPES)
    assert tally.sound(), tally.text()
