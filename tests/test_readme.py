"""The README is true: its commands run, its files exist, its configurations are accepted."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from router.config.policy_choice import Choice
from router.config.reload import settings
from router.config.schema import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))


def blocks(kind):
    return [text for name, text in BLOCKS if name == kind]


def command_lines():
    lines = [line for text in blocks("sh") for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("fairlead ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_option_of_a_command_exists(line):
    words = line.split(" -- ")[0].split()
    command = words[1:3] if words[1] == "heatmap" else words[1:2]  # a group of commands
    answer = subprocess.run(
        [FAIRLEAD, *command, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, f"{line}: {answer.stderr}"
    for option in (word for word in words if word.startswith("--")):
        assert option in answer.stdout, f"{line}: there is no {option}"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_configuration_is_accepted(text, tmp_path):
    file = tmp_path / "fairlead.yaml"
    file.write_text(text.replace("sha256:...", "sha256:" + "0" * 64))
    Config.load(file, env={})


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:router|workers|policies|tests|benchmarks|deploy)/[\w./-]+)`", README))
    named |= {link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert named


def is_setting(name):
    """Whether a configuration may have this key, a policy's own settings under the policy that ships."""
    if name in settings():
        return True
    value = Config.model_validate({})
    for part in name.split("."):
        value = value.settings if isinstance(value, Choice) else value
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md", "deploy/runbook.md"])
def test_every_setting_that_is_named_exists(page):
    sections = "|".join(Config.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)[`:]", (ROOT / page).read_text()))
    assert named
    assert {name for name in named if not is_setting(name)} == set()


def test_the_demo_prints_what_the_readme_shows_and_answers_the_openai_client():
    (shown,) = [text for text in blocks("") if text.startswith("starting")]
    (program,) = blocks("python")
    demo = subprocess.Popen(
        [FAIRLEAD, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FAIRLEAD_LISTEN__PORT": "0"},
    )
    try:
        printed = [demo.stdout.readline() for _ in shown.splitlines()]
        url = printed[-1].removeprefix("ready ").strip()
        assert "".join(printed).replace(url, "http://127.0.0.1:8000") == shown
        scope = {}
        exec(program.replace("http://127.0.0.1:8000", url), scope)
        assert scope["answer"].choices[0].message.content
        scope["client"].close()
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=10) == 0
        demo.stdout.close()


def test_the_first_two_commands_are_the_ones_that_ci_runs():
    first, second = blocks("sh")[:2]
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/fairlead demo\n"
    assert second == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n"
    run = (ROOT / ".ci" / "run").read_text()
    assert "python3 -m venv" in run
    assert "-e '.[test]'" in run
    assert "/bin/pytest" in run


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.partition("| dependency | why |")[2]
    for requirement in project["dependencies"]:
        assert re.split(r"[\[><=]", requirement)[0] in table
    for extra in project["optional-dependencies"]:
        assert f"extra `{extra}`" in table
