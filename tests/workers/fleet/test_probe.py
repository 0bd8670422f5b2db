"""Control requests against listeners that say exactly what the test wrote."""

import asyncio
import contextlib
import errno
import socket
import ssl

import httpx
import pytest
import trustme

from workers.fleet import probe
from workers.fleet.probe import (
    Models,
    ProbeError,
    check_health,
    fetch_metrics,
    fetch_models,
    fetch_version,
    open_client,
    read_models,
)
from workers.fleet.worker import WorkerSpec

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def answer(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


@contextlib.asynccontextmanager
async def listener(reply, tls=None):
    """Serve `reply` to every connection (None: silence; a function: what it does) and keep the heads."""
    heads, exchanges = [], set()

    async def serve(reader, writer):
        exchanges.add(asyncio.current_task())
        try:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if callable(reply):
                await reply(writer)
            elif reply is None:
                await reader.read()
            else:
                writer.write(reply)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        await server.wait_closed()
        for exchange in exchanges:
            exchange.cancel()
        await asyncio.gather(*exchanges, return_exceptions=True)


async def ask(url, verb=check_health, tls=None, timeout_s=1.0, **spec):
    async with open_client(tls) as client:
        extra = (7.0,) if verb is fetch_metrics else ()
        return await verb(client, WorkerSpec(url, **spec), timeout_s, *extra)


async def reason(url, verb=check_health, **how):
    with pytest.raises(ProbeError) as caught:
        await ask(url, verb, **how)
    return caught.value


async def test_a_healthy_server_answers_200_and_sees_the_key():
    async with listener(OK) as (url, heads):
        await ask(url + "/prefix", api_key="secret")
        await ask(url)
    assert heads[0].startswith("GET /prefix/health HTTP/1.1\r\n")
    assert "authorization: bearer secret" in heads[0].lower()
    assert "authorization" not in heads[1].lower()


async def test_a_status_other_than_200_is_the_reason():
    for status in ("503 Service Unavailable", "404 Not Found", "307 Temporary Redirect"):
        async with listener(answer("", status)) as (url, _):
            assert str(await reason(url)) == f"HTTP {status[:3]}"


async def test_nobody_listening_is_a_refused_connection():
    async with listener(OK) as (url, _):
        pass
    error = await reason(url)
    assert str(error) == "connection refused"
    assert error.connect
    assert not error.ours


async def test_silence_ends_at_the_deadline():
    async with listener(None) as (url, _):
        error = await reason(url, timeout_s=0.1)
    assert str(error) == "no answer within 0.1 s"
    assert not error.connect


async def test_an_answer_that_drips_for_ever_ends_at_the_deadline():
    async def drip(writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with listener(drip) as (url, _):
        assert str(await reason(url, timeout_s=0.1)) == "no answer within 0.1 s"


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(probe, "MAX_ANSWER_BYTES", 1 << 20)
    async with listener(answer("x" * (2 << 20))) as (url, _):
        assert str(await reason(url, fetch_models)) == "/v1/models is larger than 1 MiB"


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-le"])
async def test_what_is_no_http_says_so(reply):
    async with listener(reply) as (url, _):
        assert str(await reason(url)).startswith("no HTTP answer: ")


async def reason_of(cause):
    """The reason given when a connection fails for `cause`."""

    def fail(_request):
        raise httpx.ConnectError("All connection attempts failed") from cause

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as client:
        with pytest.raises(ProbeError) as caught:
            await check_health(client, WorkerSpec("http://w"), 1.0)
    return caught.value


async def test_every_address_of_a_name_that_refuses_is_a_refused_connection():
    refusals = [OSError(errno.ECONNREFUSED, "x"), OSError(errno.ECONNREFUSED, "x")]
    error = await reason_of(ExceptionGroup("several addresses", refusals))
    assert (str(error), error.connect) == ("connection refused", True)


async def test_a_name_that_does_not_resolve_says_so():
    error = await reason_of(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert str(error) == "host name does not resolve: Name or service not known"
    assert not error.connect


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_limits_of_this_machine_are_not_the_workers_fault(number):
    error = await reason_of(OSError(number, "x"))
    assert error.ours
    assert not error.connect


async def test_tls_is_verified_with_the_given_roots_and_the_reason_names_it():
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_side)
    async with listener(OK, tls=server_side) as (url, _):
        await ask(url, tls=client_side)
        assert str(await reason(url)).startswith("TLS: ")


async def test_a_control_connection_is_not_kept():
    async def answer_and_stay(writer):
        writer.write(OK)
        await asyncio.sleep(60)

    async with listener(answer_and_stay) as (url, heads), open_client() as client:
        for _ in range(3):
            await check_health(client, WorkerSpec(url), 1.0)
        assert len(heads) == 3
        assert client._transport._pool.connections == []


async def test_the_version_is_read():
    async with listener(answer('{"version":"0.32.0"}')) as (url, _):
        assert await ask(url, fetch_version) == "0.32.0"
    async with listener(answer("[]")) as (url, _):
        assert str(await reason(url, fetch_version)) == "/version names no version"


async def test_the_models_are_read():
    body = '{"object":"list","data":[{"id":"tiny","root":"/m","parent":null,"max_model_len":1024}]}'
    async with listener(answer(body)) as (url, _):
        assert await ask(url, fetch_models) == Models("tiny", max_model_len=1024, roots={"tiny": "/m"})
    async with listener(answer("<html>")) as (url, _):
        assert str(await reason(url, fetch_models)) == "/v1/models is not JSON"


async def test_the_metrics_are_read_and_dated():
    async with listener(answer('vllm:num_requests_running{engine="0"} 2.0\n')) as (url, _):
        (scrape,) = (await ask(url, fetch_metrics)).values()
    assert (scrape.at, scrape.running) == (7.0, 2)
    async with listener(answer("<html>")) as (url, _):
        assert "/metrics: the answer is not a Prometheus" in str(await reason(url, fetch_metrics))


def test_base_aliases_and_adapters_are_told_apart():
    models = read_models(
        {
            "data": [
                {"id": "tiny", "root": "/models/tiny", "parent": None, "max_model_len": 2048},
                {"id": "tiny-alias", "root": "/models/tiny", "parent": None, "max_model_len": 2048},
                {"id": "sql", "root": "/lora/sql", "parent": "tiny", "max_model_len": None},
                {"id": "other", "root": "/models/other", "parent": None},
                {"id": "of-other", "root": "/lora/x", "parent": "other"},
                {"no": "id"},
                "garbage",
            ]
        }
    )
    roots = {"tiny": "/models/tiny", "tiny-alias": "/models/tiny", "sql": "/lora/sql"}
    assert models == Models("tiny", ("tiny-alias",), ("sql",), 2048, roots)
    assert models.bases == ("tiny", "tiny-alias")


@pytest.mark.parametrize("length", ["2048", -1, 0, True, 1.5, None])
def test_a_length_that_is_no_count_of_tokens_is_not_believed(length):
    assert read_models({"data": [{"id": "tiny", "root": "/m", "max_model_len": length}]}).max_model_len is None


def test_names_and_roots_that_are_no_short_texts_are_left_out():
    entries = [
        {"id": "tiny", "root": ["/m"]},
        {"id": "x" * 5_000_000, "root": ["/m"]},
        {"id": "", "root": ["/m"]},
        {"id": "sql", "parent": "tiny", "root": "/" * 5_000_000},
        {"id": "odd", "parent": {"tiny": 1}, "root": "/o"},
    ]
    assert read_models({"data": entries}) == Models("tiny", (), ("sql",))


@pytest.mark.parametrize("wrong", [None, [], {}, {"data": None}, {"data": []}, {"data": [{"id": 3}]}])
def test_a_list_without_models_is_one_clear_error(wrong):
    with pytest.raises(ProbeError, match="lists no model"):
        read_models(wrong)
