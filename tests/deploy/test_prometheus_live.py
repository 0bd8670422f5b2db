import json
import os
import re
import shutil

import pytest
import yaml

from tests.deploy.watched_fleet import ROOT, watched_fleet

BOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
EVERYTHING = dict.fromkeys(("model", "client", "worker", "instance"), ".*")
_SELECTOR = re.compile(r"\b((?:up|fairlead_\w+|(?:model|client|instance|fairlead):[\w:]+)(?:\{[^}]*\})?)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    if shutil.which("prometheus") is None:
        if os.environ.get("CI"):
            pytest.fail("prometheus is missing: install Debian's package of that name")
        pytest.skip("prometheus is not installed")
    with watched_fleet(tmp_path_factory.mktemp("watched")) as watched:
        yield watched


def boards():
    return [json.loads(path.read_text()) for path in BOARDS]


def queries():
    """Every query of every panel: where it stands, PromQL, legend."""
    for board in boards():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                where = f"{board['title']} / {panel['title']} / {target['refId']}"
                yield where, target["expr"], target.get("legendFormat", "")


def substituted(expr, variables):
    """As Grafana does it; the shortest rate interval is four scrapes."""
    expr = expr.replace("$__rate_interval", "4s")
    for name, value in variables.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, f"an unknown variable: {expr}"
    return expr


def test_every_job_has_a_target_and_every_target_is_up(watched):
    health = {target["labels"]["job"]: target["health"] for target in watched.targets()}
    assert health == dict.fromkeys(("fairlead", "vllm", "dcgm", "prometheus"), "up")


def test_every_query_of_every_panel_returns_data(watched):
    assert len(BOARDS) == 5
    empty = [
        f"{where}: {expr}" for where, expr, _ in queries() if not watched.series(substituted(expr, EVERYTHING))
    ]
    assert empty == [], "\n".join(["panels without data:", *empty])


def test_every_panel_still_has_data_when_one_value_of_each_variable_is_chosen(watched):
    """Values are escaped as Grafana escapes them. Only decode workers of pairs have transfers.

    Either of two workers will do: some panels show only one that went away, and others divide by what a worker was
    asked, which is no number for one that was asked nothing while it could be.
    """
    instance = watched.label_values("fairlead_build_info", "instance")[0]
    chosen = {"model": "demo-model", "client": "heavy", "instance": re.escape(instance).replace("\\", "\\\\")}
    workers = [re.sub(r"([\\^$*+?.()|\[\]{}/-])", r"\\\\\1", url) for url in (watched.worker, watched.stayed)]
    empty = [
        f"{where}: {expr}"
        for where, expr, _ in queries()
        if "nixl" not in expr
        and not any(watched.series(substituted(expr, {**chosen, "worker": worker})) for worker in workers)
    ]
    assert empty == [], "\n".join(["panels without data:", *empty])


def test_every_legend_names_labels_that_its_series_have(watched):
    wrong = [
        f"{where}: {{{{{label}}}}}"
        for where, expr, legend in queries()
        for label in _LEGEND.findall(legend)
        if not any(labels.get(label) for labels, _ in watched.series(substituted(expr, EVERYTHING)))
    ]
    assert wrong == []


def test_every_variable_offers_values(watched):
    for board in boards():
        for variable in board["templating"]["list"]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            assert any(watched.label_values(metric, label)), (board["title"], variable["name"])


def test_every_annotation_marks_what_was_changed(watched):
    for board in boards():
        for mark in board["annotations"]["list"]:
            marked = watched.series(substituted(mark["expr"], {}))
            assert marked, (board["title"], mark["name"])
            for label in _LEGEND.findall(mark["titleFormat"]):
                assert all(labels.get(label) for labels, _ in marked)


def test_every_recording_rule_records(watched):
    rules = [rule for rule in watched.rules() if rule["type"] == "recording"]
    assert rules
    assert [rule["name"] for rule in rules if rule["health"] != "ok" or not watched.series(rule["name"])] == []


def test_every_alert_is_evaluated_on_series_that_exist(watched):
    rules = [rule for rule in watched.rules() if rule["type"] == "alerting"]
    assert rules
    missing = [
        (rule["name"], selector)
        for rule in rules
        for selector in selectors(rule["query"])
        if rule["health"] != "ok" or not watched.series(selector)
    ]
    assert missing == []


def selectors(expr):
    """The series that an expression reads, each as a query that returns them."""
    return set(_SELECTOR.findall(expr))


def test_what_was_provoked_shows(watched):
    def highest(expr):
        return max((float(v) for _, values in watched.series(expr) for v in values), default=None)

    excluded = {labels["reason"] for labels, _ in watched.series("fairlead_worker_excluded == 1")}
    assert excluded & {"probe_failed", "requests_failed"}
    assert highest('sum(fairlead_config_reloads_total{result="refused"})') == 1
    assert highest('ALERTS{alertname="FairleadConfigRefused", alertstate="firing"}') == 1
    assert highest("fairlead:competing_clients:count") >= 2
    assert highest('fairlead_client_queued{client="heavy"}') > 0
    assert highest("sum(increase(fairlead_cancellations_total[20s]))") > 0


def test_the_configuration_scrapes_the_jobs_that_the_dashboards_ask_for():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert [job["job_name"] for job in config["scrape_configs"]] == ["fairlead", "vllm", "dcgm", "prometheus"]
