"""What an operator does while traffic runs: workers come and go, files are read again, processes end."""

import asyncio
import json
import os
import resource
import signal
import socket
import ssl
from contextlib import suppress

import httpx
import pytest
import trustme
from child import fairlead
from gateway_under_test import (
    MODEL,
    STREAM_HEAD,
    post,
    raw_client,
    running_fleet,
    running_gateway,
    scripted_worker,
    series,
    until,
)

from benchmarks.fleet.ports import free_port
from policies.fleet import fleet as roster
from policies.fleet import worker as load
from router.edge import process_limits
from workers.simulator.faults import Fault
from workers.simulator.server import SimulatorConfig, simulated_worker

TEXT = "/v1/completions"
SHORT = {"model": MODEL, "prompt": "x", "max_tokens": 4, "ignore_eos": True}
STREAM = {**SHORT, "max_tokens": 120, "stream": True}
SLOW = {"speed": 0.02}
ADMIN_KEY = "admin-key-0123456789"
OPERATOR = {"authorization": f"Bearer {ADMIN_KEY}"}
IN_TURN = {"placement": "round_robin"}


@pytest.fixture
def as_admin():
    return {"key": ADMIN_KEY}


def begin(http, **more):
    """A stream under way: a task that ends with its text."""

    async def stream():
        async with http.stream("POST", TEXT, json={**STREAM, **more}) as answer:
            assert answer.status_code == 200
            return "".join([text async for text in answer.aiter_text()])

    return asyncio.create_task(stream())


def is_whole(text):
    return text.endswith("data: [DONE]\n\n") and '"error"' not in text and '"finish_reason":"length"' in text


async def answers(http, path):
    """Wait until the gateway is up and answers with 200."""
    for _ in range(2000):
        with suppress(httpx.TransportError):
            if (await http.get(path)).status_code == 200:
                return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} is not 200")


def fleet_running(fleet, *others):
    return fleet.running + sum(worker.engine.running for worker in others)


def states(fleet):
    return {m.worker.spec.url: m.worker.state.value for m in fleet.gateway.gateway.pools.members.values()}


# -- the admin API


async def test_the_admin_api_is_off_unless_configured_and_then_asks_for_its_key(as_admin):
    async with running_fleet(1) as fleet:
        assert (await fleet.http.get("/admin/workers", headers=OPERATOR)).status_code == 404
    async with running_fleet(1, admin=as_admin) as fleet:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ADMIN_KEY}):
            for method, path in (("GET", "/admin/workers"), ("POST", "/admin/workers/drain?url=x")):
                answer = await fleet.http.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["type"] == "AuthenticationError"
        answer = await fleet.http.get("/admin/workers", headers=OPERATOR)
        assert [row["url"] for row in answer.json()["workers"]] == [fleet.workers[0].url]


async def test_the_admin_api_may_have_a_port_of_its_own(as_admin):
    async with (
        running_fleet(1, admin={**as_admin, "port": 0}) as fleet,
        httpx.AsyncClient(base_url=fleet.gateway.admin_url, verify=False) as operator,
    ):
        assert (await operator.get("/workers", headers=OPERATOR)).status_code == 200
        assert (await operator.get("/workers")).status_code == 401
        assert (await operator.post(TEXT, json=SHORT, headers=OPERATOR)).status_code == 404
        assert (await fleet.http.get("/admin/workers", headers=OPERATOR)).status_code == 404


async def test_what_the_operator_says_wrong_is_explained(as_admin):
    async with running_fleet(1, admin=as_admin) as fleet:
        url = fleet.workers[0].url
        for method, path, body, status, words in (
            ("POST", "", {"url": url}, 400, "already"),
            ("POST", "", {"url": "ftp://x"}, 400, "http"),
            ("POST", "", {"urll": url}, 400, "url"),
            ("POST", "", {}, 400, "url"),
            ("POST", "/drain?url=http://127.0.0.1:9", None, 404, "no server"),
            ("DELETE", "?url=http://127.0.0.1:9", None, 404, "no server"),
            ("POST", "/drain", None, 400, "url"),
        ):
            answer = await fleet.http.request(method, f"/admin/workers{path}", json=body, headers=OPERATOR)
            assert answer.status_code == status, answer.text
            assert words in answer.json()["error"]["message"]
        assert states(fleet) == {url: "up"}


