import pytest

from router.edge.errors import WorkerFailed
from router.edge.held_bytes import HeldBytes, Holding
from router.edge.response import ResponseWriter

EVENTS = [(b"content-type", b"text/event-stream")]


class SlowWire:
    """A connection whose client has left many bytes unread, and what has been sent on it."""

    def __init__(self):
        self.sent = []

    async def send(self, message):
        if (b"x-bad", b"\r\n") in message.get("headers", ()):
            raise RuntimeError("a header of an answer holds CR, LF or NUL")
        self.sent.append(message.get("body", message.get("status")))

    def unread(self):
        return 1 << 20


@pytest.mark.parametrize("begun", [True, False])
async def test_an_error_reaches_a_slow_client_even_when_nothing_more_may_be_held(begun):
    wire = SlowWire()
    held = HeldBytes(0)
    answer = ResponseWriter(wire.send, b"id", wire=wire, holding=Holding(held))
    if begun:
        await answer.start(200, EVENTS)
    await answer.refuse(WorkerFailed("gone"))
    assert answer.ended
    assert b"gone" in wire.sent[-1]
    assert (held.requests, held.answers) == (0, 0)


async def test_an_error_takes_the_place_of_a_head_that_cannot_be_sent():
    wire = SlowWire()
    answer = ResponseWriter(wire.send, b"id", wire=wire)
    with pytest.raises(RuntimeError):
        await answer.start(200, [(b"x-bad", b"\r\n")])
    await answer.refuse(WorkerFailed("gone"))
    assert wire.sent[0] == 502
    assert b"gone" in wire.sent[1]
