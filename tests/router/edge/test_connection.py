"""One client connection without a socket. What the whole gateway makes of bad input stands in tests/end_to_end."""

import asyncio
import json
from itertools import pairwise

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from router.edge import connection as module
from router.edge.connection import connection_class
from router.edge.listener import Listener


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self.closed = False
        self.eof = False

    def write(self, data):
        assert not self.closed
        assert not self.eof
        self.written += data

    def write_eof(self):
        self.eof = True

    def can_write_eof(self):
        return True

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_extra_info(self, _name, default=None):
        return default

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Heard:
    """The application: remembers its requests and answers them."""

    def __init__(self):
        self.requests = []

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.requests.append((scope["method"], scope["path"], None))
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.requests.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def connect(header_bytes=500, keep_alive_s=60):
    app = Heard()
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    connection = connection_class(Listener(header_bytes, keep_alive_s=keep_alive_s))(
        config, ServerState(), {}, _loop=asyncio.get_running_loop()
    )
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport, app


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def status(transport):
    return int(transport.written.split(b" ")[1])


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
FIXED = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n"
OFFERS = b"POST /d HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"content-length: 5\r\n\r\nhello"
OFFERS_CHUNKED = CHUNKED.replace(b"/c", b"/e").replace(b"host: x\r\n", b"host: x\r\n" + UPGRADE)
OFFERS_NOTHING = b"GET /f HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n"
HEARD = {
    GET: ("GET", "/a", b""),
    FIXED: ("POST", "/b", b"hello"),
    CHUNKED: ("POST", "/c", b"helloyou"),
    OFFERS: ("POST", "/d", b"hello"),
    OFFERS_CHUNKED: ("POST", "/e", b"helloyou"),
    OFFERS_NOTHING: ("GET", "/f", b""),
}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(list(HEARD)), min_size=1, max_size=4), st.lists(st.integers(0, 900), max_size=8))
def test_requests_are_heard_however_they_are_cut_and_whatever_they_offer(requests, places):
    async def run():
        connection, transport, app = connect()
        data = b"".join(requests)
        edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
        for start, stop in pairwise(edges):
            if start < stop:
                connection.data_received(data[start:stop])
            await settle()
        for _ in range(5):
            await settle()
        connection.connection_lost(None)
        return app.requests, transport.written

    heard, written = asyncio.run(run())
    assert heard == [HEARD[request] for request in requests]
    assert written.count(b"204 No Content") == len(requests)


@pytest.mark.parametrize("size", [1, 100, 2000])
async def test_too_many_headers_are_refused_once_however_they_arrive(size):
    connection, transport, _ = connect(header_bytes=500)
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(300))
    for start in range(0, len(head), size):
        connection.data_received(head[start : start + size])
    assert transport.written.count(b" 431 ") == 1
    connection.connection_lost(None)


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx: ", GET + b"GET /", FIXED + b"GET / HTTP/1.1\r\nx: "],
)
async def test_a_head_that_never_ends_is_refused_after_the_limit(start, size):
    connection, transport, _ = connect(header_bytes=500)
    connection.data_received(start)
    await settle()
    sent = 0
    while not transport.eof and sent < 2 * size + 1000:
        connection.data_received(b"a" * size)
        sent += size
    assert b" 431 " in transport.written
    assert sent <= 500 + 2 * size
    connection.connection_lost(None)


async def test_a_large_body_before_the_beginning_of_the_next_head_is_no_large_head():
    connection, _, app = connect(header_bytes=500)
    body = b"x" * 5000
    connection.data_received(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + body + b"GET /a HT")
    await settle()
    connection.data_received(b"TP/1.1\r\nhost: x\r\n\r\n")
    await settle()
    assert app.requests == [("POST", "/b", body), ("GET", "/a", b"")]
    connection.connection_lost(None)


async def test_a_refusal_is_said_once_and_what_follows_is_thrown_away(monkeypatch):
    monkeypatch.setattr(module, "_LINGER_BYTES", 1000)
    connection, transport, app = connect()
    connection.data_received(b"\x00\x01\x02\r\n\r\n")
    assert status(transport) == 400
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["code"] == 400
    assert b"connection: close" in head
    assert (transport.eof, transport.closed) == (True, False)
    said = transport.written
    connection.data_received(GET)
    assert (transport.written, app.requests) == (said, [])
    connection.data_received(b"x" * 1000)
    assert transport.closed
    connection.connection_lost(None)


async def test_after_a_refusal_the_connection_is_not_kept_for_long(monkeypatch):
    monkeypatch.setattr(module, "_LINGER_S", 0.01)
    connection, transport, _ = connect()
    connection.data_received(b"\x00\x01\x02\r\n\r\n")
    await asyncio.sleep(0.03)
    assert transport.closed
    connection.connection_lost(None)


async def test_a_body_that_turns_into_garbage_ends_its_request():
    connection, transport, app = connect()
    connection.data_received(b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel")
    await settle()
    connection.data_received(b"lo\r\nzz\r\n")
    await settle()
    assert status(transport) == 400
    assert app.requests == [("POST", "/c", None)]
    connection.connection_lost(None)


async def test_a_head_has_its_time_and_a_request_under_way_has_all_of_it(monkeypatch):
    monkeypatch.setattr(module, "HEAD_WITHIN_S", 0.02)
    silent, slow, busy = connect(), connect(), connect()
    slow[0].data_received(GET[:10])
    busy[0].data_received(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhe")
    await asyncio.sleep(0.06)
    assert silent[1].closed
    assert slow[1].closed
    assert not busy[1].closed
    for connection, _, _ in (silent, slow, busy):
        connection.connection_lost(None)
    await settle()


async def test_a_connection_that_has_been_answered_is_kept_for_its_time_and_no_longer():
    connection, transport, _ = connect(keep_alive_s=0.02)
    connection.data_received(GET)
    await settle()
    assert not transport.closed
    await asyncio.sleep(0.06)
    assert transport.closed
    connection.connection_lost(None)


async def test_a_deadline_that_has_moved_on_closes_nothing_when_it_was_due(monkeypatch):
    monkeypatch.setattr(module, "HEAD_WITHIN_S", 0.02)
    connection, transport, app = connect()
    connection.data_received(GET)  # answered: from now on it may idle for a minute
    await settle()
    await asyncio.sleep(0.06)
    assert not transport.closed
    connection.data_received(GET)
    await settle()
    assert len(app.requests) == 2
    connection.connection_lost(None)


async def test_a_body_in_chunks_of_a_byte_costs_one_call_for_what_comes_at_once(monkeypatch):
    taken = []
    take = module.Exchange.take
    monkeypatch.setattr(module.Exchange, "take", lambda self, body: (taken.append(body), take(self, body)))
    connection, _, app = connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    connection.data_received(head + b"1\r\na\r\n" * 20_000)
    connection.data_received(
        b"1\r\nb\r\n" * 20_000 + b"0\r\n\r\nPOST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nc"
    )
    await settle()
    assert taken == [b"a" * 20_000, b"b" * 20_000, b"c"]
    assert app.requests == [("POST", "/", b"a" * 20_000 + b"b" * 20_000), ("POST", "/2", b"c")]
