import json
import re

import pytest
import yaml

from deploy.grafana.boards.catalog import documents
from tests.deploy.watched_fleet import ROOT

FOLDER = ROOT / "deploy/grafana/dashboards"
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


def test_the_dashboards_are_those_that_the_code_makes():
    """If this fails: python -m deploy.grafana.boards."""
    made = documents()
    assert {path.stem: path.read_text() for path in FOLDER.glob("*.json")} == made


def test_there_are_five_of_them_and_each_links_to_the_others():
    assert set(BOARDS) == {"fleet", "fairness", "routing", "workers", "gateway"}
    assert {board["uid"] for board in BOARDS.values()} == {f"fairlead-{name}" for name in BOARDS}
    for board in BOARDS.values():
        (link,) = board["links"]
        assert link["type"] == "dashboards"
        assert set(link["tags"]) <= set(board["tags"])
        assert link["keepTime"]
        assert link["includeVars"]


def test_every_dashboard_marks_reloads_and_changes_of_workers():
    for board in BOARDS.values():
        marks = {mark["name"]: mark for mark in board["annotations"]["list"]}
        assert set(marks) == {"Configuration reloads", "Worker changes"}
        assert all(mark["expr"] and mark["titleFormat"] and mark["enable"] for mark in marks.values())


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_a_good_value_looks_like_and_in_which_unit(panel):
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_several_series_have_a_legend_to_tell_them_apart(panel):
    for target in panel["targets"]:
        by_label = re.search(r"\bby \(", target["expr"])
        if panel["type"] == "timeseries" and (by_label or len(panel["targets"]) > 1):
            assert target["legendFormat"], target["expr"]


def test_a_variable_that_a_query_uses_is_there():
    for name, board in BOARDS.items():
        offered = {variable["name"] for variable in board["templating"]["list"]}
        used = set(re.findall(r"\$(\w+)", json.dumps(board["panels"]))) - {"__rate_interval"}
        assert used == offered, name


def test_panels_do_not_overlap():
    for name, board in BOARDS.items():
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert taken.isdisjoint(cells), (name, panel["title"])
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_grafana_finds_prometheus_and_the_folder_of_dashboards():
    provisioning = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/fairlead.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
