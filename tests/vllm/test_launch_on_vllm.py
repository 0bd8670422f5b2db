"""The launcher with a real vLLM below it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import alive, launched_on

from router.commands.up import UpOptions, launched
from workers.launch.errors import LaunchFailed

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]


def options_for(vllm_home, port, log_dir, model="tiny"):
    return UpOptions(
        model=str(vllm_home.models / model),
        vllm_python=vllm_home.python,
        log_dir=log_dir,
        device="cpu",
        base_port=port,
        extra_args=["--served-model-name", model, "--max-num-seqs", "4"],
    )


async def until(condition, timeout_s):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # processes come and go without telling
            await asyncio.sleep(0.1)


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
from router.commands.up import UpOptions, launched

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
