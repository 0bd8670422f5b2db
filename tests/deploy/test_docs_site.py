"""The documentation as a site: built without a warning, read without a network, with all settings and policies."""

import html
import os
import re
import subprocess
import sys

import pytest
import yaml
from compose_file import ROOT

from policies import catalog
from router.config import reload

pytest.importorskip("material", reason="the extra `docs` is not installed")

CONFIG = ROOT / "deploy" / "docs" / "mkdocs.yml"
FROM_ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", CONFIG, "--site-dir", folder]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, env=env)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def words(page):
    text = re.sub(r"<[^>]+>", " ", (page).read_text("utf-8"))
    return html.unescape(text)


@pytest.mark.slow
def test_every_page_of_the_navigation_is_built_and_every_page_is_in_it(site):
    entries = yaml.safe_load(re.sub(r"!!python\S+", "", CONFIG.read_text()))["nav"]
    named = set(re.findall(r"[\w-]+\.md", yaml.safe_dump(entries)))
    built = {path.stem + ".md" for path in site.glob("*.html")} - {"404.md"}
    assert named == built
    assert len(named) > 20


@pytest.mark.slow
def test_it_needs_no_network_and_can_be_searched(site):
    loaded = {path.name: FROM_ELSEWHERE.findall(path.read_text("utf-8")) for path in site.glob("*.html")}
    assert {name: found for name, found in loaded.items() if found} == {}
    assert (site / "search" / "search_index.js").exists()


@pytest.mark.slow
def test_the_reference_has_every_setting_and_every_policy(site):
    shown = words(site / "configuration.html")
    assert [name for name in reload.settings() if name not in shown] == []
    shown = words(site / "policy-reference.html")
    entries = {**catalog.placement_policies(), **catalog.queue_policies()}
    assert [name for name, entry in entries.items() if entry.question not in " ".join(shown.split())] == []


@pytest.mark.slow
def test_pictures_come_along(site):
    found = re.findall(r'<img[^>]* src="([^"]+\.png)"', (site / "index.html").read_text("utf-8"))
    assert found
    assert [name for name in found if not (site / name).exists()] == []
