"""The bytes of a response against h11, whatever the pieces they arrive in.

No socket and no loop: a reader that would have to wait fails the test, because nothing is left to wait for.
"""

import asyncio
import itertools
import math
import random
from dataclasses import dataclass

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.http.connection import Connection, Patience
from workers.http.errors import (
    ConnectionLost,
    FirstByteTimeout,
    IdleTimeout,
    ProtocolError,
    ResponseAborted,
    UpstreamError,
)
from workers.http.response import Response


class FakeTransport:
    def __init__(self):
        self.unsent = 0
        self.written = b""
        self.reading = True
        self.aborted = False

    def write(self, data):
        self.written += data

    def writelines(self, pieces):
        self.written += b"".join(pieces)

    def get_write_buffer_size(self):
        return self.unsent

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def abort(self):
        self.aborted = True


PATIENCE = Patience(
    first_byte=9, first_byte_s=9.0, idle=3, idle_s=3.0, whole=99, whole_answer_s=99.0, frozen=math.inf
)


class FakePool:
    origin = "http://w:1"

    def __init__(self, buffer_bytes=1 << 20, max_head_bytes=1 << 16):
        self.buffer_bytes = buffer_bytes
        self.max_head_bytes = max_head_bytes
        self.events = []

    def opened(self, connection):
        self.events.append("opened")

    def released(self, connection):
        self.events.append("released")

    def unusable(self, connection):
        self.events.append("unusable")

    def lost(self, connection):
        self.events.append("lost")


class Bench:
    """One connection on a fake transport, with one request written."""

    def __init__(self, *, bodiless=False, **limits):
        self.pool = FakePool(**limits)
        self.transport = FakeTransport()
        self.connection = Connection(self.pool)
        self.connection.connection_made(self.transport)
        self.response = self.request(bodiless=bodiless)

    def request(self, *, bodiless=False):
        response = Response(None, "http://w:1", bodiless=bodiless)
        self.connection.start(response, b"GET / HTTP/1.1\r\n\r\n", b"")
        return response

    def feed(self, *pieces):
        for piece in pieces:
            if not self.transport.aborted:
                self.connection.data_received(piece)
        return self

    def hang_up(self, error=None):
        if not self.transport.aborted and error is None:
            self.connection.eof_received()
        self.connection.connection_lost(error)
        return self

    @property
    def kept(self):
        return not self.connection.closed


def without_waiting(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("waits, though nothing will ever come")


@dataclass
class Seen:
    """What a client makes of a response; `body` also holds what came before an error."""

    status: int | None = None
    reason: bytes = b""
    headers: list | None = None
    body: bytes = b""
    error: type | None = None


def ours(response):
    seen = Seen()
    try:
        without_waiting(response.head())
        seen.status, seen.reason, seen.headers = response.status, response.reason, response.headers
        while piece := without_waiting(response.read()):
            seen.body += piece
        assert response.at_end
    except UpstreamError as error:
        assert not response.at_end
        seen.error = type(error)
    return seen


def h11_sees(data, method=b"GET"):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "w")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    seen = Seen()
    try:
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                seen.status, seen.reason = event.status_code, bytes(event.reason)
                seen.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                seen.body += event.data
            elif event in (h11.NEED_DATA, h11.PAUSED):
                seen.error = h11.RemoteProtocolError
                break
    except h11.RemoteProtocolError as error:
        seen.error = type(error)
    return seen


def cut(data, places):
    places = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a != b]


HEADER = st.tuples(
    st.sampled_from([b"Content-Type", b"x-request-id", b"X-Empty", b"set-cookie", b"Server", b"connection"]),
    st.sampled_from([b"", b"a", b"text/event-stream", b'a, b;c="d"', b"  padded\t ", b"keep-alive"]),
)
HEADERS = st.lists(HEADER, max_size=5)
BODY = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"data: {}\n\n" * 9]),
)


def lines(headers):
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


