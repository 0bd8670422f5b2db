"""`fairlead up` as a user runs it: a real model on the CPU, asked by the official client. `-s` shows the talk."""

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import openai
import pytest
from gateway_under_test import series, until
from real_vllm import alive, free_ports, launched_on

pytestmark = pytest.mark.timeout(500)

FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Up:
    """One `fairlead up` that is ready."""

    def __init__(self, process, url, worker_ports):
        self.process = process
        self.url = url
        self.worker_ports = worker_ports

    def family(self):
        """Every process of its workers, each with its command line."""
        return {pid: line for port in self.worker_ports for pid, line in launched_on(port).items()}

    def server_of(self, port):
        [pid] = [
            pid for pid, line in launched_on(port).items() if "cli.main" in line and "process_guard" not in line
        ]
        return pid


@asynccontextmanager
async def fairlead_up(vllm_home, log_dir, model, *, workers):
    port, first = free_ports(1), free_ports(workers)
    command = [FAIRLEAD, "up", str(vllm_home.models / model), "--device", "cpu", "--workers", str(workers)]
    command += ["--vllm-python", vllm_home.python, "--port", str(port), "--worker-port-base", str(first)]
    command += ["--log-dir", str(log_dir), "--", "--served-model-name", model]
    show("$ " + " ".join(command).replace(str(Path.home()), "~").replace(str(log_dir), "logs"))
    began = time.monotonic()
    with (log_dir / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=log)
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 240)).decode().strip()
        assert line == f"ready http://127.0.0.1:{port}", (log_dir / "gateway.log").read_text()[-3000:]
        show(f"{line}   ({time.monotonic() - began:.1f} s after the command)")
        yield Up(process, f"http://127.0.0.1:{port}", range(first, first + workers))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def show(line):
    sys.stderr.write(line + "\n")


async def ask(up):
    """The question, and its answer as it streams."""
    began = time.monotonic()
    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="smollm2",
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0,
            max_tokens=40,
        )
        pieces, first_at, usage = [], None, None
        async for chunk in stream:
            usage = chunk.usage
            if chunk.choices and chunk.choices[0].delta.content:
                first_at = first_at or time.monotonic()
                pieces.append(chunk.choices[0].delta.content)
    show(f"> {QUESTION[0]['content']}")
    show(f"< {'|'.join(pieces)}")
    cached = usage.prompt_tokens_details.cached_tokens
    show(
        f"  {usage.prompt_tokens} tokens in ({cached} cached), {usage.completion_tokens} out; "
        f"first after {first_at - began:.3f} s, all after {time.monotonic() - began:.3f} s"
    )
    return "".join(pieces)


async def states(up):
    async with httpx.AsyncClient(timeout=10) as client:
        page = (await client.get(f"{up.url}/metrics")).text
    return {labels["worker"]: labels["state"] for labels, value in series(page, "fairlead_worker_state") if value}


async def comes_to_be(fact, what, within_s):
    deadline = time.monotonic() + within_s
    while not await fact():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def test_a_real_model_answers_a_dead_worker_comes_back_and_sigterm_leaves_nothing(vllm_home, tmp_path):
    async with fairlead_up(vllm_home, tmp_path, "smollm2", workers=2) as up:
        first, second = [f"http://127.0.0.1:{port}" for port in up.worker_ports]
        assert "Paris" in await ask(up)
        assert "Paris" in await ask(up)
        assert await states(up) == {first: "up", second: "up"}

        everything = up.family()
        killed_at = time.monotonic()
        os.kill(up.server_of(up.worker_ports[0]), signal.SIGKILL)
        show(f"$ kill -9 the worker at {first}")
        while (seen := await states(up)).get(first) == "up":
            assert "Paris" in await ask(up)
        show(f"  {seen} {time.monotonic() - killed_at:.1f} s after the kill")
        for _ in range(3):
            assert "Paris" in await ask(up)

        async def is_back():
            return (await states(up)).get(f"{first}@1") == "up"

        await comes_to_be(is_back, "the worker is not back", within_s=180)
        show(f"  {await states(up)} {time.monotonic() - killed_at:.1f} s after the kill")
        assert "Paris" in await ask(up)

        everything |= up.family()
        assert alive(everything)
        stopped_at = time.monotonic()
        up.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(up.process.wait(), 30) == 0
        show(f"$ kill the gateway: status 0 after {time.monotonic() - stopped_at:.1f} s")
        assert alive(everything) == []
        assert await up.process.stdout.read() == b""


async def test_a_gateway_that_is_killed_leaves_no_process(vllm_home, tmp_path):
    async with fairlead_up(vllm_home, tmp_path, "tiny", workers=1) as up:
        family = up.family()
        assert any("EngineCore" in line for line in family.values())
        killed_at = time.monotonic()
        up.process.kill()
        await until(lambda: not alive(family), lambda: alive(family), within_s=30)
        show(f"$ kill -9 the gateway: no process left after {time.monotonic() - killed_at:.1f} s")
