"""Real processes, with a stand-in for vLLM (fake_vllm) below the real process_guard."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from workers.bounds.backoff import Backoff
from workers.launch.devices import Cpu
from workers.launch.disaggregation import Split
from workers.launch.errors import LaunchError, LaunchFailed, PortTaken
from workers.launch.plan import plan
from workers.launch.supervisor import Stage, Supervisor

FAKE_VLLM = Path(__file__).parent / "fake_vllm"
QUICK = Backoff(first_s=0.1, factor=4.0, longest_s=0.5)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A word in the command line of every process that this test starts; they are all gone afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE_VLLM))
    word = f"mark-{os.getpid()}-{tmp_path.name}"
    yield word
    left = processes(word)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def processes(mark: str, *, word: str = "") -> list[int]:
    """The live processes with both words in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()  # empty for a zombie
            if mark.encode() in line and word.encode() in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def specs_for(tmp_path, mark, *extra_args, count=1, split=None):
    return plan(
        "org/model",
        [Cpu(memory_bytes=1 << 30)] * count,
        split=split or Split(),
        ports=[free_port() for _ in range(2 * count)],
        extra_args=["--fake-mark", mark, *extra_args],
        vllm_python=sys.executable,
        log_dir=tmp_path / "logs",
        scratch_prefix=f"{tmp_path}/s-",
    )


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # processes come and go without telling
            await asyncio.sleep(0.02)


async def kill_worker(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{url}/die")


async def test_a_fleet_starts_side_by_side_serves_and_leaves_nothing(tmp_path, mark):
    specs = specs_for(tmp_path, mark, "--fake-load-s", "0.6", count=3)
    seen = []
    begun = time.monotonic()
    async with Supervisor(specs, seen.append) as supervisor:
        assert time.monotonic() - begun < 3 * 2
        async with httpx.AsyncClient(trust_env=False) as client:
            for spec in specs:
                assert (await client.get(f"{spec.url}/health")).status_code == 200
        assert len(processes(mark, word=" engine")) == 3
        assert all(spec.scratch.is_dir() for spec in specs)
        await supervisor.stop()
        assert processes(mark) == []
    assert not any(spec.scratch.exists() for spec in specs)
    for spec in specs:
        stages = [progress.stage for progress in seen if progress.worker == spec.name]
        assert stages[0] is Stage.STARTING
        assert stages[1] is Stage.LOADING
        assert stages[-2:] == [Stage.HEALTHY, Stage.STOPPED]
        assert "Loading weights" in {progress.detail for progress in seen}
        assert f"sockets in {spec.scratch}" in spec.log.read_text()


async def test_a_worker_that_served_and_died_is_started_again_with_growing_pauses(tmp_path, mark):
    gone_wrong = tmp_path / "gone-wrong"
    (spec,) = specs_for(tmp_path, mark, "--fake-die-at", str(gone_wrong))
    seen = []
    async with Supervisor([spec], seen.append, backoff=QUICK):
        gone_wrong.touch()
        await kill_worker(spec.url)
        await until(lambda: sum(step.stage is Stage.RESTARTING for step in seen) == 3)
        gone_wrong.unlink()
        healthy = [step for step in seen if step.stage is Stage.HEALTHY]
        await until(lambda: sum(step.stage is Stage.HEALTHY for step in seen) > len(healthy))
    assert [step.delay_s for step in seen if step.stage is Stage.RESTARTING][:3] == [0.1, 0.4, 0.5]
    died = [step.detail for step in seen if step.stage is Stage.DIED]
    assert died[0] == "status 7"
    assert died[1] == "status 1; MemoryError: no room for the model"


async def test_the_workers_of_a_pair_on_a_cpu_may_use_every_core_once_they_are_healthy(tmp_path, mark):
    specs = specs_for(tmp_path, mark, count=2, split=Split(1, 1))
    cores = []

    def on_progress(progress):
        if progress.stage is Stage.HEALTHY:
            cores.extend(
                os.sched_getaffinity(pid) for pid in processes(mark, word=f"--port\0{port[progress.url]}")
            )

    port = {spec.url: spec.port for spec in specs}
    async with Supervisor(specs, on_progress):
        pass
    assert len(cores) >= 4
    assert cores == [os.sched_getaffinity(0)] * len(cores)


async def test_a_long_healthy_time_forgives_earlier_deaths(tmp_path, mark):
    (spec,) = specs_for(tmp_path, mark)
    seen = []
    backoff = Backoff(first_s=0.05, factor=10.0)
    async with Supervisor([spec], seen.append, backoff=backoff, forgiven_after_s=0.0):
        for death in (1, 2):
            await kill_worker(spec.url)
            await until(lambda d=death: sum(step.stage is Stage.HEALTHY for step in seen) == d + 1)
    assert [step.delay_s for step in seen if step.stage is Stage.RESTARTING] == [0.05, 0.05]


async def test_a_model_that_fails_to_load_is_one_clear_error_and_stops_the_others(tmp_path, mark):
    good, bad = specs_for(tmp_path, mark, count=2)
    broken = type(bad)(
        **{name: getattr(bad, name) for name in bad.__slots__}
        | {"argv": (*bad.argv, "--fake-error", "the model is not there")}
    )
    seen = []
    with pytest.raises(LaunchFailed) as failure:
        async with Supervisor([good, broken], seen.append):
            pytest.fail("a fleet with a broken worker is not ready")
    message = str(failure.value)
    assert message.startswith(
        "worker-1 ended with status 1 before it was ready.\nValueError: the model is not there"
    )
    assert str(bad.log) in message
    assert "Loading weights" in message
    assert Stage.RESTARTING not in {step.stage for step in seen}
    assert processes(mark) == []


async def test_a_command_that_does_not_exist_is_a_clear_error(tmp_path, mark):
    (spec,) = specs_for(tmp_path, mark)
    missing = type(spec)(**{name: getattr(spec, name) for name in spec.__slots__} | {"argv": ("/no/python", mark)})
    with pytest.raises(LaunchFailed, match=r"status 127[\s\S]*cannot run /no/python: No such file"):
        await Supervisor([missing], lambda _: None).__aenter__()


async def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path, mark):
    (tmp_path / "logs").write_text("a file where the directory should be")
    with pytest.raises(LaunchError, match="worker-0 cannot be started"):
        await Supervisor(specs_for(tmp_path, mark), lambda _: None).__aenter__()


