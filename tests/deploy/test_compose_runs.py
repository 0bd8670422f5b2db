"""`docker compose --profile sim --profile monitoring up` without Docker: its commands, environment and files."""

import os
import shutil

import httpx
import pytest
from compose_file import DEPLOY, active, dotenv, read
from local_processes import running, until

COMPOSE = read(DEPLOY / "compose.yaml", dotenv())
NOT_HERE = {"grafana"}
"""Programs of the image that no package of Debian's brings."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    services = active(COMPOSE, "sim", "monitoring")
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        reason = "Prometheus is not installed: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    services = {name: service for name, service in services.items() if name not in NOT_HERE}
    with running(COMPOSE, services, tmp_path_factory.mktemp("cluster")) as project:
        yield project


@pytest.fixture(scope="module")
def router(cluster):
    with httpx.Client(base_url=cluster.services["router-sim"].url(8000), timeout=30) as http:
        yield http


@pytest.fixture(scope="module")
def prometheus(cluster):
    with httpx.Client(base_url=cluster.services["prometheus"].url(9090), timeout=30) as http:
        yield http


def asked(prometheus, query):
    """The value of an instant query that gives one number; None if it gives nothing."""
    result = prometheus.get("/api/v1/query", params={"query": query}).raise_for_status().json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def test_the_services_that_run_are_those_of_the_profiles(cluster):
    assert set(cluster.services) == {"router-sim", "sim-0", "sim-1", "sim-2", "targets-sim", "prometheus"}


def test_the_router_is_ready_and_its_workers_are_those_of_the_file(cluster, router):
    until(lambda: router.get("/ready").status_code == 200, lambda: router.get("/ready").text)
    here = {cluster.services[f"sim-{number}"].url(8000) for number in range(3)}
    assert set(router.get("/version").json()["workers"]) == here


def test_every_scrape_target_is_up_and_sees_the_traffic(cluster, router, prometheus):
    until(lambda: router.get("/ready").status_code == 200, lambda: router.get("/ready").text)
    [model] = router.get("/v1/models").json()["data"]
    for number in range(12):
        body = {"model": model["id"], "prompt": f"Story {number}", "max_tokens": 4, "user": f"client-{number % 3}"}
        assert router.post("/v1/completions", json=body).status_code == 200

    def targets():
        data = prometheus.get("/api/v1/targets").raise_for_status().json()["data"]
        return {
            (target["labels"]["job"], target["labels"]["instance"]): target["health"]
            for target in data["activeTargets"]
        }

    expected = {
        ("fairlead", address(cluster, "router-sim", 9464)),
        ("prometheus", address(cluster, "prometheus", 9090)),
    }
    expected |= {("vllm", address(cluster, f"sim-{number}", 8000)) for number in range(3)}
    until(lambda: targets() == dict.fromkeys(expected, "up"), lambda: str(targets()))
    until(
        lambda: asked(prometheus, 'sum(fairlead_requests_total{outcome="completed"})') == 12,
        lambda: router.get("/metrics").text,
    )
    until(
        lambda: (
            (asked(prometheus, 'sum(vllm:generation_tokens_total{job="vllm", role="simulated"})') or 0) >= 12 * 4
        ),
        cluster.services["prometheus"].log,
    )


def test_prometheus_has_loaded_the_rules_and_none_fails(prometheus):
    groups = prometheus.get("/api/v1/rules").raise_for_status().json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


def address(cluster, name, port):
    return cluster.services[name].url(port).removeprefix("http://")
