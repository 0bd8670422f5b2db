"""`fairlead up` and `fairlead profile` as a user runs them on a machine with a GPU."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.fleet.ports import free_ports
from benchmarks.gpu import cuda
from workers.launch.devices import Gpu, find_gpus

pytestmark = pytest.mark.timeout(1000)

FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))


def test_the_driver_names_the_gpu_and_its_memory(home):
    if not isinstance(home.device, Gpu):
        pytest.skip("on a CPU there is no driver to ask")
    gpus = find_gpus()
    assert home.device in gpus
    assert all(gpu.memory_bytes > 8 << 30 and "NVIDIA" in gpu.name for gpu in gpus)
    known = cuda.hardware(home.device)
    assert known["gpu"] == home.device.name
    assert known["driver"]


async def test_up_finds_the_device_serves_and_leaves_nothing(home, tmp_path):
    port, first, *_ = free_ports(4)
    command = [FAIRLEAD, "up", str(home.model), "--vllm-python", home.python, "--port", str(port)]
    command += ["--worker-port-base", str(first), "--log-dir", str(tmp_path)]
    given = ["--served-model-name", "little", "--max-model-len", "4096", "--max-num-seqs", "8"]
    if isinstance(home.device, Gpu):
        command += ["--gpus", "0"]
        given += ["--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(256 << 20)]
    else:
        command += ["--device", "cpu", "--workers", "1"]
    with (tmp_path / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--", *given, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 500)).decode().strip()
        assert line == f"ready http://127.0.0.1:{port}", (tmp_path / "gateway.log").read_text()[-3000:]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            asked = {"model": "little", "prompt": "the water", "max_tokens": 4, "ignore_eos": True}
            answer = (await http.post("/v1/completions", json=asked)).json()
        assert answer["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", first)


def test_a_server_is_profiled_and_the_lab_runs_with_it(servers, tmp_path):
    file = tmp_path / "profile.json"
    command = [FAIRLEAD, "profile", servers.both[0].url, "--out", str(file)]
    command += ["--prompt-lengths", "64,1024", "--batches", "1,4", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {point["kind"] for point in json.loads(file.read_text())["points"]} == {"prefill", "decode"}
    words = ["simulate", "poisson:requests=50", "--profile", str(file), "--json"]
    ran = subprocess.run([FAIRLEAD, *words], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(ran.stdout)["completed"] == 50