async def test_a_taken_port_stops_the_launch_before_anything_starts(tmp_path, mark):
    specs = specs_for(tmp_path, mark, count=2)
    seen = []
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", specs[1].port))
        stranger.listen()
        with pytest.raises(PortTaken, match=str(specs[1].port)):
            await Supervisor(specs, seen.append).__aenter__()
    assert seen == []


async def test_a_launch_that_is_cancelled_while_loading_leaves_nothing(tmp_path, mark):
    (spec,) = specs_for(tmp_path, mark, "--fake-load-s", "60")
    seen = []
    starting = asyncio.create_task(Supervisor([spec], seen.append).__aenter__())
    await until(lambda: processes(mark, word=" engine"))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes(mark) == []


async def test_a_worker_deaf_to_sigterm_is_ended_by_force_after_the_grace(tmp_path, mark):
    (spec,) = specs_for(tmp_path, mark, "--fake-stubborn")
    async with Supervisor([spec], lambda _: None, grace_s=0.3):
        pass
    assert processes(mark) == []


async def test_a_killed_guard_takes_its_worker_along_and_the_worker_is_restarted(tmp_path, mark):
    (spec,) = specs_for(tmp_path, mark)
    seen = []
    async with Supervisor([spec], seen.append, backoff=QUICK):
        (guard,) = processes(mark, word="process_guard.py")
        before = processes(mark, word="serve")
        (engine,) = processes(mark, word=" engine")
        os.kill(guard, signal.SIGKILL)
        await until(lambda: sum(step.stage is Stage.HEALTHY for step in seen) == 2)
        assert not set(before) & set(processes(mark, word="serve"))
        # Without its guard an engine in a session of its own is out of reach.
        os.kill(engine, signal.SIGKILL)


async def test_a_display_that_fails_does_not_take_the_fleet_with_it(tmp_path, mark, caplog):
    def fail(_progress):
        raise RuntimeError("broken display")

    async with Supervisor(specs_for(tmp_path, mark), fail):
        pass
    assert "progress callback failed" in caplog.text


GATEWAY = """
import asyncio, sys
from pathlib import Path
from workers.launch.devices import Cpu
from workers.launch.plan import plan
from workers.launch.supervisor import Supervisor

async def main(mark, port, directory, leave, *extra):
    specs = plan("org/model", [Cpu(1 << 30)], ports=[int(port)], extra_args=["--fake-mark", mark, *extra],
                 vllm_python=sys.executable, log_dir=Path(directory), scratch_prefix=directory + "/s-")
    tell = lambda step: print(step.stage.value, step.detail, flush=True)
    async with Supervisor(specs, tell, grace_s=2.0):
        if not int(leave):
            await asyncio.sleep(60)
        print("stopping", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("phase", "leave", "extra"),
    [
        ("starting", False, []),
        ("Loading weights", False, ["--fake-load-s", "60"]),
        ("Loading weights", False, ["--fake-load-s", "60", "--fake-stubborn"]),
        ("healthy", False, []),
        ("stopping", True, ["--fake-stubborn"]),
    ],
)
def test_no_process_outlives_a_gateway_that_is_killed(tmp_path, mark, phase, leave, extra):
    words = [mark, str(free_port()), str(tmp_path), str(int(leave)), *extra]
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, *words],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": f"{FAKE_VLLM}:{Path(__file__).parents[2]}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as gateway:
        for line in gateway.stdout:
            if phase in line:
                break
        else:
            pytest.fail(f"the gateway ended before {phase}")
        gateway.kill()
    asyncio.run(until(lambda: not processes(mark), timeout_s=5.0))
    assert not list(tmp_path.glob("s-*"))
