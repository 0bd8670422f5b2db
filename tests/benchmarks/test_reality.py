"""The workload of the comparison with reality: its prompts, and what is made of the answers."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.reality import CHATS, Played, summary, tokens_of
from router.lab.profiling.stream import Answer
from router.lab.workloads.open_workload import open_workload
from workers.simulator.profiles import PROFILES


def test_equal_units_are_equal_tokens_and_the_rest_is_nobody_elses():
    traffic = open_workload(CHATS)
    requests = list(traffic.requests)
    prompts = [tokens_of(request, traffic.block_tokens, 0, number) for number, request in enumerate(requests)]
    assert [len(prompt) for prompt in prompts] == [request.input_tokens for request in requests]
    shared = 0
    for n, one in enumerate(requests):
        for m, other in enumerate(requests[:n]):
            units = [a == b for a, b in zip(one.block_names, other.block_names, strict=False)]
            same = (units.index(False) if False in units else len(units)) * traffic.block_tokens
            assert prompts[n][:same] == prompts[m][:same]
            assert prompts[n][: same + 16] != prompts[m][: same + 16]
            shared += same > 0
    assert shared > 50
    assert tokens_of(requests[0], traffic.block_tokens, 1, 0) != prompts[0]


def test_a_summary_counts_from_the_moment_a_request_was_due():
    request = next(r for r in open_workload(CHATS).requests if r.output_tokens > 1)
    answer = Answer(10.5, [(11.0, 1), (12.0, request.output_tokens)])
    report = summary([Played(10.0, request, answer), Played(10.0, request, error="gone")], 30, 120)
    assert report["completed"] == 1
    assert report["ttft_s"]["mean"] == 1.0
    assert report["e2e_s"]["p99"] == 2.0
    assert report["tpot_s"]["p50"] == pytest.approx(1.0 / (request.output_tokens - 1))
    assert report["tokens_per_s"] == (request.input_tokens + request.output_tokens) / 2.0
    assert report["prefix_hit_ratio"] == 0.25


def test_every_profile_is_a_column_beside_the_last_one_which_measures_them(tmp_path):
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    instant = replace(PROFILES["instant"], name="fitted", overhead_s=0.002)
    for file, overhead_s, transport_s in ((fast, 0.002, 0.0), (slow, 0.02, 1.0)):
        profile = asdict(replace(instant, overhead_s=overhead_s))
        file.write_text(json.dumps({"profile": profile, "conditions": {"transport_s": transport_s}}))
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.reality", fast, slow, "--simulated", "2", "--json", out]
    command += ["--workload", "poisson:requests=12,rate=20,input_tokens=60,output_tokens=8"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    columns = json.loads(out.read_text())["columns"]
    assert list(columns) == ["virtual time, fast.json", "virtual time, slow.json", "simulated workers"]
    assert [column["completed"] for column in columns.values()] == [12, 12, 12]
    tpot = [column["tpot_s"]["mean"] for column in columns.values()]
    assert tpot[0] < tpot[1]
    for times in ("ttft_s", "e2e_s"):
        fast_s, slow_s = (column[times]["p50"] for column in list(columns.values())[:2])
        assert fast_s < 1.0 < slow_s  # with what is beside the engine
    off = f"({tpot[0] / tpot[2] - 1:+.0%})"
    assert off in done.stdout
    assert sum(columns["simulated workers"]["per_worker"]) >= 12
