import asyncio
from itertools import product

import pytest

from router.edge.exchange import Exchange
from router.edge.flow import Flow
from router.edge.held_bytes import HeldBytes
from router.edge.listener import Listener
from router.edge.states import Heard, IllegalEvent, Incoming, Outgoing, Said, heard, said


def test_a_connection_reads_heads_and_bodies_in_turn():
    state = Incoming.HEAD
    for event, after in (
        (Heard.BEGIN, Incoming.HEAD),
        (Heard.HEADERS, Incoming.BODY),
        (Heard.END, Incoming.BETWEEN),
        (Heard.BEGIN, Incoming.HEAD),
        (Heard.REFUSE, Incoming.REFUSED),
    ):
        state = heard(state, event)
        assert state is after


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (Incoming.HEAD, Heard.END),
        (Incoming.BODY, Heard.BEGIN),
        (Incoming.BODY, Heard.HEADERS),
        (Incoming.BETWEEN, Heard.HEADERS),
        (Incoming.BETWEEN, Heard.END),
        *((Incoming.REFUSED, event) for event in Heard),
    ],
)
def test_what_cannot_be_found_in_a_state_raises(state, event):
    with pytest.raises(IllegalEvent, match=f"{event.name} cannot follow {state.name}"):
        heard(state, event)


def test_every_pair_of_state_and_event_of_a_response_leads_on_or_raises():
    legal = 0
    for state, event in product(Outgoing, Said):
        try:
            after = said(state, event)
        except IllegalEvent:
            continue
        legal += 1
        assert (after is Outgoing.LOST) == (
            (event is Said.LOSE and state is not Outgoing.COMPLETE) or state is Outgoing.LOST
        )
    assert legal == 5 + 4 + 4


class Transport:
    def __init__(self):
        self.written = []

    def write(self, data):
        self.written.append(data)

    def close(self):
        pass

    def is_closing(self):
        return False

    def resume_reading(self):
        pass


def exchange():
    transport = Transport()
    scope = {"method": "POST", "http_version": "1.1"}
    made = Exchange(
        scope,
        transport,
        Flow(transport, asyncio.get_running_loop(), HeldBytes(0), 60),
        [],
        listener=Listener(),
        done=int,
        expects_continue=False,
        keep_alive=True,
    )
    return made, transport


START = {"type": "http.response.start", "status": 200, "headers": []}
MORE = {"type": "http.response.body", "body": b"x", "more_body": True}
LAST = {"type": "http.response.body", "body": b"y"}


@pytest.mark.parametrize(
    "messages",
    [
        [MORE],
        [LAST],
        [START, START],
        [START, MORE, START],
        [START, LAST, LAST],
        [START, LAST, MORE],
        [START, LAST, START],
    ],
)
async def test_an_answer_in_a_wrong_order_raises_and_writes_nothing_of_what_is_wrong(messages):
    made, transport = exchange()
    for message in messages[:-1]:
        await made.send(message)
    before = list(transport.written)
    with pytest.raises(IllegalEvent):
        await made.send(messages[-1])
    assert transport.written == before


async def test_what_is_sent_to_a_client_that_has_left_is_dropped():
    made, transport = exchange()
    made.lost()
    for message in (START, MORE, LAST, LAST):
        await made.send(message)
    assert made.write(b"x")
    assert transport.written == []


async def test_writing_past_the_end_raises():
    made, _ = exchange()
    await made.send(START)
    await made.send(LAST)
    with pytest.raises(IllegalEvent):
        made.write(b"z")
