"""The pool and whole responses over real sockets, against small servers that send exactly what a test says."""

import asyncio
import contextlib
import functools
import gc
import inspect
import socket
import ssl
import time
import weakref

import httpx
import pytest
import trustme
import uvloop

from workers.http.tls import TlsFiles, context_of
from workers.http.upstream import (
    AnswerTimeout,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    Frozen,
    IdleTimeout,
    Limits,
    PoolExhausted,
    ProtocolError,
    ResponseAborted,
    Timeouts,
    Upstream,
    UpstreamError,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_each_loop(test):
    """A coroutine test, run on asyncio's own event loop and on uvloop (what the gateway uses)."""

    @pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
    @functools.wraps(test)
    def run(loop, **fixtures):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test(**fixtures))

    own = inspect.signature(test).parameters.values()
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*own, loop])
    return run


def has_ipv6_loopback():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class RawServer:
    """Runs one script per connection and remembers what it saw.

    A script is `async def script(server, reader, writer)`; its connection closes when it returns.
    """

    def __init__(self, script, *, host="127.0.0.1", tls=None):
        self.script = script
        self.host = host
        self.tls = tls
        self.accepted = 0
        self.requests = []
        self.client_left = asyncio.Event()
        self.release = asyncio.Event()
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{'https' if self.tls else 'http'}://{host}:{self.port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self.accepted += 1
        self._tasks.add(asyncio.current_task())
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.client_left.set()
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()

    async def request(self, reader):
        """The next request, head and body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((line[16:] for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), b"0")
        self.requests.append(head + await reader.readexactly(int(length)))


def answering(*pieces, pause_s=0.0, close=False):
    """A script that gives every request the same answer, in these pieces."""

    async def script(server, reader, writer):
        while True:
            await server.request(reader)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause_s)
            if close:
                await writer.drain()
                writer.write_eof()
                return

    return script


async def silent(server, reader, writer):
    await server.request(reader)
    await server.release.wait()


def reset(writer):
    """Close with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


@contextlib.asynccontextmanager
async def upstream(url, **options):
    client = Upstream(url, **options)
    try:
        yield client
    finally:
        await client.aclose()
        assert (client.open, client.idle, client._dialing, len(client._waiting)) == (0, 0, 0, 0)


async def post(client, body=b"{}", target=b"/v1/x"):
    return await client.send(b"POST", target, [(b"x-a", b"1")], body)


async def fetch(client, **options):
    response = await post(client, **options)
    await response.head()
    return response.status, await response.read_all(1 << 30)


