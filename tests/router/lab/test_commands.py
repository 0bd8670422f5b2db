"""The commands `simulate` and `compare`, as they are typed."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from policies import catalog
from policies.placements.lmetric import LMetric
from router.commands.cli import cli
from router.lab import comparison

SMALL = "poisson:requests=40"
NUMBERS = {"mean", "p50", "p90", "p99"}


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def simulate(*arguments):
    result = invoke("simulate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    return result.stderr


# -- simulate


def test_json_is_one_object_and_nothing_else():
    report = simulate(SMALL, "--workers", 2, "--seed", 3)
    assert report["requests"] == report["completed"] == 40
    assert (report["workers"], report["profile"], report["seed"]) == (2, "h100-llama-3.1-8b", 3)
    assert set(report["ttft_s"]) == set(report["clients"]["client-0"]["e2e_s"]) == NUMBERS
    assert report["slo"].keys() == {"ttft_s", "tpot_s", "attained", "classes"}
    assert report["limit"].keys() == {"prefix_hit_ratio", "unlimited_hit_ratio", "ttft_s", "e2e_s"}


@pytest.mark.parametrize("command", [["simulate"], ["compare", "--binding", "late"]])
def test_a_policy_that_raises_does_not_pass_for_one_that_ran(monkeypatch, command):
    def rank(*_):
        raise LookupError("no such thing")

    monkeypatch.setattr(LMetric, "rank", rank)
    result = invoke(command[0], SMALL, *command[1:], "--placement", "lmetric", "--json")
    assert result.exit_code == 0, result.output
    assert "the policies raised 40 times, at last LookupError('no such thing')" in result.stderr


def test_every_option_has_a_default():
    report = simulate(SMALL)
    assert report["workers"] == 8
    assert report["placement"] == catalog.DEFAULT_PLACEMENT
    assert report["queue"] == catalog.DEFAULT_QUEUE
    assert report["binding"] in {"late", "early"}


def test_equal_seeds_print_equal_bytes_but_for_the_time_it_took():
    one, other = (invoke("simulate", SMALL, "--json", "--seed", 4).stdout.splitlines() for _ in range(2))
    assert [line for line in one if "wall_s" not in line] == [line for line in other if "wall_s" not in line]
    assert simulate(SMALL, "--seed", 5)["duration_s"] != json.loads("\n".join(one))["duration_s"]


def test_without_json_there_is_a_table_to_read():
    result = invoke("simulate", "chat:requests=40,misbehaving=s1", "--workers", 2)
    assert result.exit_code == 0
    for words in ("40 requests on 2 x h100-llama-3.1-8b", "time to first token", "Jain's index", "(misbehaves)"):
        assert words in result.stdout


def test_out_writes_the_same_json_to_a_file(tmp_path):
    file = tmp_path / "report.json"
    result = invoke("simulate", SMALL, "--json", "--out", file)
    assert json.loads(file.read_text()) == json.loads(result.stdout)
    assert "cannot write" in refusal("simulate", SMALL, "--json", "--out", tmp_path / "no" / "such.json")


def test_settings_reach_policies_scheduler_and_engines():
    burst = "poisson:requests=60,rate=2000,input_tokens=4000"
    assert simulate(burst, "--workers", 1, "--set", "queue_requests=5")["rejected"] > 20
    assert simulate(burst, "--workers", 1, "--set", "queue_wait_s=0.05")["rejected"] > 0
    slow = simulate(SMALL, "--workers", 1, "--set", "engine.max_num_seqs=1", "--set", "placement.decode=0.9")
    assert slow["e2e_s"]["mean"] > simulate(SMALL, "--workers", 1)["e2e_s"]["mean"]
    assert simulate(SMALL, "--set", "engine.prefix_caching=false")["prefix_hit_ratio"] == 0


def test_rate_requests_and_targets_are_heeded():
    assert simulate(SMALL, "--rate", 0.1)["duration_s"] > 3 * simulate(SMALL)["duration_s"]
    assert simulate(SMALL, "--requests", 7)["requests"] == 7
    slo = simulate(SMALL, "--slo-ttft-s", 0)["slo"]
    assert (slo["ttft_s"], slo["tpot_s"], slo["attained"]) == (0.0, 0.1, 0.0)


def test_roles_count_workers():
    assert simulate(SMALL, "--roles", "3xmixed, mixed")["workers"] == 4
    assert "leave one out" in refusal("simulate", SMALL, "--roles", "3xmixed", "--workers", 2)
    assert "roles are mixed, prefill, decode" in refusal("simulate", SMALL, "--roles", "6xfast")


def test_roles_may_differ():
    report = simulate(SMALL, "--roles", "2xmixed,1xprefill,3xdecode", "--set", "disaggregate=always")
    assert (report["workers"], report["roles"]) == (6, {"mixed": 2, "prefill": 1, "decode": 3})
    assert report["disaggregated"] == 1.0
    assert simulate(SMALL)["disaggregated"] == 0.0
    table = invoke("simulate", SMALL, "--roles", "2xmixed,1xprefill,1xdecode").stdout
    assert "on 2 mixed + 1 prefill + 1 decode x" in table
    assert "on pairs" in table


def test_a_policy_that_wants_roles_which_the_fleet_has_not_says_what_it_does_instead():
    result = invoke("simulate", SMALL, "--placement", "dist_sched")
    assert "note: dist_sched: the placement chooses between" in result.stderr
    result = invoke("compare", SMALL, "--placement", "round_robin", "--roles", "2xmixed,1xdecode", "--jobs", 1)
    assert "note: round_robin: there are workers for decode only, but none for prefill" in result.stderr


def test_requests_that_never_fit_are_told_with_their_reason():
    result = invoke(
        "simulate", "poisson:requests=30,input_tokens=3000", "--json", "--set", "engine.max_model_len=2048"
    )
    assert json.loads(result.stdout)["rejected"] > 0
    assert "where 2048 fit (max_model_len)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--placement", "best"], ["no placement policy `best`", *catalog.placement_policies()]),
        (["--queue", "best"], ["no queue policy `best`", *catalog.queue_policies()]),
        (["--queue", "fcfs+svf"], ["no order of its own"]),
        (["--profile", "b200"], ["no profile `b200`", "h100-llama-3.1-8b"]),
        (
            ["--set", "quantum=1"],
            ["no setting `quantum`", "prefill_window_s", "queue.patience_s", "engine.kv_tokens"],
        ),
        (["--queue", "fcfs", "--set", "queue.patience_s=soon"], ["queue.patience_s"]),
        (["--set", "prefill_window_s=-1"], ["prefill_window_s"]),
        (["--set", "prefill_window_s"], ["NAME=VALUE"]),
        (["--set", "engine.max_num_seqs=none"], ["max_num_seqs"]),
        (["--set", "engine.kv_tokens=10"], ["engine"]),
        (["--binding", "never"], ["late"]),
        (["--rate", "0"], ["rate"]),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(arguments, words):
    message = refusal("simulate", SMALL, *arguments)
    for word in words:
        assert word in message


def test_a_workload_that_cannot_be_had_is_one_message(tmp_path):
    assert "generators are" in refusal("simulate", "nonsense")
    broken = tmp_path / "trace.jsonl"
    broken.write_text('{"timestamp": 0, "input_length": 10, "output_length": 1}\nnot json\n')
    message = refusal("simulate", broken)
    assert f"{broken}, line 2" in message
    assert message.count("\n") == 1


def test_help_shows_examples():
    for command in ("simulate", "compare"):
        text = invoke(command, "--help").stdout
        assert "Examples:" in text
        assert f"fairlead {command}" in text


def test_the_command_line_starts_without_the_lab():
    script = (
        "import sys, router.commands.cli\n"
        "print([m for m in sys.modules if m.startswith(('workers', 'policies', 'rich'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "workers.simulator" not in loaded.stdout
    assert "policies.scheduler" not in loaded.stdout


# -- compare


def test_compare_runs_every_combination_and_sorts_them():
    result = invoke(
        "compare",
        "chat:requests=60",
        "--placement",
        "round_robin,cache_aware",
        "--queue",
        "fcfs",
        "--workers",
        2,
        "--sort",
        "hit-ratio",
        "--jobs",
        1,
        "--json",
    )
    reports = json.loads(result.stdout)
    assert {report["binding"] for report in reports[:2]} == {"late", "early"}
    assert [report["placement"] for report in reports] == ["cache_aware"] * 2 + ["round_robin"] * 2
    assert all(report["limit"]["prefix_hit_ratio"] >= report["prefix_hit_ratio"] for report in reports)
    assert {report["queue"] for report in reports} == {"fcfs"}


def test_compare_prints_a_row_per_combination_of_all_policies():
    result = invoke("compare", SMALL, "--all", "--binding", "late", "--workers", 2, "--jobs", 1)
    assert result.exit_code == 0, result.output
    rows = len(catalog.placement_policies()) * len(catalog.queue_policies())
    assert sum(" late " in line and " / " not in line for line in result.stdout.splitlines()) == rows
    for name in (*catalog.placement_policies(), *catalog.queue_policies()):
        assert name in result.stdout


def test_compare_names_the_limit_and_the_rule_to_beat():
    names = f"{catalog.DEFAULT_PLACEMENT},round_robin"
    result = invoke("compare", SMALL, "--placement", names, "--queue", "fcfs", "--seeds", 2, "--jobs", 1)
    assert result.exit_code == 0, result.output
    for words in (
        "of any router",
        "seeds 0, 1",
        "±",
        "end to end p99: fcfs / ",
        "best other fcfs / round_robin / ",
    ):
        assert words in result.stdout


def test_an_interrupted_comparison_prints_what_is_finished(monkeypatch):
    replays = []
    original = comparison.replay

    def interrupted(*arguments):
        replays.append(arguments)
        if len(replays) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(comparison, "replay", interrupted)
    result = invoke("compare", SMALL, "--placement", "round_robin,cache_aware", "--jobs", 1, "--json")
    assert result.exit_code == 130
    assert len(json.loads(result.stdout)) == 2
    assert "interrupted; 2 of 4 replays were finished" in result.stderr


def test_workers_come_and_go_and_keys_are_text():
    report = simulate(SMALL, "--workers", 2, "--keys", "text", "--fleet-changes", "join@0.2,lose@0.5:worker-0")
    assert report["keys"] == "text"
    assert report["failed"] + report["retries"] > 0
    assert "no worker-9 at 3 s" in refusal("simulate", SMALL, "--fleet-changes", "lose@3:worker-9")


def test_several_seeds_are_one_report():
    report = simulate(SMALL, "--seed", 4, "--seeds", 2)
    assert report["seeds"] == [4, 5]
    assert [run["ttft_s"]["mean"] for run in report["runs"]] == [
        simulate(SMALL, "--seed", seed)["ttft_s"]["mean"] for seed in (4, 5)
    ]
    low, high = report["spread"]["e2e_s"]["p99"]
    assert low < report["e2e_s"]["p99"] < high


def test_compare_refuses_what_it_does_not_know():
    assert "no placement policy `x`" in refusal("compare", SMALL, "--placement", "cache_aware,x")
    assert "cannot sort by `fun`" in refusal("compare", SMALL, "--sort", "fun")
    assert "known are late, early" in refusal("compare", SMALL, "--binding", "late,never")
    assert "no setting `queue.fun`" in refusal("compare", SMALL, "--all", "--set", "queue.fun=1")


def test_plots_are_drawn_as_png_files(tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "pictures"
    result = invoke(
        "compare", SMALL, "--placement", "round_robin,cache_aware", "--workers", 2, "--jobs", 1, "--plot", folder
    )
    assert result.exit_code == 0, result.output
    files = sorted(file.name for file in folder.iterdir())
    assert files == [
        "end_to_end.png",
        "hit_ratio.png",
        "service_per_client.png",
        "throughput_and_fairness.png",
        "times.png",
        "ttft.png",
        "worker_load.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())


def test_plots_without_matplotlib_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "router.lab.plots", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "fairlead-router[plots]" in refusal("compare", SMALL, "--plot", tmp_path)