async def test_a_worker_is_added_drained_undrained_and_removed_while_streams_run(as_admin):
    config = SimulatorConfig(model=MODEL, profile="instant", **SLOW)
    async with (
        running_fleet(1, SLOW, admin=as_admin, policies=IN_TURN) as fleet,
        simulated_worker(config) as added,
    ):
        first = fleet.workers[0]

        async def tell(method, path="", url=added.url, body=None):
            query = {"url": url} if body is None else {}
            path = f"/admin/workers{path}"
            answer = await fleet.http.request(method, path, params=query, json=body, headers=OPERATOR)
            assert answer.is_success, answer.text

        async def asked(count=4):
            """The workers that the next requests go to."""
            both = (first, added)
            before = [worker.state()["started"] for worker in both]
            await asyncio.gather(*(fleet.http.post(TEXT, json=SHORT) for _ in range(count)))
            return {worker.url for worker, n in zip(both, before, strict=True) if worker.state()["started"] > n}

        await tell("POST", body={"url": added.url})
        members = fleet.gateway.gateway.pools.members
        await until(lambda: added.url in members and members[added.url].worker.routable)
        for worker in (first, added):  # no stream ends before it has been looked at
            worker.live.slow_down(20)
        streams = [begin(fleet.http, max_tokens=400) for _ in range(4)]
        await until(
            lambda: min(first.engine.running, added.engine.running) >= 1 and fleet_running(fleet, added) == 4
        )
        added.live.slow_down(1)

        await tell("POST", "/drain", first.url)
        assert states(fleet)[first.url] == "draining"
        assert await asked() == {added.url}
        assert first.engine.running >= 1
        await tell("POST", "/undrain", first.url)
        assert await asked() == {first.url, added.url}

        await tell("DELETE", url=first.url)
        assert await asked() == {added.url}
        assert first.url in states(fleet)  # until its streams have ended
        first.live.slow_down(1)
        assert all(is_whole(text) for text in await asyncio.gather(*streams))
        await until(lambda: first.url not in states(fleet))
        assert await asked() == {added.url}
        labels = {row["worker"] for row, _ in fleet.gateway.series("fairlead_worker_state")}
        assert labels == {added.url}
        await tell("DELETE")
        await until(lambda: not states(fleet))
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 503
        assert (await fleet.http.get("/ready")).status_code == 503
        assert fleet.gateway.outcomes() == {"completed": 4 + 16, "rejected": 1}
        await fleet.gateway.at_rest(added, first)


# -- `fairlead serve`


def write(path, workers, key=None, **more):
    clients = [{"name": "team", "keys": [key]}] if key else []
    path.write_text(json.dumps({"workers": workers, "clients": clients, "listen": {"port": 0}, **more}))


async def test_a_file_that_is_read_again_changes_workers_and_keys_and_breaks_no_stream(tmp_path):
    config = SimulatorConfig(model=MODEL, profile="instant", **SLOW)
    file = tmp_path / "fairlead.yaml"
    old, new = ({"authorization": f"Bearer {word}-key-0123456789"} for word in ("old", "new"))
    async with simulated_worker(config) as one, simulated_worker(config) as other:
        write(file, [one.url], "old-key-0123456789")
        async with fairlead(tmp_path, "serve", "--config", str(file)) as child:
            url = await child.ready()
            async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as http:
                http.headers.update(old)
                stream = begin(http, max_tokens=300)
                await until(lambda: one.engine.running == 1)

                write(file, [other.url], "new-key-0123456789")
                child.signal(signal.SIGHUP)
                await until(lambda: "configuration read" in child.log())
                assert (await http.post(TEXT, json=SHORT)).status_code == 401
                await until(lambda: other.app.received)
                started = one.state()["started"]
                for _ in range(200):  # the new worker has to be found healthy first
                    answer = await http.post(TEXT, json=SHORT, headers=new)
                    if answer.status_code == 200:
                        break
                    await asyncio.sleep(0.02)
                assert answer.status_code == 200
                assert other.state()["started"] == 1
                assert one.state()["started"] == started
                assert is_whole(await stream)

                file.write_text("workers: [http://127.0.0.1:1]\nlimitz: {}\n")
                child.signal(signal.SIGHUP)
                await until(lambda: "the old one stays" in child.log())
                assert "limitz" in child.log()
                for text in ("", "workers:\n", "clients: []\n"):
                    refused = child.log().count("the old one stays")
                    file.write_text(text)
                    child.signal(signal.SIGHUP)
                    await until(lambda: child.log().count("the old one stays") > refused)  # noqa: B023
                assert "names no workers" in child.log()
                assert (await http.post(TEXT, json=SHORT, headers=new)).status_code == 200
            child.signal(signal.SIGTERM)
            assert await child.ended(5) == 0


