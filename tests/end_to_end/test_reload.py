"""What SIGHUP changes while requests are served: seen from outside, or at the part that has to know it."""

import logging
import signal
import ssl

import httpx
import pytest
import trustme
import yaml
from child import fairlead
from gateway_under_test import MODEL, post, raw_client, running_fleet, until

from router import app
from router.config.reload import LIVE
from workers.fleet.worker import WorkerSpec
from workers.simulator.server import SimulatorConfig, simulated_worker

TEXT = "/v1/completions"
SHORT = {"model": MODEL, "prompt": "x", "max_tokens": 1}

FROM_OUTSIDE = {
    "listen.tls_certificate",
    "listen.tls_key",
    "listen.decision_headers",
    "workers",
    "clients",
    "models",
    "limits.body_bytes",
    "limits.header_bytes",
    "admin.key",
    "admin.key_hash",
    "status.access",
    "status.key",
    "status.key_hash",
}
"""Tests below, and those of `test_operation`, see the effect of these on a socket."""


def scheduler(router):
    return router.pools.by_model[MODEL].scheduler


def timeouts(router):
    return next(iter(router.connections)).upstream.timeouts


INSIDE = {
    "listen.keep_alive_s": (33.0, lambda router: router.listener.keep_alive_s),
    "limits.concurrent_requests": (9, lambda router: router.intake.limits.concurrent_requests),
    "limits.held_bytes": (10**8, lambda router: router.intake.held.limit),
    "limits.queue_requests": (7, lambda router: scheduler(router).settings.max_queued),
    "limits.queue_wait_s": (8.0, lambda router: scheduler(router).settings.max_wait_s),
    "limits.drain_s": (2.0, lambda router: router.config.limits.drain_s),
    "limits.wrong_keys_per_minute": (7.0, lambda router: router.clients.wrong_keys.per_minute),
    "limits.background_responses": ("refused", lambda router: router.intake.limits.background_responses),
    "limits.attempts": (1, lambda router: {router.control.attempts, scheduler(router).settings.attempts}),
    "limits.continuations": (3, lambda router: router.control.seams.limit),
    "continuation": ("best_effort", lambda router: router.continuations.mode),
    "timeouts.connect_s": (1.5, lambda router: timeouts(router).connect_s),
    "timeouts.first_byte_s": (2.5, lambda router: timeouts(router).first_byte_s),
    "timeouts.whole_answer_s": (3.5, lambda router: timeouts(router).whole_answer_s),
    "timeouts.idle_s": (4.5, lambda router: timeouts(router).idle_s),
    "log.level": ("error", lambda _: logging.getLevelName(logging.getLogger().level).lower()),
    "log.prefixes": (False, lambda router: router.request_log.prefixes),
    "log.prompts": (True, lambda router: router.request_log.prompts),
    "log.sample": (0.5, lambda router: router.request_log.sample),
    "log.slow_s": (3.0, lambda router: router.request_log.slow_s),
    "log.addresses": (True, lambda router: router.request_log.addresses),
    "metrics.max_clients": (5, lambda router: router.metrics.max_clients),
}
"""A new value, and where its effect is."""


@pytest.fixture(autouse=True)
def _log_level_as_before():
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def changed(config, name, value):
    section, _, rest = name.partition(".")
    if rest:
        value = changed(getattr(config, section), rest, value)
    return config.model_copy(update={section: value})


def read_again(fleet, **values):
    """SIGHUP, after the file has got these values: names with `__` for the dot."""
    router = fleet.gateway.gateway
    config = router.config
    for name, value in values.items():
        config = changed(config, name.replace("__", "."), value)
    app._reload(router, lambda: config)
    return config


def test_every_setting_that_is_said_to_take_effect_is_looked_at_here():
    assert set(INSIDE) | FROM_OUTSIDE == set(LIVE)


async def test_each_setting_reaches_the_part_that_has_to_know_it():
    async with running_fleet(1) as fleet:
        router = fleet.gateway.gateway
        read_again(fleet)
        before = {name: effect(router) for name, (_, effect) in INSIDE.items()}
        for name, (value, effect) in INSIDE.items():
            read_again(fleet, **{name.replace(".", "__"): value})
            assert effect(router) in (value, {value}), name
            assert effect(router) != before[name], name
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 200


async def test_a_pool_that_comes_later_has_the_limits_in_force():
    async with running_fleet(1) as fleet, simulated_worker(SimulatorConfig(model="later")) as later:
        read_again(fleet, limits__queue_requests=7)
        router = fleet.gateway.gateway
        router.fleet.add(WorkerSpec(later.url))
        await until(lambda: "later" in router.pools.by_model)
        assert router.pools.by_model["later"].scheduler.settings.max_queued == 7


async def test_bounds_on_heads_and_bodies_hold_on_a_connection_that_is_open_already():
    async with running_fleet(1) as fleet, raw_client(fleet.gateway.port) as client:
        large = {**SHORT, "prompt": "x " * 2000}
        await client.send(post(TEXT, large))
        assert (await client.answer()).status == 200
        read_again(fleet, limits__body_bytes=1000, limits__header_bytes=2000)
        assert (await fleet.http.post(TEXT, json=large)).status_code == 413
        assert (await fleet.http.post(TEXT, json=SHORT, headers={"x-big": "a" * 3000})).status_code == 431
        await client.send(post(TEXT, SHORT, "x-big: " + "a" * 3000))
        assert (await client.answer()).status == 431
        assert (await fleet.http.post(TEXT, json=SHORT)).status_code == 200


async def test_decisions_show_in_headers_from_the_next_request_on():
    async with running_fleet(1) as fleet:
        assert "x-fairlead-worker" not in (await fleet.http.post(TEXT, json=SHORT)).headers
        read_again(fleet, listen__decision_headers=True)
        assert "x-fairlead-worker" in (await fleet.http.post(TEXT, json=SHORT)).headers


