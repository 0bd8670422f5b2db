import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests.deploy.watched_fleet import ROOT

FOLDER = ROOT / "deploy/prometheus"
ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "rules/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in ALERTS]


@pytest.fixture(scope="module")
def promtool():
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: install Debian's package prometheus")
        pytest.skip("promtool is not installed")

    def run(*arguments):
        done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_configuration_and_its_rules_are_valid(promtool):
    assert "2 rule files found" in promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules/recording.yml", "rules/alerts.yml")


@pytest.mark.parametrize("cases", ["alerts.yml", "day.yml"])
def test_rules_fire_and_keep_quiet_as_the_cases_say(promtool, cases):
    promtool("test", "rules", f"tests/{cases}")


def test_every_alert_has_a_case_in_which_it_fires():
    text = "".join(path.read_text() for path in (FOLDER / "tests").glob("*.yml"))
    fires = set(re.findall(r'labels: \'(?:ALERTS)?\{alertname="(\w+)"', text))
    fires |= set(re.findall(r"- alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- exp_labels", text))
    assert set(NAMES) - fires == set()


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_how_urgent_it_is_what_it_is_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "description", "runbook"} <= rule["annotations"].keys()
    assert rule["annotations"]["runbook"] == f"deploy/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else():
    text = (ROOT / "deploy/runbook.md").read_text()
    sections = dict(re.findall(r"^## (Fairlead\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == NAMES
    for name, section in sections.items():
        assert re.findall(r"^\*\*(.*?)\*\*", section, re.MULTILINE) == ["Means", "See", "Do"], name