async def test_a_configuration_that_changes_while_it_starts_is_read_again_once_it_serves(tmp_path):
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        file = tmp_path / "f.yaml"
        os.mkfifo(file)  # the start waits here until the test has written the file
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            with await asyncio.to_thread(file.open, "w") as fifo:
                child.signal(signal.SIGHUP)
                file.unlink()
                write(file, [worker.url])
                fifo.write(file.read_text())
            await child.ready()
            await until(lambda: "configuration read" in child.log())
            child.signal(signal.SIGTERM)
            assert await child.ended(5) == 0


async def test_a_policy_that_wants_roles_which_the_fleet_has_not_says_so(tmp_path):
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        write(tmp_path / "f.yaml", [{"url": worker.url, "roles": ["prefill"]}])
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            assert "there are workers for prefill only, but none for decode" in child.log()
            async with httpx.AsyncClient(base_url=url, timeout=20) as http:
                assert (await http.post(TEXT, json=SHORT)).status_code == 200


async def test_a_worker_whose_health_is_good_and_from_which_nothing_comes_is_shown_as_stalled(monkeypatch):
    monkeypatch.setattr(load, "STALLED_S", 1.0)  # longer than a busy machine keeps the other one waiting
    monkeypatch.setattr(load, "_STALLED", 0.0)
    monkeypatch.setattr(roster, "STALLED_S", 1.0)
    async with running_fleet(2, policies=IN_TURN) as fleet:
        silent = fleet.workers[0]
        silent.set_fault(Fault("hang"))

        def stalled():
            rows = fleet.gateway.series("fairlead_worker_excluded")
            return {labels["worker"] for labels, value in rows if labels["reason"] == "stalled" and value}

        assert stalled() == set()
        streams = [begin(fleet.http, max_tokens=20) for _ in range(2)]
        await until(lambda: len(stalled()) == 1)
        (name,) = stalled()
        assert name.startswith(silent.url)
        for _ in range(4):  # what comes now goes to the other one
            assert is_whole(await begin(fleet.http, max_tokens=4))
        silent.clear_fault()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await until(lambda: not stalled())
        await fleet.at_rest()


@pytest.mark.parametrize(("hard", "warned"), [(1024, True), (65536, False), (resource.RLIM_INFINITY, False)])
def test_it_says_so_when_only_few_files_may_be_open(hard, warned, monkeypatch, caplog):
    taken = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: taken.append(limits))
    process_limits.raise_file_limit()
    assert taken == [(hard, hard)]
    assert ("only 1024 files may be open" in caplog.text) is warned


async def test_sigterm_lets_streams_finish_and_takes_nothing_new(tmp_path):
    config = SimulatorConfig(model=MODEL, profile="instant", **SLOW)
    async with simulated_worker(config) as worker:
        write(tmp_path / "f.yaml", [worker.url])
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as http:
                assert (await http.get("/ready")).status_code == 200
                stream = begin(http, max_tokens=300)
                await until(lambda: worker.engine.running == 1)
                child.signal(signal.SIGTERM)
                await until(lambda: "shutting down" in child.log())
                ready = await http.get("/ready")
                assert (ready.status_code, ready.json()["missing"]) == (503, ["the gateway is shutting down"])
                refused = await http.post(TEXT, json=SHORT)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert (await http.get("/health")).status_code == 200
                assert is_whole(await stream)
            assert await child.ended(3) == 0