async def eventually(condition):
    """Until the other side's news has come round; a test that waits in vain fails by its own timeout."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is awaited is in another room, without an event
            await asyncio.sleep(0.005)


@on_each_loop
async def test_a_request_arrives_as_given_and_a_prefix_goes_before_its_target():
    async with RawServer(answering(OK)) as server, upstream(server.url + "/base/") as client:
        assert await fetch(client, body=b'{"a": 1}', target=b"/v1/x?y=1") == (200, b"ok")
        host = server.url.removeprefix("http://").encode()
    assert server.requests == [
        b"POST /base/v1/x?y=1 HTTP/1.1\r\nhost: " + host + b'\r\nx-a: 1\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    ]


SAME_AS_HTTPX = {
    "length": (OK[:9], OK[9:30], OK[30:]),
    "chunked": (CHUNKED, b"3\r\nabc\r\n", b"4\r\nde", b"fg\r\n0\r\n\r\n"),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\n", b"x-trailer: 1\r\n\r\n"),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n", OK),
    "no content": (b"HTTP/1.1 204 No Content\r\nx: 1\r\nx: 2\r\n\r\n",),
    "error with body": (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\n", b"why"),
    "events": (CHUNKED, b"a\r\ndata: {}\r\n\r\n", b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("pieces", SAME_AS_HTTPX.values(), ids=SAME_AS_HTTPX)
@on_each_loop
async def test_a_response_is_what_httpx_makes_of_it_and_the_connection_is_reused(pieces):
    async with RawServer(answering(*pieces, pause_s=0.002)) as server, upstream(server.url) as client:
        for _ in range(2):
            response = await post(client)
            await response.head()
            body = await response.read_all(10_000)
            async with httpx.AsyncClient(trust_env=False) as oracle:
                expected = await oracle.post(server.url + "/v1/x", content=b"{}")
            assert (response.status, response.reason) == (expected.status_code, expected.reason_phrase.encode())
            assert response.headers == [(name.lower(), value) for name, value in expected.headers.raw]
            assert body == expected.content
            assert response.at_end
        assert server.accepted == 3, "one for us, two for httpx"


@on_each_loop
async def test_a_close_delimited_response_is_what_httpx_makes_of_it():
    script = answering(b"HTTP/1.1 200 OK\r\nx: 1\r\n\r\nuntil", b" the end", pause_s=0.002, close=True)
    async with RawServer(script) as server, upstream(server.url) as client:
        assert await fetch(client) == (200, b"until the end")
        async with httpx.AsyncClient(trust_env=False) as oracle:
            assert (await oracle.post(server.url)).content == b"until the end"
        assert await fetch(client) == (200, b"until the end")
        assert client.idle == 0
    assert server.accepted == 3


@pytest.mark.parametrize(
    ("first", "reused"),
    [
        (OK, True),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", True),
        (CHUNKED + b"0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", False),
        (OK + b"more", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
        (b"garbage\r\n\r\n", False),
    ],
)
@on_each_loop
async def test_a_connection_is_reused_only_after_a_clean_end(first, reused):
    answers = [first, OK]

    async def script(server, reader, writer):
        while True:
            await server.request(reader)
            writer.write(answers.pop(0))

    async with RawServer(script) as server, upstream(server.url) as client:
        with contextlib.suppress(ProtocolError):
            await fetch(client)
        assert client.idle == reused
        assert await fetch(client) == (200, b"ok")
        assert server.accepted == (1 if reused else 2)


@on_each_loop
async def test_the_connection_used_last_is_used_next():
    async with RawServer(answering(OK, pause_s=0.01)) as server, upstream(server.url) as client:
        await asyncio.gather(*(fetch(client) for _ in range(3)))
        assert (client.open, client.idle) == (3, 3)
        last = next(reversed(client._idle))
        assert await fetch(client) == (200, b"ok")
        assert next(reversed(client._idle)) is last
        assert server.accepted == 3


async def close_after_the_next_request(server, reader, writer):
    """The first connection answers once and closes (or resets) when it hears of a second request."""
    await server.request(reader)
    writer.write(OK)
    if server.accepted == 1:
        await server.request(reader)
        reset(writer)
    else:
        await server.request(reader)


@pytest.mark.parametrize("close", [reset, lambda writer: writer.close()], ids=["reset", "closed"])
@on_each_loop
async def test_a_request_on_a_kept_connection_that_dies_is_lost_and_never_sent_again(close):
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(OK)
        await server.request(reader)
        close(writer)

    async with RawServer(script) as server, upstream(server.url) as client:
        assert await fetch(client) == (200, b"ok")
        response = await post(client, body=b"x" * 1000)
        for _ in range(2):
            with pytest.raises(ConnectionLost, match=rf"{server.url}: ") as failure:
                await response.head()
            assert failure.value.before_first_byte
        await asyncio.sleep(0.05)
        assert (server.accepted, len(server.requests)) == (1, 2)


@on_each_loop
async def test_a_connection_that_closes_after_it_was_granted_is_not_written_to():
    async def script(server, reader, writer):
        await server.request(reader)
        await server.release.wait()
        writer.write(OK)
        await server.request(reader)

    limits = Limits(max_connections=1)
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        first = await post(client)
        waiting = asyncio.create_task(post(client))
        await eventually(lambda: client._waiting)
        [connection] = client._connections
        released = client.released

        def released_and_closed(connection):
            released(connection)
            connection.close()

        client.released = released_and_closed
        server.release.set()
        assert await first.read_all(2) == b"ok"
        client.released = released
        response = await waiting
        assert response.connection is not connection
        assert await response.read_all(2) == b"ok"
        assert (server.accepted, len(server.requests)) == (2, 2)


@on_each_loop
async def test_a_fresh_connection_that_dies_is_an_error():
    async def script(server, reader, writer):
        await server.request(reader)

    async with RawServer(script) as server, upstream(server.url) as client:
        response = await post(client)
        with pytest.raises(ConnectionLost):
            await response.head()
        assert server.accepted == 1


@on_each_loop
async def test_a_connection_that_dies_after_the_first_byte_is_not_replaced():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(OK)
        await server.request(reader)
        writer.write(b"H")
        await asyncio.sleep(0.01)
        reset(writer)

    async with RawServer(script) as server, upstream(server.url) as client:
        await fetch(client)
        response = await post(client)
        with pytest.raises(ConnectionLost, match="mid-head") as failure:
            await response.head()
        assert failure.value.received_bytes == 1
        assert server.accepted == 1


@on_each_loop
async def test_the_end_of_an_idle_connection_removes_it_at_once():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(OK)
        await server.release.wait()

    async with RawServer(script) as server, upstream(server.url) as client:
        await fetch(client)
        assert (client.open, client.idle) == (1, 1)
        server.release.set()
        await eventually(lambda: (client.open, client.idle) == (0, 0))
        assert await fetch(client) == (200, b"ok")


@on_each_loop
async def test_idle_connections_expire_and_the_clock_stops_with_the_last():
    limits = Limits(idle_expiry_s=0.08)
    async with RawServer(answering(OK)) as server, upstream(server.url, limits=limits) as client:
        await asyncio.gather(*(fetch(client) for _ in range(3)))
        await eventually(lambda: client.open == 0)
        await eventually(lambda: client._clock is None)
        assert await fetch(client) == (200, b"ok")


@on_each_loop
async def test_a_connection_past_its_expiry_is_not_used_even_if_the_clock_is_late():
    async with RawServer(answering(OK)) as server, upstream(server.url) as client:
        await fetch(client)
        for connection in client._idle:
            client._idle[connection] -= client.limits.idle_expiry_s
        assert await fetch(client) == (200, b"ok")
        assert server.accepted == 2


@on_each_loop
async def test_no_more_than_max_idle_connections_are_kept():
    limits = Limits(max_idle=2)
    async with RawServer(answering(OK, pause_s=0.01)) as server, upstream(server.url, limits=limits) as client:
        await asyncio.gather(*(fetch(client) for _ in range(5)))
        await eventually(lambda: (client.open, client.idle) == (2, 2))


@on_each_loop
async def test_a_connection_whose_request_is_cancelled_in_the_turn_that_opens_it_is_not_counted_for_ever():
    async with RawServer(answering()) as server, upstream(server.url) as client:
        for turns in range(6):
            sending = asyncio.create_task(client.send(b"GET", b"/", (), b""))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            [sent] = await asyncio.gather(sending, return_exceptions=True)
            if not isinstance(sent, BaseException):
                sent.abort()
            await eventually(lambda: client.open == 0)


@on_each_loop
async def test_beyond_max_connections_requests_wait_for_their_turn():
    limits = Limits(max_connections=2)
    async with RawServer(answering(OK, pause_s=0.005)) as server, upstream(server.url, limits=limits) as client:
        assert await asyncio.gather(*(fetch(client) for _ in range(12))) == [(200, b"ok")] * 12
        assert server.accepted == 2


@on_each_loop
async def test_a_closed_connection_makes_room_for_who_waits():
    limits = Limits(max_connections=1)
    script = answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        assert await asyncio.gather(*(fetch(client) for _ in range(6))) == [(200, b"ok")] * 6
        assert server.accepted == 6


@on_each_loop
async def test_who_waits_too_long_for_a_connection_is_told_and_leaves_nothing_behind():
    limits = Limits(max_connections=1)
    options = {"limits": limits, "timeouts": Timeouts(connect_s=0.05)}
    async with RawServer(silent) as server, upstream(server.url, **options) as client:
        response = await post(client)
        with pytest.raises(PoolExhausted, match=r"all 1 connections in use for 0.05 s"):
            await post(client)
        assert not client._waiting
        cancelled = asyncio.create_task(post(client))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert not client._waiting
        response.abort()
        await eventually(lambda: client.open == 0)
        (await post(client)).abort()


@pytest.mark.parametrize(("answer", "news", "accepted"), [(OK, "released", 1), (OK + b"surplus", "lost", 2)])
@on_each_loop
async def test_a_place_granted_to_a_cancelled_waiter_goes_to_the_next(answer, news, accepted):
    async def script(server, reader, writer):
        await server.request(reader)
        await server.release.wait()
        writer.write(answer if server.accepted == 1 and len(server.requests) == 1 else OK)
        await server.request(reader)
        writer.write(OK)

    limits = Limits(max_connections=1)
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        response = await post(client)
        first = asyncio.create_task(fetch(client))
        second = asyncio.create_task(fetch(client))
        await eventually(lambda: len(client._waiting) == 2)
        grant = getattr(client, news)

        def grant_and_cancel(connection):
            grant(connection)
            assert len(client._waiting) == 1, "granted, but has not run yet"
            setattr(client, news, grant)
            first.cancel()

        setattr(client, news, grant_and_cancel)
        server.release.set()
        await response.head()
        assert await second == (200, b"ok")
        with pytest.raises(asyncio.CancelledError):
            await first
        assert server.accepted == accepted


@on_each_loop
async def test_timeouts_name_the_origin_and_what_happened():
    options = {"timeouts": Timeouts(first_byte_s=0.08)}
    async with RawServer(silent) as server, upstream(server.url, **options) as client:
        response = await post(client)
        with pytest.raises(FirstByteTimeout, match=rf"{server.url}: no first byte within 0.08 s") as failure:
            await response.head()
        assert failure.value.before_first_byte
        await eventually(lambda: client.open == 0)


@on_each_loop
async def test_silence_in_mid_body_is_an_idle_timeout_and_a_trickle_is_not():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(CHUNKED)
        for _ in range(8):
            await asyncio.sleep(0.03)
            writer.write(b"1\r\nx\r\n")
        await server.release.wait()

    options = {"timeouts": Timeouts(first_byte_s=60, idle_s=0.12)}
    async with RawServer(script) as server, upstream(server.url, **options) as client:
        response = await post(client)
        with pytest.raises(IdleTimeout, match=r"silent for 0.12 s"):
            await response.read_all(100)
        assert response.status == 200


TRICKLES = {
    "head": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "interim": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "chunk extension": (CHUNKED + b"5;", b"x"),
}


@pytest.mark.parametrize(("before", "again"), TRICKLES.values(), ids=TRICKLES)
@on_each_loop
async def test_what_is_no_body_does_not_put_the_first_byte_off(before, again):
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(before)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with RawServer(script) as server, upstream(server.url, timeouts=Timeouts(first_byte_s=0.1)) as client:
        response = await post(client)
        with pytest.raises(FirstByteTimeout):
            await response.read()


@on_each_loop
async def test_framing_without_a_body_is_silence_in_mid_answer():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(CHUNKED + b"1\r\nx\r\n5;")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    options = {"timeouts": Timeouts(first_byte_s=60, idle_s=0.1)}
    async with RawServer(script) as server, upstream(server.url, **options) as client:
        response = await post(client)
        with pytest.raises(IdleTimeout):
            await response.read_all(100)


async def answer_late(server, reader, writer):
    await server.request(reader)
    await server.release.wait()
    writer.write(OK)
    await server.request(reader)


@on_each_loop
async def test_an_answer_in_one_piece_has_a_limit_in_total_and_none_for_its_first_byte():
    times = Timeouts(first_byte_s=0.08, whole_answer_s=60)
    async with RawServer(answer_late) as server, upstream(server.url, timeouts=times) as client:
        whole = await client.send(b"POST", b"/", (), b"", whole=True)
        streamed = await client.send(b"POST", b"/", (), b"")
        with pytest.raises(FirstByteTimeout):
            await streamed.head()
        server.release.set()
        assert await whole.read_all(2) == b"ok"


@on_each_loop
async def test_an_answer_in_one_piece_that_is_late_in_total_is_given_up_even_while_it_trickles():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with RawServer(script) as server, upstream(server.url, timeouts=Timeouts(whole_answer_s=0.1)) as client:
        response = await client.send(b"POST", b"/", (), b"", whole=True)
        with pytest.raises(AnswerTimeout, match=r"no complete answer within 0\.1 s"):
            await response.read_all(1 << 20)
        await eventually(lambda: client.open == 0)


@on_each_loop
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_request_that_is_silent_on_a_worker_that_does_not_work_is_given_up(begun, whole):
    async def script(server, reader, writer):
        await server.request(reader)
        if begun:
            writer.write(CHUNKED + b"1\r\nx\r\n")
        await server.release.wait()

    limits = Limits(idle_expiry_s=0.4)
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        response = await client.send(b"POST", b"/", (), b"", whole=whole)
        reading = asyncio.create_task(response.read_all(100))
        await asyncio.sleep(0.3)
        assert not reading.done()
        client.silence_limit_s = 0.1
        with pytest.raises(Frozen):
            await reading


@on_each_loop
async def test_while_one_answer_brings_tokens_no_silent_one_is_given_up():
    async def script(server, reader, writer):
        await server.request(reader)
        if server.accepted == 1:
            writer.write(CHUNKED)
            while not server.release.is_set():
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.005)
            writer.write(b"0\r\n\r\n")
        await server.release.wait()
        await asyncio.Event().wait()

    limits = Limits(idle_expiry_s=0.8)
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        lively = asyncio.create_task((await post(client)).read_all(1 << 20))
        silent_one = await post(client)
        reading = asyncio.create_task(silent_one.head())
        client.silence_limit_s = 0.2
        await asyncio.sleep(0.5)
        assert not reading.done()
        server.release.set()
        await lively
        with pytest.raises(Frozen):
            await reading


@on_each_loop
async def test_a_failed_response_is_freed_at_once_and_with_it_all_that_its_reader_held():
    """An error that the response keeps and raises refers to it by its traceback: a cycle."""

    class Held:
        pass

    async def attempt(client):
        held = Held()
        refs.append(weakref.ref(held))
        response = await post(client)
        try:
            await response.read_all(1)
        except UpstreamError as error:
            raise RuntimeError("the attempt failed") from error
        finally:
            response.abort()

    refs = []
    answers = [b"", b"rubbish\r\n", OK[:-2] + b"o", OK]

    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(answers[server.accepted % len(answers)])
        await writer.drain()

    async with RawServer(script) as server, upstream(server.url) as client:
        gc.collect()
        gc.disable()
        try:
            for _ in answers:
                with contextlib.suppress(RuntimeError):
                    await asyncio.create_task(attempt(client))
            await eventually(lambda: client.open == 0)
            await asyncio.sleep(0)
            assert [ref() for ref in refs] == [None] * len(answers)
        finally:
            gc.enable()


@on_each_loop
async def test_a_slow_reader_is_no_silent_worker():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        await writer.drain()
        await server.request(reader)

    options = {"timeouts": Timeouts(idle_s=0.1), "limits": Limits(buffer_bytes=10_000)}
    async with RawServer(script) as server, upstream(server.url, **options) as client:
        response = await post(client)
        await response.head()
        await asyncio.sleep(0.4)
        assert len(await response.read_all(3_000_000)) == 3_000_000


@on_each_loop
async def test_a_slow_reader_stops_the_server_in_bounded_memory():
    total = 50_000_000
    sent = 0

    async def script(server, reader, writer):
        nonlocal sent
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 100_000)
            sent += 100_000
            await writer.drain()
        await server.request(reader)

    async with RawServer(script) as server, upstream(server.url) as client:
        response = await post(client)
        await response.head()
        await asyncio.sleep(0.2)
        before = sent
        await asyncio.sleep(0.1)
        assert sent == before < total, "the server is stopped by the window, not by us reading along"
        received = 0
        while piece := await response.read():
            assert len(piece) <= client.limits.buffer_bytes + 256 * 1024
            received += len(piece)
        assert received == total
        assert client.idle == 1


@on_each_loop
async def test_abort_closes_the_servers_side_at_once():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(CHUNKED + b"1\r\nx\r\n")
        assert await reader.read() == b""
        server.client_left.set()

    async with RawServer(script) as server, upstream(server.url) as client:
        response = await post(client)
        assert await response.read() == b"x"
        waiting = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        response.abort()
        with pytest.raises(ResponseAborted):
            await waiting
        await asyncio.wait_for(server.client_left.wait(), 2)
        await eventually(lambda: client.open == 0)


@on_each_loop
async def test_a_cancelled_reader_may_come_back_or_abort():
    async with RawServer(silent) as server, upstream(server.url) as client:
        response = await post(client)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response.head(), 0.02)
        response.abort()
        await eventually(lambda: client.open == 0)
        with pytest.raises(ResponseAborted):
            await response.head()


@on_each_loop
async def test_a_second_reader_is_refused():
    async with RawServer(silent) as server, upstream(server.url) as client:
        response = await post(client)
        first = asyncio.create_task(response.head())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await response.head()
        response.abort()
        await asyncio.gather(first, return_exceptions=True)


@on_each_loop
async def test_a_response_before_the_request_was_written_is_delivered_and_the_connection_closed():
    async def script(server, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
        await server.release.wait()

    async with RawServer(script) as server, upstream(server.url) as client:
        assert await fetch(client, body=b"x" * 20_000_000) == (413, b"no")
        assert client.idle == 0
        await eventually(lambda: client.open == 0)


@on_each_loop
async def test_a_reset_in_mid_body_is_a_lost_connection():
    async def script(server, reader, writer):
        await server.request(reader)
        writer.write(CHUNKED + b"3\r\nabc\r\n")
        await server.release.wait()
        reset(writer)

    async with RawServer(script) as server, upstream(server.url) as client:
        response = await post(client)
        assert await response.read() == b"abc"
        server.release.set()
        with pytest.raises(ConnectionLost):
            await response.read()
        assert response.status == 200


@on_each_loop
async def test_a_refused_connection_is_an_error_that_sent_nothing():
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unbound.getsockname()[1]}"
        async with upstream(url) as client:
            with pytest.raises(ConnectFailed, match=f"{url}: cannot connect: ") as failure:
                await post(client)
            assert failure.value.before_first_byte


@on_each_loop
async def test_a_failed_attempt_gives_its_place_to_who_waits():
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unbound.getsockname()[1]}"
        async with upstream(url, limits=Limits(max_connections=1), timeouts=Timeouts(connect_s=3)) as client:
            ends = await asyncio.gather(*(post(client) for _ in range(3)), return_exceptions=True)
            assert [type(end) for end in ends] == [ConnectFailed] * 3


@on_each_loop
async def test_an_unknown_name_is_a_failed_connection():
    async with upstream("http://no-such-host.invalid:1") as client:
        with pytest.raises(ConnectFailed):
            await post(client)


@on_each_loop
async def test_a_connection_that_is_not_made_in_time_is_given_up():
    with socket.socket() as full:  # a backlog of one that is not accepted from: further SYNs are dropped
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as blockers:
            for _ in range(4):
                blocker = blockers.enter_context(socket.socket())
                blocker.setblocking(False)
                blocker.connect_ex(address)
            url = f"http://127.0.0.1:{address[1]}"
            async with upstream(url, timeouts=Timeouts(connect_s=0.1)) as client:
                started = time.monotonic()
                with pytest.raises(ConnectTimeout, match=r"no connection within 0.1 s"):
                    await post(client)
                assert time.monotonic() - started < 5


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
@on_each_loop
async def test_names_and_ipv6_addresses_are_reached():
    async with RawServer(answering(OK)) as server, upstream(f"http://localhost:{server.port}") as client:
        assert await fetch(client) == (200, b"ok")
    async with RawServer(answering(OK), host="::1") as server, upstream(server.url) as client:
        assert await fetch(client) == (200, b"ok")
    assert f"host: [::1]:{server.port}\r\n".encode() in server.requests[0]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_tls(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@on_each_loop
async def test_tls_is_verified_against_the_host_name_and_reused(authority):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000
    async with RawServer(answering(large), tls=server_tls(authority, "127.0.0.1")) as server:
        async with upstream(server.url, tls=trusting) as client:
            for _ in range(2):
                assert await fetch(client, body=b"y" * 200_000) == (200, b"x" * 1_000_000)
            assert server.accepted == 1
        async with upstream(server.url.replace("127.0.0.1", "localhost"), tls=trusting) as client:
            with pytest.raises(ConnectFailed, match=r"(?i)verif|mismatch|match"):
                await post(client)
        async with upstream(server.url) as client:
            with pytest.raises(ConnectFailed, match=r"(?i)verif"):
                await post(client)


@on_each_loop
async def test_a_worker_at_an_address_is_verified_and_asked_by_its_name_and_sees_our_certificate(
    authority, tmp_path
):
    mutual = server_tls(authority, "worker.example")
    mutual.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(mutual)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("gateway.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    ours = context_of(TlsFiles.read(tmp_path / "ca.pem", tmp_path / "both.pem"))
    without = context_of(TlsFiles.read(tmp_path / "ca.pem"))
    async with RawServer(answering(OK), tls=mutual) as server:
        async with upstream(server.url, tls=ours, host_name="worker.example") as client:
            assert await fetch(client) == (200, b"ok")
            assert b"\r\nhost: worker.example:%d\r\n" % server.port in server.requests[0]
        async with upstream(server.url, tls=ours, host_name="another.example") as client:
            with pytest.raises(ConnectFailed, match=r"(?i)verif|mismatch|match"):
                await post(client)
        async with upstream(server.url, tls=without, host_name="worker.example") as client:
            with pytest.raises((ConnectFailed, ConnectionLost)):
                await fetch(client)
    assert len(server.requests) == 1


@on_each_loop
async def test_tls_to_a_server_that_speaks_none_is_a_failed_connection():
    async with RawServer(answering(OK)) as server:
        client = Upstream(server.url.replace("http:", "https:"), timeouts=Timeouts(connect_s=0.2))
        with pytest.raises((ConnectFailed, ConnectTimeout)):
            await post(client)
        await client.aclose()


@on_each_loop
async def test_aclose_ends_what_is_under_way_and_what_waits():
    async with RawServer(silent) as server:
        client = Upstream(server.url, limits=Limits(max_connections=1))
        response = await post(client)
        head = asyncio.create_task(response.head())
        waiting = asyncio.create_task(post(client))
        await eventually(lambda: client._waiting)
        await client.aclose()
        assert client.open == 0
        with pytest.raises(ResponseAborted, match="pool was closed"):
            await head
        with pytest.raises(ConnectFailed, match="pool is closed"):
            await waiting
        with pytest.raises(ConnectFailed, match="pool is closed"):
            await post(client)
        await client.aclose()


@on_each_loop
async def test_a_connection_that_opens_after_aclose_is_closed_again():
    async with RawServer(answering(OK)) as server:
        client = Upstream(server.url)
        opening = asyncio.create_task(post(client))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(ConnectFailed, match="pool is closed"):
            await opening
        await eventually(lambda: client.open == 0)


@on_each_loop
async def test_a_hundred_exchanges_that_end_in_every_way_leave_nothing_behind():
    answers = [
        OK,
        CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        b"rubbish",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        OK + b"surplus",
        b"",
    ]

    async def script(server, reader, writer):
        while True:
            await server.request(reader)
            answer = answers[len(server.requests) % len(answers)]
            writer.write(answer)
            if answer not in answers[:2]:
                await writer.drain()
                return

    async def one(client, number):
        response = await post(client)
        reading = asyncio.create_task(response.read_all(1000))
        if number % 5 == 0:
            await asyncio.sleep(0.001 * (number % 3))
            reading.cancel()
        await asyncio.wait([reading])
        response.abort()
        return reading

    limits = Limits(max_connections=7)
    async with RawServer(script) as server, upstream(server.url, limits=limits) as client:
        done = await asyncio.gather(*(one(client, number) for number in range(100)))
        failures = {type(t.exception()) for t in done if not t.cancelled() and t.exception() is not None}
        assert failures == {ConnectionLost, ProtocolError}
        await eventually(lambda: client.open == client.idle)
        assert client._dialing == 0
        assert not client._waiting


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "http://", "http://h?x", "http://u:p@h", "http://h:99999"])
def test_what_is_no_servers_url_is_refused(url):
    with pytest.raises(ValueError):
        Upstream(url)


async def test_other_timeouts_hold_for_requests_to_come_and_take_nothing_from_those_under_way():
    client = Upstream("http://127.0.0.1:9", timeouts=Timeouts(first_byte_s=4.0))
    tick_s = client._tick_s
    client.set_timeouts(Timeouts(first_byte_s=100.0))
    assert client.timeouts.first_byte_s == 100.0
    assert client._tick_s == tick_s, "ticks that were counted for a request do not become longer"
    assert client._patience().first_byte * tick_s == 100.0
    client.set_timeouts(Timeouts(first_byte_s=0.4))
    assert client._tick_s < tick_s
    assert client._patience().first_byte * client._tick_s == pytest.approx(0.4)
