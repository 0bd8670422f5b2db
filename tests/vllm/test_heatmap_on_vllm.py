"""`fairlead heatmap measure` with real vLLM on the CPU: two colocated servers, and a pair over NIXL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from real_vllm import Wanted, free_ports

from router.heatmap.file import read_heatmap

pytestmark = pytest.mark.timeout(400)

FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))
CONFIGS = (
    {"kv_connector": "NixlConnector", "kv_role": "kv_producer"},
    {"kv_connector": "NixlConnector", "kv_role": "kv_consumer", "kv_load_failure_policy": "recompute"},
)
LENGTHS, RATIOS, REQUESTS = (96, 384), (0.0625, 0.5), 2


@pytest.fixture(scope="module")
def sides(servers):
    """The prefill worker and the decode worker; NIXL keeps a thread of each awake, so they end here."""
    started = servers.fresh(
        *(
            Wanted(
                args=("--kv-transfer-config", json.dumps(config)),
                environment=(("VLLM_NIXL_SIDE_CHANNEL_PORT", str(free_ports(1))),),
            )
            for config in CONFIGS
        )
    )
    yield started
    for server in started:
        server.stop()


def measured(pair, sides, out, *more):
    """The command, run to its end."""
    prefill, decode = sides
    command = [FAIRLEAD, "heatmap", "measure", "--out", str(out)]
    command += ["--colocated", ",".join(server.url for server in pair)]
    command += ["--disaggregated", f"P={prefill.url},D={decode.url}"]
    command += ["--prompt-lengths", ",".join(map(str, LENGTHS)), "--ratios", ",".join(map(str, RATIOS))]
    # Slow enough for a busy machine to keep up with: what it cannot keep up with is left out of the map.
    command += ["--rates", "4", "--requests", str(REQUESTS), *more]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def test_a_map_is_measured_and_every_prompt_of_the_pair_is_fetched_not_computed_again(pair, sides, tmp_path):
    out = tmp_path / "map.json"
    _, decode = sides
    before = [server.counted("vllm:external_prefix_cache_hits_total") for server in sides]
    generated = decode.counted("vllm:generation_tokens_total")
    done = measured(pair, sides, out, "--hardware", "a CPU")
    assert done.returncode == 0, done.stderr
    heatmap = read_heatmap(out).measured
    assert (heatmap.prefill_tokens, heatmap.ratios) == (LENGTHS, RATIOS)
    conditions = heatmap.conditions
    assert (conditions["model"], conditions["batches_done"], conditions["hardware"]) == ("tiny", 4, "a CPU")
    assert httpx.get(f"{decode.url}/version", trust_env=False).json()["version"] == conditions["versions"]["vllm"]
    assert "note: http" not in done.stderr  # the pair hands KV over
    asked = [(length, round(length * ratio)) for length in LENGTHS for ratio in RATIOS]
    requests = 2 * REQUESTS  # of each batch: `REQUESTS` for each of two workers
    fetched = min(LENGTHS) + requests * sum(length for length, _ in asked)
    after = [server.counted("vllm:external_prefix_cache_hits_total") for server in sides]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, fetched]
    answers = 2 + requests * sum(tokens for _, tokens in asked)
    assert decode.counted("vllm:generation_tokens_total") - generated == answers
    shown = subprocess.run([FAIRLEAD, "heatmap", "show", str(out)], capture_output=True, text=True, check=True)
    assert "model: tiny" in shown.stdout


def test_a_pair_that_hands_nothing_over_is_told_of(pair, sides, tmp_path):
    out = tmp_path / "void.json"
    first, second = pair
    done = measured(sides, (first, second), out)
    assert done.returncode == 0, done.stderr
    assert f"note: {first.url} does not say where the KV of a prompt is" in done.stderr