async def test_a_new_admin_key_holds_at_once_and_the_old_one_no_more():
    old, new = ({"authorization": f"Bearer {word}-key-0123456789"} for word in ("old", "new"))
    async with running_fleet(1, admin={"key": "old-key-0123456789"}) as fleet:
        assert (await fleet.http.get("/admin/workers", headers=old)).status_code == 200
        key = fleet.gateway.config.admin.model_validate({"key": "new-key-0123456789"}).key
        read_again(fleet, admin__key=key)
        assert (await fleet.http.get("/admin/workers", headers=old)).status_code == 401
        assert (await fleet.http.get("/admin/workers", headers=new)).status_code == 200


async def test_who_sees_the_status_pages_changes_at_once():
    key = {"authorization": "Bearer of-prometheus-0123456789"}

    async with running_fleet(1, status={"key": "old-of-prometheus-0123"}) as fleet:

        async def seen(headers):
            return (await fleet.http.get("/metrics", headers=headers)).status_code

        assert await seen({}) == 200
        read_again(fleet, status__access="key")
        assert (await seen({}), await seen(key)) == (401, 401)
        status = fleet.gateway.config.status
        read_again(fleet, status__key=status.model_validate({"key": "of-prometheus-0123456789"}).key)
        assert (await seen({}), await seen(key)) == (401, 200)


def issue(folder):
    """A fresh authority, and a certificate of it in the folder's two files."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_renewed_certificate_is_shown_to_new_connections_and_open_ones_go_on(tmp_path):
    before = issue(tmp_path)
    listen = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    async with running_fleet(1, listen=listen) as fleet:
        url = fleet.gateway.url
        async with httpx.AsyncClient(base_url=url, verify=before) as old:
            assert (await old.get("/health")).status_code == 200
            after = issue(tmp_path)
            read_again(fleet)
            assert (await old.get("/health")).status_code == 200
            async with httpx.AsyncClient(base_url=url, verify=after) as new:
                assert (await new.get("/health")).status_code == 200
            async with httpx.AsyncClient(base_url=url, verify=before) as late:
                with pytest.raises(httpx.ConnectError):
                    await late.get("/health")


async def test_a_client_that_is_added_has_its_label_at_once_however_many_users_came_before():
    keys = {"authorization": "Bearer key-of-a-0123456789"}
    config = [{"name": "a", "keys": ["key-of-a-0123456789"], "trust_user": True}]
    pages = {"metrics": {"max_clients": 10}, "status": {"access": "open"}}
    async with running_fleet(1, clients=config, **pages) as fleet:
        for number in range(30):
            body = {**SHORT, "user": f"end-user-{number}"}
            assert (await fleet.http.post(TEXT, json=body, headers=keys)).status_code == 200
        client = fleet.gateway.config.clients[0]
        vip = client.model_validate({"name": "vip", "keys": ["key-of-vip-0123456789"], "weight": 5})
        read_again(fleet, clients=(client, vip))
        weights = fleet.gateway.series("fairlead_client_weight")
        assert ({"client": "vip"}, 5.0) in weights
        vips = {"authorization": "Bearer key-of-vip-0123456789"}
        assert (await fleet.http.post(TEXT, json=SHORT, headers=vips)).status_code == 200
        page = (await fleet.http.get("/metrics", headers=keys)).text
        assert 'fairlead_client_requests_total{client="vip",outcome="completed"} 1.0' in page
        read_again(fleet, clients=(client,))
        assert "vip" not in fleet.gateway.gateway.metrics.page.now().decode()


async def test_what_needs_a_restart_is_named_in_the_log_of_the_process_and_the_rest_is_taken_over(tmp_path):
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        file = tmp_path / "f.yaml"
        sections = {"workers": [worker.url], "listen": {"port": 0}}
        file.write_text(yaml.safe_dump(sections))
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            child.signal(signal.SIGHUP)
            await until(lambda: "configuration read" in child.log())
            assert "at the next start" not in child.log(), "nothing has changed"
            sections |= {"listen": {"port": 1, "backlog": 7}, "limits": {"body_bytes": 100}, "health": {}}
            sections["health"] = {"probe_every_s": 1.5}
            file.write_text(yaml.safe_dump(sections))
            child.signal(signal.SIGHUP)
            await until(lambda: child.log().count("configuration read") == 2)
            for name in ("listen.port", "listen.backlog", "health.probe_every_s"):
                assert f"a change of `{name}` takes effect at the next start" in child.log()
            assert "limits" not in child.log()
            async with httpx.AsyncClient(base_url=url, timeout=20) as http:
                assert (await http.post(TEXT, json={**SHORT, "prompt": "x" * 200})).status_code == 413


async def test_certificates_that_do_not_belong_together_are_refused_by_name_and_the_old_ones_stay(tmp_path):
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant")) as worker:
        context = issue(tmp_path)
        listen = {"port": 0, "tls_certificate": "cert.pem", "tls_key": "key.pem"}
        (tmp_path / "f.yaml").write_text(yaml.safe_dump({"workers": [worker.url], "listen": listen}))
        async with fairlead(tmp_path, "serve", "--config", "f.yaml") as child:
            url = await child.ready()
            key = (tmp_path / "key.pem").read_bytes()
            issue(tmp_path)
            (tmp_path / "key.pem").write_bytes(key)
            child.signal(signal.SIGHUP)
            await until(lambda: "the old one stays" in child.log())
            assert "cert.pem and key.pem cannot be used" in child.log()
            async with httpx.AsyncClient(base_url=url, verify=context) as http:
                assert (await http.get("/health")).status_code == 200
