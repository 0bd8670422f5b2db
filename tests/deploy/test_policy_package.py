"""deploy/examples/policy is a package to copy: once installed, its policies are names like any other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compose_file import ROOT

FOLDER = ROOT / "deploy" / "examples" / "policy"
PAGE = (FOLDER / "README.md").read_text()
BLOCKS = dict(enumerate(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)))
FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, FOLDER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def run(line, python_path):
    """A command line of the page, in the checkout's root, with its variables."""
    words = line.split()
    env = {**os.environ, "PYTHONPATH": str(python_path)}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    assert words[0] == "fairlead"
    done = subprocess.run(
        [FAIRLEAD, *words[1:]], capture_output=True, text=True, check=False, timeout=100, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_installed_runs_under_the_names_of_its_entry_points(installed):
    install, *lines = BLOCKS[0].splitlines()
    assert install == "pip install ./deploy/examples/policy"
    explained, compared = (run(line, installed) for line in lines)
    assert "Which worker has the most KV memory to spare?" in explained
    assert "roomiest" in compared
    assert "shortest_prompt" in compared


@pytest.mark.slow
def test_a_configuration_names_what_is_installed(installed, tmp_path):
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "fairlead.yaml"
    file.write_text(f"workers: [http://127.0.0.1:1]\n{text}")
    assert "ok" in run(f"fairlead check-config {file}", installed).lower()


@pytest.mark.parametrize("line", BLOCKS[1].splitlines())
def test_a_class_runs_without_being_installed(line):
    assert "fairlead_example.roomiest:Roomiest" in run(line, "")


def test_the_page_and_the_architecture_show_its_entry_points():
    text = (FOLDER / "pyproject.toml").read_text()
    [shown] = re.findall(r"```toml\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert shown in text
