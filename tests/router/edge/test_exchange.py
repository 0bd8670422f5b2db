"""One request and its answer on a client's connection: framing, back-pressure, and a client that leaves."""

import asyncio

import pytest

from router.edge.exchange import EXTENSION, Exchange, wire_of
from router.edge.flow import Flow
from router.edge.held_bytes import HeldBytes
from router.edge.listener import Listener


class Sent:
    """A transport that keeps what is written, write by write."""

    def __init__(self):
        self.writes = []
        self.reading = self.open = True
        self.unsent = 0

    def write(self, data):
        self.writes.append(data)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return not self.open

    def get_extra_info(self, _name, default=None):
        return default

    def get_write_buffer_size(self):
        return self.unsent

    def close(self):
        self.open = False


def cycle(method="POST", *, version="1.1", keep_alive=True, expects=False, unread=0, listener=None):
    transport = Sent()
    scope = {"type": "http", "method": method, "http_version": version}
    made = Exchange(
        scope,
        transport,
        Flow(transport, asyncio.get_running_loop(), HeldBytes(4 * unread), 60),
        [(b"date", b"today")],
        listener=listener or Listener(),
        done=lambda: None,
        expects_continue=expects,
        keep_alive=keep_alive,
    )
    scope["extensions"] = {EXTENSION: made}
    return made, transport


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data, *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


# -- the answer


async def test_head_and_body_of_known_length_leave_in_one_write():
    made, transport = cycle()
    await made.send(start(200, (b"content-length", b"3")))
    assert transport.writes == []
    await made.send(body(b"abc"))
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 3\r\n\r\nabc"]
    assert made.complete
    assert transport.open


async def test_a_body_of_unknown_length_leaves_in_chunks_and_the_head_with_the_first():
    made, transport = cycle()
    await made.send(start(200, (b"x", b"y")))
    await made.send(body(b"abc", more=True))
    assert made.write(b"0123456789abcdef")
    await made.send(body(b"", more=True))
    await made.send(body(b""))
    head, *chunks = transport.writes
    assert head == b"HTTP/1.1 200 OK\r\ndate: today\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert chunks == [b"10\r\n0123456789abcdef\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(("keep_alive", "header"), [(False, ()), (True, ((b"connection", b"Close, x"),))])
async def test_a_connection_that_is_not_kept_says_so_once_and_closes(keep_alive, header):
    made, transport = cycle(keep_alive=keep_alive)
    await made.send(start(200, (b"content-length", b"0"), *header))
    await made.send(body(b""))
    assert b"".join(transport.writes).lower().count(b"connection: close") == 1
    assert not transport.open


async def test_head_and_statuses_without_a_body_have_none():
    made, transport = cycle("HEAD")
    await made.send(start(200, (b"content-length", b"3")))
    await made.send(body(b"abc"))
    assert transport.writes[0].endswith(b"content-length: 3\r\n\r\n")
    made, transport = cycle()
    await made.send(start(204))
    await made.send(body(b""))
    assert b"chunked" not in transport.writes[0]


@pytest.mark.parametrize("pair", [(b"x", b"a\r\nb: c"), (b"x\n", b"a"), (b"x", b"a\0")])
async def test_a_header_that_would_break_its_line_is_refused(pair):
    made, transport = cycle()
    with pytest.raises(RuntimeError, match="header"):
        await made.send(start(200, pair))
    assert transport.writes == []


@pytest.mark.parametrize("data", [b"ab", b"abcd"])
async def test_a_body_of_another_length_than_announced_is_refused(data):
    made, _ = cycle()
    await made.send(start(200, (b"content-length", b"3")))
    with pytest.raises(RuntimeError, match="Content-Length"):
        await made.send(body(data))


async def test_nothing_follows_the_end():
    made, _ = cycle()
    await made.send(start(200, (b"content-length", b"0")))
    await made.send(body(b""))
    with pytest.raises(RuntimeError, match="END cannot follow COMPLETE"):
        await made.send(body(b"x"))


# -- a client that reads slowly, or leaves


async def test_a_slow_client_is_told_of_by_write_and_waited_for_by_send():
    made, transport = cycle()
    await made.send(start())
    await made.send(body(b"a", more=True))
    made.flow.pause_writing()
    assert not made.write(b"b")  # sent all the same: the next piece has to wait
    waiting = asyncio.create_task(made.send(body(b"c", more=True)))
    await asyncio.sleep(0)
    assert transport.writes[1:] == [b"1\r\nb\r\n"]
    made.flow.resume_writing()
    await waiting
    assert transport.writes[2:] == [b"1\r\nc\r\n"]


async def test_a_client_that_leaves_is_told_once_and_only_before_its_answer_is_complete():
    told = []
    made, _ = cycle()
    made.watch(lambda: told.append("gone"))
    made.lost()
    made.lost()
    made.lost()
    assert told == ["gone"]
    made, _ = cycle()
    made.watch(lambda: told.append("late"))
    await made.send(start(200, (b"content-length", b"0")))
    await made.send(body(b""))
    made.lost()
    assert told == ["gone"]


async def test_a_client_that_had_left_before_is_told_of_at_once_and_nothing_is_written():
    told = []
    made, transport = cycle()
    made.lost()
    made.watch(lambda: told.append("gone"))
    assert told == ["gone"]
    await made.send(start())
    made.write(b"x")
    assert transport.writes == []


async def test_whoever_watches_has_the_connection_read_or_would_never_hear_of_it():
    made, transport = cycle()
    made.take(b"x" * 100_000)
    assert not transport.reading
    made.watch(lambda: None)
    assert transport.reading


async def test_scope_and_cycle_let_go_of_each_other_at_the_end():
    for end in (lambda made: made.lost(), lambda made: made._end()):
        made, _ = cycle()
        assert wire_of(made.scope) is made
        end(made)
        assert wire_of(made.scope) is None


# -- the request


async def test_a_body_is_received_in_one_piece_however_it_came():
    made, transport = cycle(expects=True)
    made.take(b"ab")
    made.take(b"cd")
    made.more_body = False
    message = await made.receive()
    assert message == {"type": "http.request", "body": b"abcd", "more_body": False}
    assert transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    made.lost()
    assert await made.receive() == {"type": "http.disconnect"}
