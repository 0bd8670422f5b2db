"""`python -m workers.simulator` as a process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "workers.simulator"]


def start(*options, **more):
    return subprocess.Popen(
        [*COMMAND, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def urls(process):
    return json.loads(process.stdout.readline())["ready"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_three_workers_say_where_they_are_and_end_cleanly(number):
    with start("--workers", "3", "--profile", "instant", "--model", "m") as process:
        found = urls(process)
        assert len(set(found)) == 3
        for url in found:
            answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2})
            assert answer.json()["model"] == "m"
        process.send_signal(number)
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (0, "", "")


def test_a_fault_reaches_one_worker_through_another():
    with start("--workers", "2", "--profile", "instant") as process:
        first, second = urls(process)
        httpx.post(f"{first}/simulator/fault", json={"kind": "crash", "worker": 1})
        time.sleep(0.1)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{second}/health")
        httpx.delete(f"{first}/simulator/fault?worker=1")
        time.sleep(0.1)
        assert httpx.get(f"{second}/health").status_code == 200
        process.terminate()
        assert process.communicate(timeout=5)[1] == ""


def test_bad_options_and_a_taken_port_end_with_one_clear_line():
    for options, status, word in (
        (["--fault", "explode"], 2, "not one of"),
        (["--kv-blocks", "4", "--max-model-len", "9999"], 2, "cannot hold"),
    ):
        done = subprocess.run([*COMMAND, *options], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert word in done.stderr
        assert "Traceback" not in done.stderr
    with start("--profile", "instant") as process:
        port = urls(process)[0].rpartition(":")[2]
        done = subprocess.run([*COMMAND, "--port", port], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"
        process.terminate()
        process.communicate(timeout=5)


def test_workers_die_with_their_parent():
    # A parent in between starts the workers, tells us where they are, and is killed the hard way.
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([*{COMMAND!r}, '--profile', 'instant', '--die-with-parent'])\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        [url] = urls(process)
        assert httpx.get(f"{url}/health").status_code == 200
        os.kill(process.pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                httpx.get(f"{url}/health")
            except httpx.TransportError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the worker outlived its parent")


async def test_many_streams_are_open_at_once_without_an_error():
    streams = 600
    with start("--workers", "3", "--max-num-seqs", "128", "--speed", "4") as process:
        ready = urls(process)

        async def one(index):
            host, port = ready[index % 3].removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps({"prompt": f"{index} hello", "max_tokens": 32, "ignore_eos": True, "stream": True})
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            )
            writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            try:
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()

        answers = await asyncio.gather(*(one(index) for index in range(streams)))
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert all(b"[DONE]" in answer and b'"finish_reason":"length"' in answer for answer in answers)
        process.terminate()
        assert process.communicate(timeout=5)[1] == ""
