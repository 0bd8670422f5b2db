import contextlib
import io
import random
import socket
import sys
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from router.commands.up import UpOptions, launched, worker_ports
from router.commands.up_display import LaunchDisplay
from workers.launch.disaggregation import Split
from workers.launch.errors import LaunchError, LaunchFailed, NixlNotInstalled, PortTaken, VllmNotInstalled
from workers.launch.supervisor import Progress, Stage

FAKE_VLLM = Path(__file__).parents[2] / "workers" / "launch" / "fake_vllm"


@pytest.fixture
def fake_vllm(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FAKE_VLLM))


def free_ports(count: int) -> int:
    """The first of a number of neighbours, below the range from which the system hands out ports."""
    for port in random.sample(range(10_000, 30_000), k=100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as bound:
            for number in range(count):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port
    raise RuntimeError(f"no {count} free ports in a row")


def options_for(tmp_path, *extra_args, **options):
    defaults = {"device": "cpu", "base_port": free_ports(2), "vllm_python": sys.executable}
    return UpOptions(
        model="org/model", log_dir=tmp_path / "logs", extra_args=list(extra_args), **defaults | options
    )


async def test_a_launched_fleet_tells_its_addresses_and_the_names_of_its_model(tmp_path, fake_vllm, capsys):
    options = options_for(tmp_path, workers=2)
    async with launched(options) as fleet:
        assert fleet.urls == [f"http://127.0.0.1:{options.base_port + n}" for n in (0, 1)]
        assert fleet.models == ["org/model", "alias"]
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{fleet.urls[0]}/health")
    shown = capsys.readouterr().err
    assert "worker-1: starting" in shown
    assert f"worker-1: healthy at {fleet.urls[1]}" in shown


async def test_a_split_fleet_tells_what_each_worker_is_for(tmp_path, fake_vllm, monkeypatch, capsys):
    (tmp_path / "nixl.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{FAKE_VLLM}:{tmp_path}")
    base = free_ports(4)
    async with launched(options_for(tmp_path, split=Split(1, 1), base_port=base)) as fleet:
        assert fleet.workers == [
            {"url": f"http://127.0.0.1:{base}", "roles": "prefill"},
            {"url": f"http://127.0.0.1:{base + 1}", "roles": "decode"},
        ]
    assert "decode-0: healthy" in capsys.readouterr().err


async def test_a_split_without_nixl_is_refused_unless_the_user_brings_a_connector(tmp_path, fake_vllm):
    with pytest.raises(NixlNotInstalled):
        async with launched(options_for(tmp_path, split=Split(1, 1))):
            pytest.fail("not ready")
    own = ("--kv-transfer-config", "{}")
    async with launched(options_for(tmp_path, *own, split=Split(1, 1), base_port=free_ports(4))) as fleet:
        assert [worker["roles"] for worker in fleet.workers] == ["prefill", "decode"]


async def test_a_model_that_does_not_load_is_told_with_the_end_of_the_log(tmp_path, fake_vllm):
    with pytest.raises(LaunchFailed, match=r"no such model[\s\S]*The end of its log"):
        async with launched(options_for(tmp_path, "--fake-error", "no such model")):
            pytest.fail("not ready")


async def test_vllm_is_looked_for_before_anything_else(tmp_path):
    with pytest.raises(VllmNotInstalled):
        async with launched(options_for(tmp_path)):
            pytest.fail("not ready")
    assert not (tmp_path / "logs").exists()


async def test_a_taken_port_is_told(tmp_path, fake_vllm):
    options = options_for(tmp_path)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", options.base_port))
        stranger.listen()
        with pytest.raises(PortTaken):
            async with launched(options):
                pytest.fail("not ready")


async def test_no_worker_at_all_is_refused(tmp_path, fake_vllm):
    with pytest.raises(LaunchError, match="--workers 0"):
        async with launched(options_for(tmp_path, workers=0)):
            pytest.fail("not ready")


def test_ports_beyond_the_last_one_are_refused():
    assert list(worker_ports(65_534, 2)) == [65_534, 65_535]
    for base_port in (65_535, 0, -1):
        with pytest.raises(LaunchError, match=str(base_port)):
            worker_ports(base_port, 2)


def step(stage: Stage, detail: str = "", delay_s: float = 0.0) -> Progress:
    return Progress("worker-0", "http://w", stage, detail, delay_s)


def test_without_a_terminal_each_step_is_a_line_and_loading_is_told_now_and_then():
    text = io.StringIO()
    times = iter([0.0, 1.0, 6.0])
    with LaunchDisplay(["worker-0"], Console(file=text, width=200), clock=times.__next__) as display:
        display.tell(step(Stage.STARTING))
        for detail in ("weights [1/3]", "weights [2/3]", "weights [3/3]"):
            display.tell(step(Stage.LOADING, detail))
        display.tell(step(Stage.HEALTHY))
    assert text.getvalue().splitlines() == [
        "worker-0: starting",
        "worker-0: weights [1/3]",
        "worker-0: weights [3/3]",
        "worker-0: healthy at http://w",
    ]


def test_a_terminal_shows_one_line_per_worker_that_changes_in_place():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with LaunchDisplay(["worker-0", "worker-1"], console) as display:
        display.tell(step(Stage.LOADING, "Loading [bold] weights"))
        display.tell(step(Stage.HEALTHY))
        display.finish()
    first, second = (
        [line for line in text.getvalue().splitlines() if name in line][-1] for name in ("worker-0", "worker-1")
    )
    assert "✓ worker-0" in first
    assert "healthy at http://w" in first
    assert "healthy" not in second


def test_once_the_fleet_serves_a_death_and_a_restart_go_to_the_log(caplog):
    text = io.StringIO()
    with LaunchDisplay(["worker-0"], Console(file=text)) as display:
        display.finish()
        display.tell(step(Stage.DIED, "status 7; RuntimeError: lost the GPU"))
        display.tell(step(Stage.RESTARTING, delay_s=2.0))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "worker-0 died: status 7; RuntimeError: lost the GPU"),
        ("WARNING", "worker-0 restarting in 2 s"),
    ]
    assert text.getvalue() == ""
