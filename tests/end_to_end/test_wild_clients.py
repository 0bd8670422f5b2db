"""Each way in which a client can misbehave, over sockets: what it is answered, and that nothing stays behind."""

import asyncio

from tests.end_to_end.gateway_under_test import raw_client
from tests.end_to_end.wild import sound
from tests.end_to_end.wild.client_shapes import NOTHING, SHAPES
from tests.end_to_end.wild.listener import Listener
from tests.end_to_end.wild.storm import Tally, check_error, unwanted, watched_gateway
from tests.end_to_end.wild.strict_http import responses


async def answer_to(port, shape):
    """The first answer to a shape; None where the connection ends without one."""
    async with raw_client(port) as client:
        try:
            for piece in shape.pieces:
                client.writer.write(piece)
                await client.writer.drain()
                await asyncio.sleep(0)
            if shape.leaves:
                return None
            data = b""
            client.writer.write_eof() if NOTHING in shape.statuses else None
            async with asyncio.timeout(60):
                while piece := await client.reader.read(1 << 20):
                    data += piece
                    found = [m for m in responses(data, ended=False) if m.status >= 200]
                    if found and found[0].complete:
                        return found[0]
        except ConnectionError:
            pass
    return None


async def test_of_each_misbehaving_client_the_answer_is_right_and_nothing_reaches_a_worker_or_stays_behind():
    tally = Tally("misbehaving clients", 0)
    worker = Listener(sound.MODEL, sound.answer)
    came = {}
    async with watched_gateway(tally, [worker], silence_s=20.0) as gateway:
        together = asyncio.Semaphore(16)

        async def send(name, shape):
            async with together:
                try:
                    message = await answer_to(gateway.port, shape)
                    came[name] = NOTHING if message is None else message.status
                    if message is not None and message.status >= 400:
                        check_error(message)
                except (AssertionError, TimeoutError) as fault:
                    came[name] = repr(fault)

        before = len(worker.seen)
        await asyncio.gather(*(send(name, shape) for name, shape in SHAPES.items() if not shape.leaves))
        answered = sum(came[name] == 200 and b"/health" not in SHAPES[name].pieces[0] for name in came)
        reached = len(worker.seen) - before
        await asyncio.gather(*(send(name, shape) for name, shape in SHAPES.items() if shape.leaves))
    wrong = {name: (got, SHAPES[name].statuses) for name, got in came.items() if got not in SHAPES[name].statuses}
    assert wrong == {}
    assert len(came) == len(SHAPES)
    assert worker.offences == []
    assert list(unwanted([worker])) == []
    assert reached == answered
    assert tally.sound(), tally.text()
