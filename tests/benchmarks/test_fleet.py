"""The comparison on real servers, run on simulated ones: what it reports adds up."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.fleet.comparison import Comparison
from benchmarks.fleet.figures import figures, idle_while_queued, percentile
from benchmarks.fleet.load import LoadSettings, Record, conversations
from benchmarks.fleet.report import as_json, read
from benchmarks.fleet.routers import NotInstalledError, fairlead_config, parse, peer_command
from benchmarks.fleet.servers import ServerSettings, specs_of
from benchmarks.fleet.virtual import OPENING_TOKENS, PROFILE, TURN_TOKENS, simulated, workload
from benchmarks.fleet.watch import Sample
from router.config.schema import Config
from router.lab.profiling.profile_file import read_profile
from workers.simulator.server import SimulatorConfig, simulated_worker

ROOT = Path(__file__).parents[2]


def look(at_s, **given):
    values = {"open": 0, "running": (0, 0), "waiting": (0, 0), "prefix_queries": 0, "prefix_hits": 0}
    values |= {"steps": (0, 0), "step_tokens": (0, 0)}
    return Sample(at_s=at_s, **values | {"preemptions": 0} | given)


# -- the figures


def test_the_window_counts_what_was_sent_in_it_for_latency_and_what_finished_in_it_for_service():
    records = [
        Record("chat-a", sent_s=0.5, first_s=1.5, done_s=2.0, input_tokens=10, output_tokens=5),  # sent before
        Record(
            "chat-a", sent_s=1.0, first_s=1.2, done_s=1.5, input_tokens=100, output_tokens=40, cached_tokens=55
        ),
        Record("chat-b", sent_s=2.9, first_s=3.4, done_s=3.9, input_tokens=7, output_tokens=7),  # done afterwards
        Record("flood", sent_s=2.0, first_s=2.8, done_s=2.9, input_tokens=400, output_tokens=32),
        Record("flood", sent_s=2.5),
        Record("flood", sent_s=2.6, error="status 503"),
    ]
    found = figures(records, [], 1.0, 3.0)
    assert found.requests == 3
    assert found.service == 10 + 100 + 400 + 2 * (5 + 40 + 32)
    assert found.service_per_s == found.service / 2
    assert found.well_behaved_ttft_s.requests == 2
    assert found.well_behaved_ttft_s.mean == pytest.approx((0.2 + 0.5) / 2)
    assert found.flood_ttft_s.p99 == pytest.approx(0.8)
    assert (found.unanswered, found.errors) == (1, 1)
    assert found.prefix_hit_ratio is None
    assert found.chat_hit_ratio == 0.5
    assert found.waiting_max is None


def test_hits_and_waiting_come_from_the_samples_in_the_window():
    samples = [
        look(0.5, prefix_queries=900, prefix_hits=900, waiting=(9, 9)),
        look(1.0, prefix_queries=1000, prefix_hits=900, waiting=(1, 0)),
        look(2.0, prefix_queries=1400, prefix_hits=1000, waiting=(3, 1)),
    ]
    found = figures([], samples, 1.0, 3.0)
    assert found.prefix_hit_ratio == 0.25
    assert [(line.mean, line.max) for line in found.waiting] == [(2.0, 3), (0.5, 1)]
    assert (found.waiting_mean, found.waiting_max) == (1.25, 3)


def test_batches_and_steps_of_an_engine_are_those_of_the_window():
    samples = [
        look(0.5, running=(8, 8), steps=(10, 10), step_tokens=(100, 100)),
        look(1.0, running=(2, 0), steps=(20, 50), step_tokens=(150, 400)),
        look(3.0, running=(4, 0), steps=(40, 50), step_tokens=(450, 400)),
    ]
    one, idle = figures([], samples, 1.0, 4.0).engines
    assert (one.running, one.steps_per_s, one.tokens_per_step) == (3.0, 10.0, 15.0)
    assert (idle.running, idle.steps_per_s, idle.tokens_per_step) == (0.0, 0.0, 0.0)


def test_a_server_is_idle_beside_a_queue_only_when_two_looks_in_a_row_say_so():
    busy, idle = look(0, open=9, running=(4, 4)), look(0, open=9, running=(4, 0))
    assert idle_while_queued([busy, idle, busy]) == 0.0
    assert idle_while_queued([busy, idle, idle]) == 0.25
    assert idle_while_queued([look(0, open=4, running=(4, 0))] * 3) is None


def test_a_percentile_is_a_value_that_was_seen():
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([1.0], 0.5) == 1.0


# -- the load and the routers


def test_conversations_depend_on_the_seed_and_share_the_clients_system_prompt():
    def opening(client, session, **settings):
        return next(conversations(client, session, LoadSettings(**settings)))

    assert opening("chat-a", 0) == opening("chat-a", 0)
    assert opening("chat-a", 0)[0] == opening("chat-a", 1)[0]
    assert opening("chat-a", 0)[1] != opening("chat-a", 1)[1]
    assert opening("chat-a", 0)[0] != opening("chat-b", 0)[0]
    assert opening("chat-a", 0)[0] != opening("chat-a", 0, seed=1)[0]


def test_settings_after_the_name_become_the_gateways_configuration():
    choice = parse("fairlead:placement=cache_aware:placement.match_ratio=0.5:queue=dlpm:hold_ms=20")
    assert fairlead_config(choice, ["http://a:1"], 8) == {
        "workers": [{"url": "http://a:1", "max_num_seqs": 8}],
        "policies": {
            "placement": {"name": "cache_aware", "match_ratio": 0.5},
            "queue": {"name": "dlpm"},
            "hold_ms": 20,
        },
    }
    learned = fairlead_config(parse("fairlead:max_num_seqs=learned"), ["http://a:1"], 8)
    assert learned == {"workers": [{"url": "http://a:1"}], "policies": {}}
    blind = fairlead_config(parse("fairlead:tokenizer=text:kv_events=off"), [], 8)
    assert blind == {
        "workers": [],
        "policies": {},
        "tokenization": {"tokenizer": "text"},
        "health": {"kv_events": False},
    }
    assert Config.load(None, {}, blind).health.kv_events == "off"


def test_all_routers_run_in_turn_as_often_as_asked():
    one, two = parse("fairlead"), parse("smg")
    plan = Comparison([one, two], LoadSettings(), 1.0, 0.0, no_flood=True, repeats=2).plan()
    assert [choice.label for choice, _ in plan] == ["fairlead", "smg", "fairlead", "smg", "fairlead, no flood"]


def test_servers_publish_their_cache_events_on_ports_of_their_own(tmp_path):
    settings = ServerSettings("python", tmp_path, count=2, kv_events=True)
    told = [
        json.loads(spec.argv[spec.argv.index("--kv-events-config") + 1])
        for spec in specs_of(settings, tmp_path, range(9000, 9006))
    ]
    ports = [event[name].rpartition(":")[2] for event in told for name in ("endpoint", "replay_endpoint")]
    assert ports == ["9002", "9003", "9004", "9005"]
    silent = specs_of(ServerSettings("python", tmp_path, count=2), tmp_path, range(9000, 9002))
    assert not any("--kv-events-config" in spec.argv for spec in silent)


@pytest.mark.parametrize("text", ["nginx", "fairlead:late", ""])
def test_what_is_no_router_is_refused(text):
    with pytest.raises(ValueError, match=r"router|settings"):
        parse(text)


def test_a_peer_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(NotInstalledError, match="smg"):
        peer_command("smg", tmp_path)


# -- the whole of it


async def test_a_run_in_front_of_simulated_servers_reports_what_the_servers_have_seen(tmp_path):
    report = await compared(tmp_path, "fairlead:queue=fcfs,smg", "--no-flood")
    assert "smg" in report["left_out"]["smg"]
    flooded, calm = report["runs"]
    assert [flooded["router"], calm["router"]] == ["fairlead:queue=fcfs", "fairlead:queue=fcfs, no flood"]
    assert set(flooded["figures"]["clients"]) == {"chat-a", "chat-b", "flood"}
    assert set(calm["figures"]["clients"]) == {"chat-a", "chat-b"}
    for run in report["runs"]:
        found = run["figures"]
        assert found["errors"] == found["unanswered"] == run["missed_samples"] == 0
        assert found["requests"] == sum(client["requests"] for client in found["clients"].values()) > 0
        assert found["service"] == found["input_tokens"] + 2 * found["output_tokens"]
        assert 0 < found["well_behaved_ttft_s"]["p50"] <= found["well_behaved_ttft_s"]["p99"]
        assert found["chat_hit_ratio"] > 0.2
        assert found["prefix_hits"] <= found["prefix_queries"]
        assert len(found["waiting"]) == 3
        finished = [record for record in run["records"] if record["done_s"] is not None]
        assert {record["output_tokens"] for record in finished} <= {40, 32}
        # Every request reached the servers, each sample's open ones included.
        assert max(sum(sample["running"]) for sample in run["samples"]) > 0


def test_the_load_in_virtual_time_is_that_of_the_servers_as_far_as_a_lab_can_tell():
    settings = LoadSettings(sessions=2, turns=3, flood_open=1)
    profile = read_profile(PROFILE)
    made = workload(settings, 20.0, profile)
    requests = list(made.requests)
    first = {each.client: each for each in requests if each.after is None}
    assert set(first) == {"chat-a", "chat-b", "flood"}
    assert first["chat-a"].key[:64] != first["chat-b"].key[:64]
    chats = [each for each in requests if each.client == "chat-a"]
    assert len({each.key[: 8 * 8] for each in chats}) == 1, "all begin with the client's system prompt"
    assert {each.output_tokens for each in chats} == {40}
    longest = OPENING_TOKENS + 250 + 3 * (TURN_TOKENS + 20) + 2 * 40
    assert max(each.input_tokens for each in chats) <= longest
    # No engine answers one chat faster than this many times in 20 s.
    assert len(chats) / 2 >= 20.0 / (40 * profile.step_s(1, 0))


def test_engines_that_share_cores_serve_less_in_virtual_time():
    def served(cores):
        options = SimpleNamespace(
            max_num_seqs=8, request_s=0.03, reply_s=0.01, cores=cores, servers=3, profile=PROFILE,
            warm_up=2.0, seconds=10.0,
        )  # fmt: skip
        return simulated(parse("fairlead"), LoadSettings(sessions=4, flood_open=0), options).figures.service_per_s

    assert served(1) < 0.6 * served(3) < 0.7 * served(0)


async def test_repeats_of_the_friendly_scenario_have_no_flood_and_one_row_a_router(tmp_path):
    report = await compared(
        tmp_path, "fairlead", "--scenario", "friendly", "--sessions", "2", "--repeats", "2", flood=()
    )
    assert report["setting"]["load"]["flood_open"] == 0
    assert [run["router"] for run in report["runs"]] == ["fairlead", "fairlead"]
    for run in report["runs"]:
        assert set(run["figures"]["clients"]) == {"chat-a", "chat-b"}
        assert run["figures"]["e2e_mean_s"] >= run["figures"]["well_behaved_ttft_s"]["mean"]
    assert report["told"].count("│ fairlead ") == 1
    file = tmp_path / "report.json"
    setting, runs, left_out = read([file, file])
    assert (setting["scenario"], len(runs), left_out) == ("friendly", 4, {})
    assert json.loads(as_json(setting, runs[:2], left_out)) == json.loads(file.read_text())
    other = tmp_path / "other.json"
    other.write_text(file.read_text().replace('"sessions": 2', '"sessions": 3'))
    with pytest.raises(ValueError, match="another load"):
        read([file, other])


async def compared(folder, routers, *options, flood=("--flood-open", "12")):
    """The report of the command in front of three simulated servers that do not take long."""
    config = SimulatorConfig(model="tiny", max_num_seqs=4)
    async with simulated_worker(config) as one, simulated_worker(config) as two, simulated_worker(config) as three:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.fleet", "--model", "tiny", "--routers", routers),
            *("--workers-at", f"{one.url},{two.url},{three.url}", "--peers-python-env", str(folder)),
            *("--seconds", "1.5", "--warm-up", "0.5", *flood, "--max-num-seqs", "4", *options),
            *("--json", str(folder / "report.json")),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return json.loads((folder / "report.json").read_text()) | {"told": told.decode()}