@st.composite
def responses(draw):
    """Well-formed responses to GET: the whole of what was sent until the server closed."""
    interim = b"".join(
        b"HTTP/1.1 %d Wait\r\n%b\r\n" % (draw(st.sampled_from([100, 102, 103])), lines(draw(HEADERS)))
        for _ in range(draw(st.integers(0, 2)))
    )
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 404, 429, 500, 503, 299]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    reason = draw(st.sampled_from([b"OK", b"", b"Not Found", b"so so"]))
    head = b"HTTP/%b %d %b\r\n%b" % (version, status, reason, lines(draw(HEADERS)))
    body = b"" if status in (204, 304) else draw(BODY)
    framing = draw(st.sampled_from(["chunked", "length", "close"])) if version == b"1.1" else "length"
    if status in (204, 304):
        return interim + head + b"\r\n"
    if framing == "length":
        return interim + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing == "close":
        return interim + head + b"\r\n" + body
    chunks = cut(body, draw(st.lists(st.integers(0, 500), max_size=6)))
    extension = draw(st.sampled_from([b"", b";a=b", b';x="y z"']))
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    trailers = lines(draw(HEADERS))
    return interim + head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailers + b"\r\n"


CUTS = st.lists(st.integers(0, 2000), max_size=12)


@settings(max_examples=400, deadline=None)
@given(data=responses(), places=CUTS)
def test_every_split_of_every_response_gives_what_h11_gives(data, places):
    bench = Bench().feed(*cut(data, places)).hang_up()
    assert ours(bench.response) == h11_sees(data)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CLASSIC = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Empty:\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
]


@pytest.mark.parametrize("data", CLASSIC)
def test_all_single_and_double_cuts_and_single_bytes_give_the_same(data):
    expected = h11_sees(data)
    assert ours(Bench().feed(*(data[i : i + 1] for i in range(len(data)))).hang_up().response) == expected
    for first, second in itertools.combinations_with_replacement(range(len(data)), 2):
        assert ours(Bench().feed(*cut(data, [first, second])).hang_up().response) == expected


@st.composite
def damaged(draw):
    data = bytearray(draw(responses()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "insert", "delete", "replace"])):
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(
                    st.sampled_from([b"\r", b"\n", b"\r\n", b"0", b" ", b":", b"\xff", b"\0"])
                )
            case "delete":
                del data[place : place + draw(st.integers(1, 4))]
            case "replace":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(data=st.one_of(damaged(), st.binary(max_size=80)), places=CUTS)
