"""Who sees which page: the admin API, the list of models, and what names workers and clients."""

import asyncio
import json

import httpx
import pytest
from gateway_under_test import (
    MODEL,
    raw_client,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

from router import app
from router.config.schema import Config

ADMIN = {"admin": {"key": "an-admin-key-of-this-test"}}
OPERATOR = {"authorization": "Bearer an-admin-key-of-this-test"}
CLIENTS = [{"name": "secret-team", "keys": ["a-key-of-a-client"]}]
CLIENT = {"authorization": "Bearer a-key-of-a-client"}
WRONG = {"authorization": "Bearer wrong"}
PROMETHEUS = {"key": "a-key-of-prometheus"}
STATUS = ("/metrics", "/version", "/ready")


# -- the admin API


@pytest.mark.parametrize("own_port", [False, True])
async def test_no_page_of_the_operator_is_seen_without_the_key(own_port):
    admin = {**ADMIN["admin"], **({"port": 0} if own_port else {})}
    async with running_fleet(1, admin=admin) as fleet:
        base = fleet.gateway.admin_url if own_port else f"{fleet.gateway.url}/admin"
        async with httpx.AsyncClient(base_url=base) as http:
            for path in ("/workers", "/decisions", "/docs", "/redoc", "/openapi.json", "/no/such/page"):
                for headers in ({}, WRONG, {"authorization": "an-admin-key-of-this-test"}):
                    for method in ("GET", "POST", "DELETE", "OPTIONS"):
                        answer = await http.request(method, path, headers=headers)
                        assert answer.status_code == 401, (method, path)
                        assert answer.json()["error"]["type"] == "AuthenticationError"
            for path in ("/workers", "/docs", "/openapi.json"):
                assert (await http.get(path, headers=OPERATOR)).status_code == 200


async def test_the_key_is_looked_at_before_any_byte_of_the_body():
    async with running_fleet(1, **ADMIN) as fleet, raw_client(fleet.gateway.port) as client:
        await client.send(b"POST /admin/workers HTTP/1.1\r\nhost: g\r\ncontent-length: 300000000\r\n\r\n")
        assert (await client.answer()).status == 401  # although nothing of the body has come


async def test_a_request_whose_client_leaves_before_all_of_it_has_come_does_nothing():
    async with running_fleet(1, **ADMIN) as fleet:
        body = json.dumps({"url": "http://127.0.0.1:9"}).encode()
        key = OPERATOR["authorization"].encode()
        head = (
            b"POST /admin/workers HTTP/1.1\r\nhost: g\r\nauthorization: %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        async with raw_client(fleet.gateway.port) as client:
            await client.send(head % (key, len(body) + 1) + body)
            await asyncio.sleep(0.2)  # it has been read by then
        for _ in range(20):  # each answer is made after what came before it
            rows = (await fleet.http.get("/admin/workers", headers=OPERATOR)).json()["workers"]
            assert [row["url"] for row in rows] == [fleet.workers[0].url]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "workers"), ("POST", "workers/drain?url=x"), ("DELETE", "workers?url=x"), ("GET", "decisions")],
)
async def test_bodies_are_bounded_on_every_page_of_the_operator(method, path):
    async with running_fleet(1, **ADMIN) as fleet:
        head = f"{method} /admin/{path} HTTP/1.1\r\nhost: g\r\nauthorization: {OPERATOR['authorization']}\r\n"
        async with raw_client(fleet.gateway.port) as client:
            await client.send(f"{head}content-length: 300000000\r\n\r\n".encode())
            assert (await client.answer()).status == 413
        async with raw_client(fleet.gateway.port) as client:
            await client.send(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(20):
                await client.send(b"%x\r\n%s\r\n" % (8192, b"x" * 8192))
            assert (await client.answer()).status == 413


async def test_a_worker_that_is_added_names_neither_files_nor_variables(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    monkeypatch.setenv("THE_SECRET", "the-secret")
    heard = []

    async def hear(reader, writer):
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with running_fleet(1, **ADMIN) as fleet:

            async def add(**worker):
                return await fleet.http.post("/admin/workers", json=worker, headers=OPERATOR)

            for reference in (f"file:{secret}", "env:THE_SECRET", "env:HOME", "file:/etc/passwd", "env:NO_SUCH"):
                answer = await add(url=url, api_key=reference)
                assert answer.status_code == 400, reference
                assert "for the configuration" in answer.text
                assert "the-secret" not in answer.text
            for name in ("tls_authorities", "tls_certificate", "tls_key"):
                for path in (str(secret), "/no/such/file"):
                    answer = await add(url="https://127.0.0.1:1", **{name: path})
                    assert (answer.status_code, "for the configuration" in answer.text) == (400, True), answer.text
            assert heard == []
            assert (await add(url=url, api_key="itself")).status_code == 201
            await until(lambda: heard)
            assert all(b"the-secret" not in head for head in heard)
    finally:
        server.close()


# -- the list of models, and what names workers and clients


async def test_where_clients_need_keys_the_models_are_for_them_only():
    async with running_fleet(1, clients=CLIENTS) as fleet:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/models/none"):
            for headers in ({}, WRONG, {"x-api-key": "wrong"}, {"authorization": "Basic YTpi"}):
                answer = await fleet.http.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert MODEL not in answer.text
        assert (await fleet.http.get("/v1/models", headers=CLIENT)).json()["data"][0]["id"] == MODEL
        assert (await fleet.http.get("/v1/models", headers={"x-api-key": "a-key-of-a-client"})).status_code == 200
        assert (await fleet.http.get("/v1/models/none", headers=CLIENT)).status_code == 404


def names(fleet, answer):
    return fleet.workers[0].url in answer.text or "secret-team" in answer.text


async def test_where_clients_need_keys_no_page_names_workers_or_clients_to_strangers():
    async with running_fleet(1, clients=CLIENTS, **ADMIN) as fleet:
        await fleet.http.post(
            "/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 2}, headers=CLIENT
        )
        await fleet.at_rest()
        for headers in ({}, WRONG, CLIENT):
            for path, statuses in zip(STATUS, [(401,), (200,), (200, 503)], strict=True):
                answer = await fleet.http.get(path, headers=headers)
                assert answer.status_code in statuses, path
                assert not names(fleet, answer), path
        page = await fleet.http.get("/metrics", headers=OPERATOR)
        assert page.status_code == 200
        assert fleet.workers[0].url in page.text
        assert "secret-team" in page.text
        assert names(fleet, await fleet.http.get("/version", headers=OPERATOR))
        await fleet.workers[0].stop()
        await until(fleet.gateway.gateway.not_ready)
        answer = await fleet.http.get("/ready")
        assert answer.json() == {"ready": False}
        assert names(fleet, await fleet.http.get("/ready", headers=OPERATOR))


@pytest.mark.parametrize(
    ("settings", "headers", "seen"),
    [
        ({"clients": CLIENTS, "status": {"access": "open"}}, {}, True),
        ({"clients": CLIENTS, "status": PROMETHEUS}, {}, False),
        ({"clients": CLIENTS, "status": PROMETHEUS}, {"authorization": f"Bearer {PROMETHEUS['key']}"}, True),
        ({"status": {"access": "key"}}, {}, False),
        ({"status": {"access": "key"}, **ADMIN}, OPERATOR, True),
        ({}, {}, True),
    ],
)
async def test_who_sees_them_is_a_setting(settings, headers, seen):
    async with running_fleet(1, **settings) as fleet:
        answer = await fleet.http.get("/metrics", headers=headers)
        assert answer.status_code == (200 if seen else 401)
        assert names(fleet, await fleet.http.get("/version", headers=headers)) is seen


async def test_the_status_pages_may_have_a_listener_of_their_own():
    async with running_fleet(1, clients=CLIENTS, status={"port": 0}) as fleet:
        # The address of the second listener.
        async with httpx.AsyncClient(base_url=fleet.gateway.admin_url) as http:
            for path in STATUS:
                assert (await http.get(path)).status_code in (200, 503)  # /ready, where the machine is busy
            assert names(fleet, await http.get("/metrics"))
            assert (await http.get("/health")).status_code == 200
            for path in ("/v1/models", "/docs", "/admin/workers", "/v1/completions"):
                assert (await http.get(path)).status_code == 404
        assert (await fleet.http.get("/metrics")).status_code == 401


# -- wrong keys


async def test_an_address_that_guesses_keys_has_to_wait():
    limits = {"wrong_keys_per_minute": 1}

    async def answer(_asked, writer):
        writer.write(whole_answer(b"{}"))

    async with (
        scripted_worker(answer) as worker,
        running_gateway(
            [worker.url], clients=[*CLIENTS, {"name": "b", "keys": ["key-b"]}], limits=limits, **ADMIN
        ) as gateway,
    ):

        async def ask(key, path="/v1/completions"):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return await gateway.http.post(path, json={"model": MODEL, "prompt": "x"}, headers=headers)

        assert (await ask("a-key-of-a-client")).status_code == 200
        for _ in range(20):
            assert (await ask(None)).status_code == 401  # no key is no guess
        assert (await ask("guess-1")).status_code == 401
        late = await ask("guess-2")
        assert late.status_code == 429
        assert 1 <= int(late.headers["retry-after"]) <= 60
        assert (await ask("key-b")).status_code == 429  # whether it is right is not said
        assert (await ask("a-key-of-a-client")).status_code == 200  # was right before
        for path in ("/v1/models", "/metrics", "/admin/workers"):
            assert (await gateway.http.get(path, headers={"authorization": "Bearer guess"})).status_code == 429
        assert (await gateway.http.get("/admin/workers", headers=OPERATOR)).status_code == 429
        assert len(worker.bodies) == 2
        await gateway.at_rest()


async def test_a_clients_key_on_a_page_that_hides_names_is_no_guess():
    async with running_fleet(1, clients=CLIENTS, limits={"wrong_keys_per_minute": 1}, **ADMIN) as fleet:
        http = fleet.gateway.http
        for _ in range(3):
            for path in STATUS:
                answer = await http.get(path, headers=CLIENT)
                assert answer.status_code == (401 if path == "/metrics" else 200)
        assert (await http.get("/admin/workers", headers=OPERATOR)).status_code == 200  # it did not have to wait
        for path in ("/metrics", "/v1/models"):
            assert (await http.get(path, headers=WRONG)).status_code == (401 if path == "/metrics" else 429)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example.org"])
def test_an_open_gateway_that_others_can_reach_says_so(host, caplog):
    app.warn_of_exposure(config(listen={"host": host}))
    assert f"serve --host {host}" in caplog.text
    assert "without API keys" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"listen": {"host": "127.0.0.9"}},
        {"listen": {"host": "::1"}},
        {"listen": {"host": "localhost"}},
        {"listen": {"host": "0.0.0.0"}, "clients": CLIENTS},
    ],
)
def test_one_that_others_cannot_reach_or_that_asks_for_keys_does_not(settings, caplog):
    app.warn_of_exposure(config(**settings))
    assert caplog.text == ""


def config(**sections):
    return Config.load(env={}, overrides=sections)


def test_short_keys_are_named_without_being_repeated(tmp_path):
    (tmp_path / "k").write_text("z")
    keys = ["q7", "a-key-of-a-client", f"file:{tmp_path / 'k'}"]
    noted = config(clients=[{"name": "team", "keys": keys}], admin={"key": "w5"}, status={"key": "w6"}).notes
    assert [note.partition(":")[0] for note in noted] == [
        "a key of client team has 2 characters",
        "a key of client team has 1 characters",
        "a key of the operator has 2 characters",
        "a key of the operator has 2 characters",
    ]
    assert not any(key in json.dumps(noted) for key in ("q7", "w5", "w6"))
