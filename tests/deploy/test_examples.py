"""deploy/examples run: each program against simulated workers, where the package that it shows is installed.

EXAMPLES_PYTHON names an interpreter that has these packages; by default the one that runs the tests.
"""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from compose_file import ROOT, VALIDATOR, read

KEY = "sk-0f2f7ad9b5c1d7e08a6f3b9c4e51d2a7c6b8e9f0a1b2c3d4"
FOLDER = ROOT / "deploy" / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))
PYTHON = os.environ.get("EXAMPLES_PYTHON", sys.executable)
FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))


def has(*packages):
    program = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(name) for name in sys.argv[1:]))"
    return subprocess.run([PYTHON, "-c", program, *packages], check=False, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def gateway():
    """The address of `fairlead demo`."""
    demo = subprocess.Popen(
        [FAIRLEAD, "demo", "--workers", "2", "--speed", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FAIRLEAD_LISTEN__PORT": "0"},
    )
    try:
        ready = next(line for line in demo.stdout if line.startswith("ready "))
        yield ready.split()[1]
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(timeout=20)
        demo.stdout.close()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_runs_and_prints_answers(path, gateway):
    tree = ast.parse(path.read_text())
    imported = {node.names[0].name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)}
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if not has(*imported):
        pytest.skip(f"{', '.join(sorted(imported - set(sys.stdlib_module_names)))}: not installed")
    env = {**os.environ, "GATEWAY_URL": gateway}
    done = subprocess.run([PYTHON, path], capture_output=True, text=True, check=False, timeout=110, env=env)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5


def test_litellm_stands_in_front(gateway, tmp_path):
    if not has("litellm", "apscheduler", "openai"):
        pytest.skip("litellm[proxy]: not installed")
    config = tmp_path / "litellm.yaml"
    config.write_text((FOLDER / "litellm_proxy.yaml").read_text().replace("http://127.0.0.1:8000", gateway))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [Path(PYTHON).with_name("litellm"), "--config", config, "--port", str(port), "--host", "127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        env = {**os.environ, "LITELLM_MASTER_KEY": KEY}
        proxy = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=env)
    try:
        answer = posted(f"{url}/v1/chat/completions", proxy, tmp_path / "log")
        assert yaml.safe_load(answer)["choices"][0]["message"]["content"]
    finally:
        proxy.terminate()
        proxy.wait(timeout=20)


def posted(url, process, log):
    """The answer to a chat, as soon as somebody listens."""
    body = b'{"model": "llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}'
    request = urllib.request.Request(
        url, body, {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    )
    for _ in range(400):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_the_compose_file_is_one():
    VALIDATOR.validate(read(FOLDER / "open-webui.compose.yaml"))


def test_every_example_is_listed():
    listed = set(re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text()))
    files = {path.name for path in FOLDER.iterdir() if path.is_file()} - {"README.md"}
    assert files | {"policy/README.md"} == listed
