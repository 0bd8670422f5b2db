import json
import shlex
import signal
import socket
import subprocess
import sys
import types
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

import router
from router.commands import up
from router.commands.cli import cli
from router.commands.demo import curl_line
from router.commands.startup import StartError, claim_port
from router.config.api_keys import hash_key
from router.config.schema import Config


def invoke(*arguments, **more):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], **more)


class Gateway:
    """Stands where the real gateway does: remembers what it was started with."""

    def __init__(self):
        self.config = None
        self.reload = None

    async def run(self, config, *, on_ready, reload=None, drain_s=None):
        self.config, self.reload = config, reload
        on_ready()


@pytest.fixture
def gateway(monkeypatch):
    fake = Gateway()
    module = types.ModuleType("router.app")
    module.run = fake.run
    monkeypatch.setitem(sys.modules, "router.app", module)
    monkeypatch.setattr(router, "app", module, raising=False)
    yield fake
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # as the real one does


@pytest.fixture
def workers_file(tmp_path):
    path = tmp_path / "fairlead.yaml"
    path.write_text("workers: [http://10.0.0.7:8000]\nlisten: {port: 0}\n")
    return path


def test_help_shows_every_command_and_examples():
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("demo", "serve", "up", "check-config", "print-config", "hash-key", "Examples:"):
        assert word in result.output
    for command in ("demo", "serve", "up", "check-config", "print-config", "hash-key"):
        assert invoke(command, "--help").exit_code == 0