@example(data=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", places=[])
@example(data=b"HTTP/1.1 000 \r\n\r\n", places=[])
def test_garbage_ends_in_an_error_or_in_what_h11_makes_of_it_however_it_is_cut(data, places):
    whole = ours(Bench().feed(data).hang_up().response)
    assert ours(Bench().feed(*cut(data, places)).hang_up().response) == whole
    oracle = h11_sees(data)
    if whole.error is None and oracle.error is None:
        assert whole == oracle
    assert whole.error in (None, ProtocolError, ConnectionLost)


@settings(max_examples=200, deadline=None)
@given(data=responses(), places=CUTS, keep=st.integers(0, 2000))
def test_a_truncated_response_is_never_taken_for_a_whole_one(data, places, keep):
    part = data[: keep % (len(data) + 1)]
    seen = ours(Bench().feed(*cut(part, places)).hang_up().response)
    oracle = h11_sees(part)
    if oracle.error is None:
        assert seen == oracle
    else:
        assert seen.error is ConnectionLost
        assert oracle.body.startswith(seen.body) or seen.body.startswith(oracle.body)


@settings(max_examples=150, deadline=None)
@given(first=responses(), second=responses(), places=CUTS)
def test_a_kept_connection_carries_the_next_response_unharmed(first, second, places):
    bench = Bench().feed(*cut(first, places))
    if bench.kept and "released" in bench.pool.events:
        assert bench.pool.events.count("released") == 1
        response = bench.request()
        bench.feed(*cut(second, places)).hang_up()
        assert ours(response) == h11_sees(second)
        assert ours(bench.response) == h11_sees(first)


KEPT = [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", True),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nt: 1\r\n\r\n", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    (b"HTTP/1.1 304 Not Modified\r\n\r\n", True),
    (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", True),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", True),
    (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", False),
    (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
    (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", True),
    (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", False),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokX", False),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", False),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokH", False),
]


@pytest.mark.parametrize(("data", "kept"), KEPT)
def test_a_connection_is_kept_only_if_nothing_makes_its_next_use_doubtful(data, kept):
    bench = Bench().feed(data)
    assert bench.kept is kept
    assert bench.pool.events.count("released") == kept
    assert ours(bench.response) == h11_sees(data)


def test_an_early_response_is_delivered_and_the_connection_closed():
    bench = Bench()
    bench.transport.unsent = 1
    bench.feed(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert ours(bench.response) == h11_sees(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert bench.transport.aborted


def test_the_response_to_head_has_no_body_whatever_it_announces():
    bench = Bench(bodiless=True).feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    seen = ours(bench.response)
    assert (seen.status, seen.body, seen.error) == (200, b"", None)
    assert not bench.kept


REFUSED = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot hex\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nanything",
    b"HTTP/1.1 105 Odd\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 99 Low\r\n\r\n",
    b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 999 High\r\ncontent-length: 0\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"SSH-2.0-OpenSSH_9.2\r\n",
]


@pytest.mark.parametrize("data", REFUSED)
def test_a_response_that_could_be_read_in_two_ways_is_refused(data):
    bench = Bench().feed(data)
    assert ours(bench.response).error is ProtocolError
    assert bench.transport.aborted


def endless(prefix, piece):
    return itertools.chain([prefix], itertools.repeat(piece, 100_000))


FLOODS = [
    (b"HTTP/1.1 200 OK\r\nx: ", b"a" * 50),
    (b"HTTP/1.1 200 OK\r\n", b"x: aaaaaaaaaaaaaaaaaa\r\n"),
    (b"HTTP/1.1 200 ", b"OK"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    (CHUNKED + b"0\r\n", b"t: 1\r\n"),
    (CHUNKED + b"0\r\nt: ", b"11"),
    (CHUNKED + b"1;", b"abc"),
]


@pytest.mark.parametrize(("prefix", "piece"), FLOODS)
def test_a_flood_that_is_no_body_ends_at_the_limit_for_heads(prefix, piece):
    bench = Bench(max_head_bytes=4096).feed(*endless(prefix, piece))
    with pytest.raises(ProtocolError, match="more than 4096 bytes") as failure:
        without_waiting(bench.response.read())
    assert failure.value.received_bytes < 4096 + 200


def test_a_head_beyond_the_limit_is_refused_in_one_piece_too():
    bench = Bench(max_head_bytes=4096).feed(b"HTTP/1.1 200 OK\r\n" + b"x: aaaaa\r\n" * 600 + b"\r\n")
    assert ours(bench.response).error is ProtocolError


def test_reading_stops_above_the_high_water_mark_and_goes_on_when_the_reader_has_taken_all():
    bench = Bench(buffer_bytes=1000).feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", b"x" * 900)
    assert bench.transport.reading
    bench.feed(b"x" * 200)
    assert not bench.transport.reading
    assert without_waiting(bench.response.read()) == b"x" * 1100
    assert bench.transport.reading
    bench.feed(b"x" * 900)
    assert bench.transport.reading
    bench.feed(b"x" * 3000)
    assert bench.transport.reading, "the message is complete: the idle connection has to be watched"
    assert bench.kept


def test_reading_goes_on_after_an_end_that_came_while_it_was_stopped():
    bench = Bench(buffer_bytes=10).feed(b"HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n" + b"x" * 50)
    assert not bench.transport.reading
    bench.feed(b"x" * 10)  # as TLS does with what it had deciphered already
    assert bench.kept
    assert bench.transport.reading


def test_the_head_of_a_response_is_not_yet_an_answer():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(9):
        bench.connection.tick(PATIENCE)
    assert bench.kept, "the engine may be at work for longer than it may be silent later"
    bench.connection.tick(PATIENCE)
    with pytest.raises(FirstByteTimeout, match="no first byte within 9 s"):
        without_waiting(bench.response.read())


def test_silence_counts_in_ticks_and_not_while_we_have_stopped_reading():
    bench = Bench(buffer_bytes=10).feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 100)
    for _ in range(50):
        bench.connection.tick(PATIENCE)
    assert without_waiting(bench.response.read())
    for _ in range(3):
        bench.connection.tick(PATIENCE)
    assert bench.kept
    bench.connection.tick(PATIENCE)
    with pytest.raises(IdleTimeout, match=r"http://w:1: silent for 3 s after \d+ bytes"):
        without_waiting(bench.response.read())
    assert bench.transport.aborted


def test_what_arrived_before_a_reset_is_delivered_before_the_error():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n", b"part")
    bench.hang_up(ConnectionResetError(104, "reset by peer"))
    without_waiting(bench.response.head())
    assert without_waiting(bench.response.read()) == b"part"
    with pytest.raises(ConnectionLost, match="reset by peer after 43 bytes, in mid-body") as failure:
        without_waiting(bench.response.read())
    assert failure.value.received_bytes == 43
    assert not failure.value.before_first_byte


def test_a_close_delimited_body_that_is_reset_is_not_complete():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\n\r\npart").hang_up(ConnectionResetError(104, "reset"))
    assert ours(bench.response).error is ConnectionLost


def test_abort_drops_what_arrived_and_closes_once():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\npart")
    bench.response.abort()
    bench.response.abort()
    bench.hang_up()
    assert bench.transport.aborted
    assert bench.pool.events == ["opened", "unusable", "lost"]
    with pytest.raises(ResponseAborted):
        without_waiting(bench.response.read())


def test_abort_after_the_end_leaves_the_connection_to_the_pool():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npart")
    bench.response.abort()
    assert bench.kept
    with pytest.raises(ResponseAborted):
        without_waiting(bench.response.read())


def test_abort_of_what_was_read_to_its_end_does_nothing():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npart")
    assert ours(bench.response).body == b"part"
    bench.response.abort()
    assert bench.response.at_end
    assert bench.kept


@pytest.mark.parametrize("stray", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n"])
def test_bytes_on_an_idle_connection_close_it(stray):
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert bench.kept
    bench.feed(stray)
    assert bench.transport.aborted
    assert "unusable" in bench.pool.events


def test_read_all_ends_the_exchange_beyond_its_limit():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nnineteen characters")
    with pytest.raises(ProtocolError, match="more than 18 bytes"):
        without_waiting(bench.response.read_all(18))
    assert bench.transport.aborted


def test_a_large_body_goes_to_the_transport_whole():
    bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    response = Response(None, "http://w:1", bodiless=False)
    bench.transport.written = b""
    bench.connection.start(response, b"head", b"b" * 1_000_000)
    assert bench.transport.written == b"head" + b"b" * 1_000_000


class Sending:
    """A connection that sends a body of a megabyte in pieces, on a loop whose turns the test takes."""

    def __init__(self, monkeypatch):
        self.due = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)
        self.bench = Bench().feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        self.bench.transport.written = b""
        response = Response(None, "http://w:1", bodiless=False)
        self.body = random.Random(1).randbytes(1_000_000)
        cuts = (0, 1, 70_000, 600_000, 1_000_000)
        pieces = tuple(memoryview(self.body)[start:end] for start, end in itertools.pairwise(cuts))
        self.bench.connection.start(response, b"head", pieces)

    def call_soon(self, function):
        self.due.append(function)

    def turn(self):
        due, self.due = self.due, []
        for function in due:
            function()
        return len(due)

    @property
    def written(self):
        return self.bench.transport.written


def test_a_body_in_pieces_is_written_a_portion_a_turn_and_only_while_the_transport_takes_it(monkeypatch):
    sending = Sending(monkeypatch)
    connection, before = sending.bench.connection, 0
    assert 0 < len(sending.written) <= 300_000
    for _ in range(2):
        connection.pause_writing()
        connection.resume_writing()
    assert sending.turn() == 1
    connection.pause_writing()
    sending.turn()
    before = len(sending.written)
    assert before < 1_000_000
    assert sending.turn() == 0
    assert len(sending.written) == before
    connection.resume_writing()
    while sending.turn():
        assert len(sending.written) - before <= 300_000
        before = len(sending.written)
    assert sending.written == b"head" + sending.body


def test_an_answer_before_the_body_is_sent_ends_the_sending_and_the_connection(monkeypatch):
    sending = Sending(monkeypatch)
    before = len(sending.written)
    sending.bench.feed(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n")
    assert sending.bench.transport.aborted
    sending.turn()
    sending.bench.connection.resume_writing()
    assert sending.turn() == 0
    assert len(sending.written) == before