async def test_for_a_while_after_sigterm_it_serves_on_and_says_goodbye_even_if_idle(tmp_path):
    config = SimulatorConfig(model=MODEL, profile="instant", **SLOW)
    async with simulated_worker(config) as worker:
        status = {"port": free_port()}
        write(tmp_path / "f.yaml", [worker.url], limits={"drain_delay_s": 3, "drain_s": 20}, status=status)
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as http:
                assert (await http.get("/readyz")).status_code == 200
                assert "connection" not in (await http.post(TEXT, json=SHORT)).headers
                child.signal(signal.SIGTERM)
                await until(lambda: "served for another 3 s" in child.log())
                for probe in ("/readyz", "/ready"):
                    assert (await http.get(probe)).status_code == 503
                page = await http.get(f"http://127.0.0.1:{status['port']}/metrics")
                assert (page.status_code, page.headers["connection"]) == (200, "close")
                assert (await http.get("/livez")).status_code == 200
                served = await http.post(TEXT, json=SHORT)
                assert (served.status_code, served.headers["connection"]) == (200, "close")
                stream = begin(http, max_tokens=1000)  # 5 s: longer than the delay
                await until(lambda: worker.engine.running == 1)
                await until(lambda: "may finish" in child.log())
                assert (await http.post(TEXT, json=SHORT)).status_code == 503
                assert is_whole(await stream)
            assert await child.ended(5) == 0


async def test_a_second_signal_ends_the_delay_of_an_idle_gateway(tmp_path):
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        write(tmp_path / "f.yaml", [worker.url], limits={"drain_delay_s": 60})
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            await child.ready()
            child.signal(signal.SIGTERM)
            await until(lambda: "served for another" in child.log())
            child.signal(signal.SIGTERM)
            assert await child.ended(4) == 0


async def test_one_model_without_a_worker_does_not_take_the_other_out_of_the_load_balancer():
    one, two = SimulatorConfig(model="one", profile="instant"), SimulatorConfig(model="two", profile="instant")
    async with (
        simulated_worker(one) as first,
        simulated_worker(two) as second,
        running_gateway([first.url, second.url]) as gateway,
    ):
        second.set_fault(Fault("crash"))
        await until(lambda: bool(gateway.gateway.not_ready()))
        assert (await gateway.http.get("/ready")).status_code == 503
        ready = await gateway.http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"ready": True})
        first.set_fault(Fault("crash"))
        await until(lambda: not gateway.gateway.serves())
        assert (await gateway.http.get("/readyz")).status_code == 503
        for alive in ("/livez", "/healthz", "/health", "/ping"):
            assert (await gateway.http.get(alive)).status_code == 200


@pytest.mark.parametrize("how", ["a second signal", "the end of drain_s"])
async def test_a_stream_that_does_not_end_is_cut_off_by(tmp_path, how):
    config = SimulatorConfig(model=MODEL, profile="instant", **SLOW)
    limits = {"drain_s": 0.5 if "drain" in how else 60}
    async with simulated_worker(config) as worker:
        write(tmp_path / "f.yaml", [worker.url], limits=limits)
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as http:
                stream = begin(http, max_tokens=10_000)
                whole = asyncio.create_task(http.post(TEXT, json={**SHORT, "max_tokens": 10_000}))
                await until(lambda: worker.engine.running == 2)
                child.signal(signal.SIGTERM)
                await until(lambda: "shutting down" in child.log())
                if "second" in how:
                    child.signal(signal.SIGINT)
                assert await child.ended(4) == 0
                text = await stream
                assert '"ServiceUnavailableError"' in text
                assert text.endswith("data: [DONE]\n\n")
                assert (await whole).status_code == 503
            await until(lambda: worker.engine.running == 0)
            assert "Traceback" not in child.log()
            lines = [json.loads(line) for line in child.log().splitlines() if line.startswith("{")]
            assert len([line for line in lines if line["event"] == "request"]) == 2


@pytest.mark.parametrize("stalls", ["stderr", "stdout and stderr"])
async def test_a_log_reader_that_stalls_stops_neither_requests_nor_the_end(tmp_path, stalls):
    reader, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while os.write(full, b"x" * 4096):
            pass
    os.set_blocking(full, True)
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        write(tmp_path / "f.yaml", [worker.url], listen={"port": port})
        out = full if "stdout" in stalls else None
        async with fairlead(tmp_path, "serve", "--config", "f.yaml", stderr=full, stdout=out) as child:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                await answers(http, "/ready")
                for _ in range(20):
                    assert (await http.post(TEXT, json=SHORT)).status_code == 200
                dropped = series((await http.get("/metrics")).text, "fairlead_log_lines_dropped_total")
                assert dropped == [({}, 0.0)]
            child.signal(signal.SIGTERM)
            assert await child.ended(20) == 0
    os.close(reader)
    os.close(full)