def test_help_loads_none_of_the_heavy_modules():
    program = (
        "import sys, router.commands.cli\n"
        "heavy = {'pydantic', 'fastapi', 'uvicorn', 'httpx', 'yaml', 'prometheus_client', 'uvloop'}\n"
        "print(heavy & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_the_version_is_printed_both_ways():
    assert invoke("--version").output == invoke("version").output
    assert invoke("version").output.startswith("fairlead ")


def test_a_bad_file_is_explained_with_status_2_by_every_command_that_reads_one(tmp_path, gateway):
    path = tmp_path / "bad.yaml"
    path.write_text("workers:\n  - url: http://a\n    max_num_seq: 4\nlog: {levl: info}\n")
    commands = ("check-config", path), ("print-config", path), ("serve", "-c", path), ("up", "m", "--config", path)
    for command in commands:
        result = invoke(*command)
        assert result.exit_code == 2
        assert f"{path}:3: workers[0].max_num_seq: not a known key; did you mean `max_num_seqs`?" in result.stderr
        assert f"{path}:4: log.levl: not a known key; did you mean `level`?" in result.stderr
        assert result.stdout == ""
    assert gateway.config is None


def test_check_config_says_ok_and_passes_notes_on(tmp_path):
    path = tmp_path / "fairlead.yaml"
    path.write_text("workers: [http://a/v1]\nclients: [{name: a}, {name: b}]\n")
    result = invoke("check-config", path)
    assert result.exit_code == 0
    assert result.stdout == f"{path}: ok (1 workers, 2 clients)\n"
    assert "/v1 is left out" in result.stderr


def test_a_wrong_environment_variable_is_refused_too(workers_file):
    result = invoke("check-config", workers_file, env={"FAIRLEAD_LISTEN__PROT": "1"})
    assert result.exit_code == 2
    assert "FAIRLEAD_LISTEN__PROT" in result.stderr


def test_what_print_config_prints_can_be_checked(tmp_path, workers_file):
    for arguments in (("--defaults",), (workers_file,)):
        printed = invoke("print-config", *arguments)
        assert printed.exit_code == 0
        path = tmp_path / "printed.yaml"
        path.write_text(printed.stdout)
        assert invoke("check-config", path).exit_code == 0
    assert Config.load(path, {}) == Config.load(workers_file, {})
    assert invoke("print-config", workers_file, "--defaults").exit_code == 2


def test_hash_key_reads_standard_input_and_prints_only_the_hash():
    result = invoke("hash-key", input="secret\n")
    assert result.output == hash_key("secret") + "\n"
    assert invoke("hash-key", input="\n").exit_code == 2


def test_serve_starts_the_gateway_with_the_file_and_reads_it_again_on_reload(workers_file, gateway):
    result = invoke("serve", "--config", workers_file, "--host", "127.0.0.1")
    assert result.exit_code == 0, result.output
    port = gateway.config.listen.port
    assert port != 0
    assert result.stdout == f"ready http://127.0.0.1:{port}\n"
    workers_file.write_text("workers: [http://10.0.0.8:8000]\nlisten: {port: 0}\n")
    again = gateway.reload()
    assert again.workers[0].url == "http://10.0.0.8:8000"
    assert again.listen.port == port, "0 is the port that was taken"
    workers_file.write_text("workers: [http://10.0.0.8:8000]\nlisten: {port: 1234}\n")
    assert gateway.reload().listen.port == 1234, "a change that can be told from what is in force"


def test_serve_without_any_worker_is_refused(gateway):
    result = invoke("serve")
    assert result.exit_code == 2
    assert "there are no workers" in result.stderr
    assert invoke("serve", "--port", "0", env={"FAIRLEAD_ADMIN__KEY": "secret"}).exit_code == 0


def test_a_taken_port_is_one_message_and_status_1_before_anything_starts(workers_file, gateway, monkeypatch):
    monkeypatch.setattr("asyncio.create_subprocess_exec", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (("demo",), ("serve", "-c", workers_file), ("up", "some-model")):
            result = invoke(*command, "--port", port)
            assert result.exit_code == 1
            assert result.stderr.splitlines()[-1] == (
                f"fairlead: port {port} on 127.0.0.1 is already taken; choose another one with --port"
            )
            assert "Traceback" not in result.output
    assert gateway.config is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--workers", "0"),
        ("demo", "--workers", "65"),
        ("demo", "--workers", "many"),
        ("demo", "--port", "70000"),
        ("demo", "--speed", "0"),
        ("up",),
        ("up", "model", "--gpus", "a"),
        ("up", "model", "extra"),
        ("up", "model", "--device", "tpu"),
        ("nonsense",),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_and_no_traceback(arguments, gateway):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output


def test_up_hands_everything_after_the_dashes_to_vllm(monkeypatch, gateway, tmp_path):
    seen = []

    @asynccontextmanager
    async def launched(options):
        seen.append(options)
        yield up.LaunchedFleet(["http://127.0.0.1:8101"], ["m"])

    monkeypatch.setattr(up, "launched", launched)
    result = invoke("up", "m", "--gpus", "0,2", "--port", 0, "--", "--max-model-len", "4096", "--port-x")
    assert result.exit_code == 0, result.output
    assert seen[0].extra_args == ["--max-model-len", "4096", "--port-x"]
    assert (seen[0].model, seen[0].gpus, seen[0].vllm_python) == ("m", [0, 2], sys.executable)
    assert [worker.url for worker in gateway.config.workers] == ["http://127.0.0.1:8101"]


def test_up_refuses_a_file_that_names_workers(workers_file, gateway):
    result = invoke("up", "m", "--config", workers_file)
    assert result.exit_code == 2
    assert "fairlead serve" in result.stderr


def test_the_curl_line_of_the_demo_survives_a_shell():
    words = shlex.split(curl_line("http://127.0.0.1:8000", "it's a model"))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's a model"


def test_port_0_becomes_a_free_port():
    port = claim_port("127.0.0.1", 0)
    assert 1024 <= port <= 65535
    assert claim_port("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 70])
def test_a_host_that_is_not_this_machine_is_told_apart_from_a_taken_port(host):
    with pytest.raises(StartError, match="not an address of this machine"):
        claim_port(host, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_starting_takes_down_what_was_started(number):
    program = (
        "import asyncio, uvloop\n"
        "from router.commands.startup import cancelled_by_signals\n"
        "async def start():\n"
        "    with cancelled_by_signals():\n"
        "        print('starting', flush=True)\n"
        "        try:\n"
        "            await asyncio.sleep(30)\n"
        "        finally:\n"
        "            print('taken down', flush=True)\n"
        "try:\n"
        "    uvloop.run(start())\n"
        "except asyncio.CancelledError:\n"
        "    print('cancelled')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "starting\n"
        process.send_signal(number)
        assert process.stdout.read() == "taken down\ncancelled\n"
    assert process.returncode == 0


def test_no_thread_of_a_gateway_that_starts_is_ended_by_a_hangup():
    program = (
        "import os, signal, sys\n"
        "from router.commands.hangups import hold_hangups\n"
        "hold_hangups()\n"
        "from router import app\n"
        "from router.commands import startup\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"  # to whichever thread does not hold it
        "masks = [open(f'/proc/self/task/{task}/status').read() for task in os.listdir('/proc/self/task')]\n"
        "print(all(int(mask.split('SigBlk:')[1].split()[0], 16) & 1 for mask in masks))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
