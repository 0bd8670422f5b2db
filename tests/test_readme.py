"""The README's first minutes are true: the demo, the client, the two commands. The rest: test_documents.py."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))


def blocks(kind):
    return [text for name, text in BLOCKS if name == kind]


def test_it_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


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
    first, second, *_ = blocks("sh")
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/fairlead demo\n"
    assert second == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n"
    run = (ROOT / ".ci" / "run").read_text()
    assert "python3 -m venv" in run
    assert "-e '.[test]'" in run
    assert "/bin/pytest" in run


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("| dependency | why |")[2]
    for requirement in project["dependencies"]:
        assert re.split(r"[\[><=]", requirement)[0] in table
    for extra in project["optional-dependencies"]:
        assert f"extra `{extra}`" in table
