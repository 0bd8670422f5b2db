"""deploy/README.md is true: its commands are accepted, its files and sections exist."""

import itertools
import re
import shlex

import pytest
from compose_file import DEPLOY, ROOT, dotenv
from typer.testing import CliRunner

from router.commands.cli import cli

README = (DEPLOY / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("fairlead keys ")])
def test_the_commands_about_keys_get_as_far_as_the_gateway(line):
    to_nowhere = {"FAIRLEAD_URL": "http://127.0.0.1:9", "FAIRLEAD_ADMIN_KEY": "a-key"}
    result = CliRunner().invoke(cli, shlex.split(line, comments=True)[1:], env=to_nowhere)
    assert (result.exit_code, "does not answer" in result.stderr) == (1, True)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("fairlead compose ")])
def test_fairlead_accepts_its_command_lines(line, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition(" > ")[0])[1:]
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "compose.yaml")
    is_in_front = "--worker" in words
    machine = ["--elsewhere"] if is_in_front or "--gpus" in words else ["--elsewhere", "--gpus", "2"]
    result = CliRunner().invoke(cli, [words[0], *machine, *words[1:]])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("line", [line for line in LINES if "docker compose" in line])
def test_docker_is_given_files_and_profiles_that_exist(line):
    words = shlex.split(line)
    words = words[words.index("docker") :]
    given = list(itertools.pairwise(words))
    assert [name for option, name in given if option == "-f" and not (ROOT / name).exists()] == []
    assert {name for option, name in given if option == "--profile"} <= {"sim", "gpu", "pd", "monitoring"}
    variables = [word.partition("=")[0] for word in shlex.split(line) if re.match(r"[A-Z_]+=", word)]
    assert set(variables) <= set(dotenv())


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        file, _, anchor = link.partition("#")
        assert file == "" or (DEPLOY / file).exists(), link
        assert file != "" or anchor in headings, link


def test_ports_are_those_of_dotenv():
    table = dict(re.findall(r"^\| (\d+) \| ([^:]+):", README, re.MULTILINE))
    env = dotenv()
    assert table == {
        env["ROUTER_PORT"]: "the router",
        env["PROMETHEUS_PORT"]: "Prometheus",
        env["GRAFANA_PORT"]: "Grafana",
    }
