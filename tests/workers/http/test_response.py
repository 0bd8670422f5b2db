"""A response hands on what arrives: to the task that reads, or straight into a sink."""

import asyncio
import gc
import weakref

import pytest

from workers.http.errors import ConnectionLost
from workers.http.response import Response


def response(*, begun=True):
    made = Response(asyncio.get_running_loop(), "http://worker", bodiless=False)
    if begun:
        made.head_arrived(200, b"OK", [])
    return made


async def feeding(made, sink):
    """A task that feeds, and has begun to."""
    task = asyncio.create_task(made.feed(sink))
    await asyncio.sleep(0)
    return task


async def test_pieces_reach_the_sink_in_the_moment_in_which_they_arrive_and_are_not_read_again():
    made, seen = response(), []
    task = await feeding(made, lambda piece: seen.append(piece) or True)
    made.arrived([b"one"], 3)
    assert seen == [b"one"]
    made.arrived([b"two", b"three"], 8)
    assert seen == [b"one", b"twothree"]
    assert made.buffered == 0
    assert not task.done()
    made.ended()
    await task
    assert await made.read() == b""
    assert made.at_end


async def test_a_sink_that_has_had_enough_leaves_what_follows_to_be_read():
    made, seen = response(), []
    task = await feeding(made, seen.append)
    made.arrived([b"one"], 3)
    made.arrived([b"two"], 3)
    await task
    assert seen == [b"one"]
    assert made.buffered == 3
    assert await made.read() == b"two"


async def test_what_has_arrived_before_is_for_the_reader():
    made, seen = response(), []
    made.arrived([b"one"], 3)
    await made.feed(seen.append)
    assert seen == []
    assert await made.read() == b"one"


async def test_feeding_ends_with_the_answer_however_that_ends():
    made = response()
    made.ended()
    await made.feed(lambda _: True)
    made = response()
    task = await feeding(made, lambda _: True)
    made.failed(ConnectionLost("http://worker", "gone", 3))
    await task
    with pytest.raises(ConnectionLost):
        await made.read()


async def test_what_a_sink_raises_is_raised_to_whoever_feeds_and_does_not_reach_the_connection():
    made = response()

    def broken(_piece):
        raise KeyError("sink")

    task = await feeding(made, broken)
    made.arrived([b"one"], 3)
    made.arrived([b"two"], 3)
    with pytest.raises(KeyError):
        await task
    assert await made.read() == b"two"


async def test_a_feed_that_is_cancelled_lets_go_of_its_sink():
    made, seen = response(), []
    task = await feeding(made, lambda piece: seen.append(piece) or True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    made.arrived([b"one"], 3)
    assert seen == []
    assert await made.read() == b"one"


async def test_what_a_sink_raises_is_freed_once_it_is_handled():
    """The error passes the frame that keeps the future with the error: it must not keep both alive."""

    class Held:
        pass

    async def read(made):
        held = Held()
        refs.append(weakref.ref(held))

        def broken(_piece, held=held):
            raise KeyError(held)

        await made.feed(broken)

    refs = []
    gc.collect()
    gc.disable()
    try:
        made = response()
        task = asyncio.create_task(read(made))
        await asyncio.sleep(0)
        made.arrived([b"one"], 3)
        with pytest.raises(KeyError):
            await task
        del task
        await asyncio.sleep(0)  # the loop's own call holds the task until then
        assert refs[0]() is None
    finally:
        gc.enable()
