"""`fairlead demo` as a person meets it: real processes, a terminal's signals, and a crowd."""

import asyncio
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
from urllib.parse import urlsplit

import httpx
import pytest
from child import alive, fairlead
from gateway_under_test import post, series, until

TEXT = "/v1/completions"
STREAMS = 2000


def asked(**more):
    return {"prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True, "stream": True, **more}


async def open_stream(url):
    """A stream that would go on for minutes, once its first bytes are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    writer.write(post(TEXT, asked(max_tokens=100_000)))
    await reader.readuntil(b"data: ")
    return reader, writer


async def test_the_demo_says_where_it_is_answers_its_own_curl_line_and_ends_on_sigterm(tmp_path):
    async with fairlead(tmp_path, "demo", "--port", "0", "--workers", "5", "--speed", "10") as child:
        url = await child.ready()
        assert (await asyncio.to_thread(httpx.get, f"{url}/ready")).status_code == 200
        [curl] = [line for line in child.printed if line.startswith("curl ")]
        assert any(url in line and "/docs" in line for line in child.printed)
        versions = (await asyncio.to_thread(httpx.get, f"{url}/version")).json()
        assert len(versions["workers"]) == 5
        if shutil.which("curl"):
            ran = await asyncio.to_thread(
                subprocess.run, curl, shell=True, capture_output=True, timeout=20, check=True
            )
            assert json.loads(ran.stdout)["choices"][0]["message"]["content"]
        pids = child.children()
        reader, writer = await open_stream(url)
        child.signal(signal.SIGTERM)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert await child.ended(5) == 0
        writer.close()
        assert b"shutting down" in rest
        assert pids
        assert not any(alive(pid) for pid in pids)
        assert "Traceback" not in child.log()


async def test_no_worker_outlives_a_demo_that_is_killed(tmp_path):
    async with fairlead(tmp_path, "demo", "--port", "0") as child:
        await child.ready()
        pids = child.children()
        assert pids
        child.signal(signal.SIGKILL)
        await child.ended(5)
        await until(lambda: not any(alive(pid) for pid in pids), within_s=5)


async def test_a_demo_that_is_interrupted_while_it_starts_leaves_nothing(tmp_path):
    async with fairlead(tmp_path, "demo", "--port", "0") as child:
        assert b"starting" in await asyncio.wait_for(child.process.stdout.readline(), 10)
        await until(child.children)
        pids = child.children()
        child.signal(signal.SIGINT)
        assert await child.ended(5) == 0
        assert not any(alive(pid) for pid in pids)
        assert "Traceback" not in child.log()


async def test_a_taken_port_is_one_message(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with fairlead(tmp_path, "demo", "--port", str(port)) as child:
            assert await child.ended(10) == 1
            assert child.log().strip() == (
                f"fairlead: port {port} on 127.0.0.1 is already taken; choose another one with --port"
            )


class Stream(asyncio.Protocol):
    """One streaming client; cheap, because there are thousands."""

    open = 0

    def __init__(self, body):
        self.body = body
        self.tail = b""
        self.events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.body)

    def data_received(self, data):
        if not self.tail:
            Stream.open += 1
            if not data.startswith(b"HTTP/1.1 200"):
                self.ended.set_exception(AssertionError(data[:300]))
        self.events += data.count(b"data: {")
        if b'"error"' in data and not self.ended.done():
            self.ended.set_exception(AssertionError(data))
        self.tail = (self.tail + data)[-30:]
        if self.tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(self.events)
            Stream.open -= 1
            self.transport.close()

    def connection_lost(self, error):
        if not self.ended.done():
            self.ended.set_exception(AssertionError(f"cut off after {self.tail!r}: {error}"))


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * STREAMS:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_two_thousand_streams_are_open_at_once_without_an_error(tmp_path, many_files):
    """Each stalls behind its first token until all of them are there."""
    loop = asyncio.get_running_loop()
    async with (
        fairlead(tmp_path, "demo", "--port", "0") as child,
        httpx.AsyncClient(base_url=await child.ready(), verify=False, timeout=30) as http,
    ):
        workers = list((await http.get("/version")).json()["workers"])
        for worker in workers:
            await http.post(f"{worker}/simulator/fault", json={"kind": "hang", "after_tokens": 1})
        clients = []
        for number in range(STREAMS):
            body = post(TEXT, asked(prompt=f"Story {number}", max_tokens=60))
            connect = loop.create_connection(
                lambda body=body: Stream(body), http.base_url.host, http.base_url.port
            )
            clients.append((await connect)[1])
        await until(lambda: Stream.open == STREAMS, lambda: f"{Stream.open} open", within_s=60)
        page = (await http.get("/metrics")).text
        assert series(page, "fairlead_open_requests") == [({}, STREAMS)]
        for worker in workers:
            await http.delete(f"{worker}/simulator/fault")
        events = await asyncio.wait_for(asyncio.gather(*(client.ended for client in clients)), 60)
        assert min(events) >= 2
        page = (await http.get("/metrics")).text
        outcomes = {row["outcome"]: count for row, count in series(page, "fairlead_requests_total") if count}
        assert outcomes == {"completed": STREAMS}
        for gauge in ("open_requests", "queue_depth", "worker_requests", "worker_prefill_owed_tokens"):
            assert {value for _, value in series(page, f"fairlead_{gauge}")} == {0.0}
        assert {value for _, value in series(page, "fairlead_worker_kv_reserved_tokens")} == {0.0}
        tokens = {row["kind"]: count for row, count in series(page, "fairlead_tokens_total") if count}
        assert tokens["output"] == 60 * STREAMS
        await open_and_interrupt(child, str(http.base_url))


async def open_and_interrupt(child, url):
    """Ctrl-C with a stream open, behind the crowd."""
    pids = child.children()
    _, writer = await open_stream(url)
    child.signal(signal.SIGINT)
    assert await child.ended(5) == 0
    writer.close()
    assert not any(alive(pid) for pid in pids)
    assert not re.search("Traceback|Too many open files", child.log())