async def test_a_client_that_does_not_read_cannot_keep_the_gateway_from_ending(tmp_path):
    async def flood(_body, writer):
        writer.write(STREAM_HEAD)
        while True:
            writer.write(b'data: {"choices":[{"index":0,"text":"' + b"x" * 60_000 + b'"}]}\n\n')
            await writer.drain()

    async with scripted_worker(flood) as worker:
        write(tmp_path / "f.yaml", [worker.url], limits={"drain_s": 0.2})
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            async with raw_client(int(url.rpartition(":")[2]), limit=1024) as client:
                await client.send(post(TEXT, STREAM))
                await until(lambda: worker.asked)
                await asyncio.sleep(0.3)
                child.signal(signal.SIGTERM)
                assert await child.ended(5) == 0
            lines = [json.loads(line) for line in child.log().splitlines() if line.startswith("{")]
            assert len([line for line in lines if line["event"] == "request"]) == 1


# -- the rest of the configuration


async def test_a_listener_with_tls_serves_streams_and_survives_plain_text(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    listen = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with running_fleet(1, listen=listen, limits={"header_bytes": 4096}) as fleet:
        async with raw_client(fleet.gateway.port) as plain:
            await plain.send(post(TEXT, SHORT))
            assert b"HTTP" not in await asyncio.wait_for(plain.reader.read(), 5)
        async with httpx.AsyncClient(base_url=fleet.gateway.url, verify=context) as http:
            assert http.base_url.scheme == "https"
            assert (await http.get("/ready")).status_code == 200
            assert (await http.get("/health", headers={"x-big": "a" * 5000})).status_code == 431
            assert is_whole(await begin(http))
        await fleet.at_rest()


async def test_an_alias_leads_to_its_model_and_is_rewritten_in_the_body_alone():
    async with running_fleet(1, models={"gpt-4o": MODEL}) as fleet:
        for stream in (False, True):
            body = {**SHORT, "model": "gpt-4o", "stream": stream, "odd": [1, {"a": None}]}
            assert (await fleet.http.post(TEXT, json=body)).status_code == 200
            received = json.loads([r for r in fleet.workers[0].app.received if r.method == "POST"][-1].body)
            received.pop("stream_options", None)
            assert received == {**body, "model": MODEL}
        assert (await fleet.http.post("/tokenize", json={"model": "gpt-4o", "prompt": "x"})).status_code == 200
        listed = {card["id"] for card in (await fleet.http.get("/v1/models")).json()["data"]}
        assert listed == {MODEL, "gpt-4o"}
        assert (await fleet.http.get("/v1/models/gpt-4o")).json()["root"] == MODEL
        answer = await fleet.http.post(TEXT, json={**SHORT, "model": "gpt-5"})
        assert answer.status_code == 404
        assert "gpt-4o, tiny" in answer.json()["error"]["message"]


async def test_adapters_are_listed_and_only_workers_that_have_them_get_their_requests():
    with_adapter = SimulatorConfig(model=MODEL, profile="instant", loras=("sql",))
    without = SimulatorConfig(model=MODEL, profile="instant")
    async with (
        simulated_worker(with_adapter) as skilled,
        simulated_worker(without) as plain,
        running_gateway([plain.url, skilled.url], policies=IN_TURN) as gateway,
    ):
        cards = {card["id"]: card for card in (await gateway.http.get("/v1/models")).json()["data"]}
        assert cards["sql"]["parent"] == MODEL
        assert cards[MODEL]["parent"] is None
        for stream in (False, True):
            for _ in range(3):
                answer = await gateway.http.post(TEXT, json={**SHORT, "model": "sql", "stream": stream})
                assert answer.status_code == 200
                assert '"model":"sql"' in answer.text
        assert set(gateway.placements()) == {skilled.url}
        assert list(gateway.gateway.pools.by_model) == [MODEL]  # a line of the same pool
        skilled_member = gateway.gateway.pools.members[skilled.url]
        gateway.gateway.fleet.drain(skilled.url)
        assert skilled_member.worker.state.value == "draining"
        assert (await gateway.http.post(TEXT, json={**SHORT, "model": "sql"})).status_code == 503
        assert (await gateway.http.post(TEXT, json=SHORT)).status_code == 200
        await gateway.at_rest(skilled, plain)


async def test_limits_hold_for_one_client_and_for_all_its_users_together():
    clients = [
        {"name": "small", "keys": ["small-key-0123456789"], "max_concurrent": 1},
        {"name": "metered", "keys": ["metered-key-0123456789"], "tokens_per_minute": 100},
        {"name": "free", "keys": ["free-key-0123456789"]},
    ]
    small, metered, free = (
        {"authorization": f"Bearer {name}-key-0123456789"} for name in ("small", "metered", "free")
    )
    async with running_fleet(1, SLOW, clients=clients) as fleet:
        http = fleet.http
        async with raw_client(fleet.gateway.port) as client:
            await client.send(post(TEXT, {**STREAM, "user": "ann"}, f"authorization: {small['authorization']}"))
            await until(lambda: fleet.running == 1)
            for path in (TEXT, "/tokenize"):
                answer = await http.post(path, json={**SHORT, "user": "bob"}, headers=small)
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["type"] == "RateLimitError"
            assert (await http.post(TEXT, json=SHORT, headers=free)).status_code == 200
        await fleet.at_rest()
        assert (await http.post(TEXT, json=SHORT, headers=small)).status_code == 200

        spend = {**SHORT, "max_tokens": 60}
        assert (await http.post(TEXT, json=spend, headers=metered)).status_code == 200
        answer = await http.post(TEXT, json=spend, headers=metered)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "tokens per minute" in answer.json()["error"]["message"]
        assert (await http.post(TEXT, json=SHORT, headers=metered)).status_code == 200
        counted = {
            (r["client"], r["outcome"]) for r, n in fleet.gateway.series("fairlead_client_requests_total") if n
        }
        assert ("small", "cancelled") in counted
        assert ("metered", "refused") in counted
        await fleet.at_rest()


async def test_the_pages_are_there():
    async with running_fleet(2) as fleet:
        versions = (await fleet.http.get("/version")).json()
        assert set(versions["workers"]) == {worker.url for worker in fleet.workers}
        schema = (await fleet.http.get("/openapi.json")).json()
        assert "/v1/chat/completions" in schema["paths"]
        assert (await fleet.http.get("/docs")).status_code == 200
        page = (await fleet.http.get("/metrics")).text
        for name in ("requests_total", "time_to_first_token_seconds_bucket", "queue_depth", "worker_state"):
            assert f"fairlead_{name}{{" in page
        assert 'outcome="failed"} 0.0' in page
        await fleet.http.post(TEXT, json={**STREAM, "max_tokens": 30})
        assert [count for _, count in fleet.gateway.series("fairlead_time_to_first_token_seconds_count")] == [1]
        tokens = {row["kind"]: n for row, n in fleet.gateway.series("fairlead_tokens_total") if row["model"]}
        assert tokens["output"] == 30


async def test_decisions_explain_themselves_in_headers_log_and_the_admin_pages():
    sections = {
        "listen": {"decision_headers": True},
        "admin": {"key": "operator"},
        "policies": {"placement": {"name": "fairlead", "warm_up": 0}},
    }
    async with running_fleet(2, **sections) as fleet:
        asked = {"model": MODEL, "prompt": "a" * 5000, "max_tokens": 4}
        answers = [await fleet.http.post("/v1/completions", json=asked) for _ in range(2)]
        first, again = (answer.headers for answer in answers)
        assert (first["x-fairlead-matched-tokens"], first["x-fairlead-reason"]) == ("0", "miss")
        assert int(again["x-fairlead-matched-tokens"]) > 1000
        known = {"Authorization": "Bearer operator"}
        decisions = (await fleet.http.get("/admin/decisions", headers=known)).json()["decisions"]
        assert [row["worker"] for row in decisions] == [first["x-fairlead-worker"], again["x-fairlead-worker"]]
        assert [row["reason"] for row in decisions] == [first["x-fairlead-reason"], again["x-fairlead-reason"]]
        assert "prefix" not in decisions[0], "hashes of prompts are for the log, and for no one who looks in"
