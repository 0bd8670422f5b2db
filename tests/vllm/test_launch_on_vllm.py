"""The launcher with a real vLLM below it."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from router.up import UpOptions, launched
from workers.launch_errors import LaunchFailed
from workers.supervisor import Backoff

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]


def options_for(vllm_home, port, log_dir, model="tiny", workers=1):
    return UpOptions(
        model=str(vllm_home.models / model),
        vllm_python=vllm_home.python,
        log_dir=log_dir,
        device="cpu",
        workers=workers,
        base_port=port,
        extra_args=["--served-model-name", model, "--max-num-seqs", "4"],
    )


def stat_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def launched_on(port: int) -> dict[int, str]:
    """The live processes of the server on that port, each with its command line.

    The engine renames itself, so the port shows the session and the session shows the rest.
    """
    lines: dict[int, str] = {}
    sessions: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = stat_of(int(entry.name))[:4]
            if state != "Z":
                sessions[int(entry.name)] = session
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    ours = {sessions[pid] for pid, line in lines.items() if "keeper.py" in line and f"--port {port}" in line}
    return {pid: lines[pid] for pid, session in sessions.items() if session in ours}


def alive(processes: dict[int, str]) -> list[str]:
    return [line for pid, line in processes.items() if Path(f"/proc/{pid}").exists()]


async def until(condition, timeout_s):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # processes come and go without telling
            await asyncio.sleep(0.1)


async def healthy(url: str) -> bool:
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"{url}/health")).is_success
    return False


async def test_workers_start_a_killed_one_is_restarted_and_stopping_leaves_no_process(
    vllm_home, free_port, tmp_path
):
    port = free_port()
    backoff = Backoff(first_s=0.1)
    async with launched(options_for(vllm_home, port, tmp_path, workers=2), backoff=backoff) as fleet:
        assert fleet.models == ["tiny"]
        for url in fleet.urls:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
                answer = await client.completions.create(
                    model="tiny", prompt="A prefix that was seen before", max_tokens=4
                )
            assert answer.usage.prompt_tokens_details.cached_tokens == 0

        everything = launched_on(port) | launched_on(port + 1)
        (server,) = (pid for pid, line in launched_on(port).items() if "cli.main" in line and "keeper" not in line)
        assert any("EngineCore" in line for line in launched_on(port).values())
        os.kill(server, signal.SIGKILL)
        await until(lambda: server not in launched_on(port), 20)
        async with asyncio.timeout(180):
            while not await healthy(fleet.urls[0]):  # noqa: ASYNC110  # it tells only when it is asked
                await asyncio.sleep(0.2)
        assert await healthy(fleet.urls[1])
        everything |= launched_on(port)
    assert alive(everything) == []


async def test_a_model_that_is_not_there_is_told_in_one_message_with_the_end_of_the_log(
    vllm_home, free_port, tmp_path
):
    with pytest.raises(LaunchFailed) as failure:
        async with launched(options_for(vllm_home, free_port(), tmp_path, model="no-such-model")):
            pytest.fail("not ready")
    message = str(failure.value)
    assert message.startswith("worker-0 ended with status 1 before it was ready.\n")
    assert "no-such-model" in message
    assert "HFValidationError" in message
    assert str(tmp_path / "worker-0.log") in message


async def test_a_cache_too_small_for_the_context_is_told_with_its_cause_not_its_consequence(
    vllm_home, free_port, tmp_path
):
    options = options_for(vllm_home, free_port(), tmp_path)
    options.extra_args.extend(["--kv-cache-memory-bytes", "600000", "--max-model-len", "4096"])
    with pytest.raises(LaunchFailed, match=r"\nValueError: To serve at least one request"):
        async with launched(options):
            pytest.fail("not ready")


GATEWAY = """
import asyncio, sys
from pathlib import Path
from router.up import UpOptions, launched

async def main(python, model, port, log_dir):
    async with launched(UpOptions(model=model, vllm_python=python, log_dir=Path(log_dir), device="cpu",
                                  base_port=int(port))):
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_no_process_outlives_a_gateway_killed_while_the_engine_loads(vllm_home, free_port, tmp_path):
    port = free_port()
    words = [vllm_home.python, str(vllm_home.models / "tiny"), str(port), str(tmp_path)]
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GATEWAY, *words), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: any("EngineCore" in line for line in launched_on(port).values()), 120)
        family = launched_on(port)
    finally:
        gateway.kill()
        await gateway.wait()
    await until(lambda: not alive(family), 20)
