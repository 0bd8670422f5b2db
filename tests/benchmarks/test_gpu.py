"""The benchmarks for a GPU, as far as they can be looked at without one.

Commands, shares of memory and models are values; the parts run in front of simulated servers, which a stand-in for
vLLM's command starts.
"""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet.load import WORDS, LoadSettings
from benchmarks.fleet.servers import specs_of
from benchmarks.gpu import cuda
from benchmarks.gpu.__main__ import run
from benchmarks.gpu.parts import Setting
from benchmarks.gpu.shapes import SHAPES, tokenizer, write_model
from benchmarks.gpu.sizes import SIZES
from workers.launch.devices import Cpu, Gpu
from workers.launch.disaggregation import Split
from workers.launch.plan import flags_in

ROOT = Path(__file__).parents[2]
H200, H100 = Gpu("0", "NVIDIA H200", 143771 << 20), Gpu("0", "NVIDIA H100 80GB HBM3", 81559 << 20)
LIMITS = SIZES["cuda"].limits


def argument(spec, flag):
    return spec.argv[spec.argv.index(flag) + 1]


# -- the servers


@pytest.fixture
def on_gpu(tmp_path):
    """The commands of a number of servers on one GPU."""
    model = write_model(tmp_path / "llama-3.1-8b", SHAPES["llama-3.1-8b"])

    def specs(count, split=cuda.TOGETHER, gpu=H200):
        settings = cuda.server_settings(gpu, "python3", model, count, LIMITS, split=split)
        return specs_of(settings, tmp_path, range(9000, 9000 + 2 * count))

    return specs


def test_servers_share_one_gpu_and_its_memory_in_equal_parts(on_gpu):
    specs = on_gpu(3)
    assert {spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs} == {"0"}
    assert {argument(spec, "--gpu-memory-utilization") for spec in specs} == {"0.300"}
    [cache] = {int(argument(spec, "--kv-cache-memory-bytes")) for spec in specs}
    share = 0.3 * H200.memory_bytes
    assert 0 < share - (SHAPES["llama-3.1-8b"].weight_bytes + cuda.RESERVE_BYTES + cache) < 1 << 30
    assert len({spec.port for spec in specs}) == len({spec.scratch for spec in specs}) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_all_shares_together_leave_something_of_the_gpu(count):
    assert count * cuda.memory_share(count) <= cuda.MEMORY_SHARE < 1


def test_a_model_without_weights_gets_random_ones_and_one_with_weights_its_own(on_gpu, tmp_path):
    assert argument(on_gpu(1)[0], "--load-format") == "dummy"
    model = write_model(tmp_path / "little", SHAPES["little"])
    settings = cuda.server_settings(H200, "python3", model, 1, LIMITS)
    assert "--load-format" not in settings.extra_args


def test_no_flag_is_given_twice_and_nothing_reaches_for_the_network(on_gpu):
    for spec in on_gpu(4, Split(1, 1)):
        words = [word for word in spec.argv if word.startswith("--")]
        assert len(words) == len(set(words)) == len(flags_in(spec.argv))
        assert spec.environment["HF_HUB_OFFLINE"] == spec.environment["VLLM_NO_USAGE_STATS"] == "1"


def test_a_pair_stands_before_the_colocated_servers_each_with_ports_of_its_own(on_gpu):
    specs = on_gpu(4, Split(1, 1))
    assert [spec.role for spec in specs] == ["prefill", "decode", None, None]
    assert ["--kv-transfer-config" in spec.argv for spec in specs] == [True, True, False, False]
    ports = [port for spec in specs for port in (spec.port, spec.side_port) if port is not None]
    assert len(set(ports)) == len(ports) == 6
    assert len({spec.name for spec in specs}) == 4
    sides = [spec.environment.get("VLLM_NIXL_SIDE_CHANNEL_PORT") for spec in specs]
    assert sides == [*map(str, (specs[0].side_port, specs[1].side_port)), None, None]


def test_what_does_not_fit_is_refused_with_the_figures_and_the_default_model_is_one_that_fits(on_gpu, tmp_path):
    with pytest.raises(cuda.TooLarge, match=r"16.1 GB of weights.* 4 servers on NVIDIA H100 80GB HBM3"):
        on_gpu(4, gpu=H100)
    assert cuda.default_model(H200, tmp_path, 4, LIMITS).name == "llama-3.1-8b"
    assert cuda.default_model(H100, tmp_path, 2, LIMITS).name == "llama-3.1-8b"
    assert cuda.default_model(H100, tmp_path, 4, LIMITS).name == "llama-3.2-1b"
    strange = tmp_path / "strange"
    strange.mkdir()
    with pytest.raises(cuda.TooLarge, match="no weights"):
        cuda.weight_bytes(strange)


def test_the_variables_that_the_user_has_set_stay(on_gpu, monkeypatch):
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert on_gpu(1)[0].environment["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


def test_without_a_gpu_a_part_is_skipped_with_the_reason_and_what_is_needed():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "pairs", "--vllm-python", sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "skipped: " in done.stderr
    assert "needs one NVIDIA GPU" in done.stderr


# -- the models


def test_weights_are_as_many_as_the_shape_says_and_read_back_as_written(tmp_path):
    shape = SHAPES["little"]
    data = (write_model(tmp_path / "little", shape) / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert len(body) == shape.weight_bytes
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == dict(shape.tensors())
    begin, end = header["model.embed_tokens.weight"]["data_offsets"]
    halves = np.frombuffer(body[begin:end], "<u2").astype(np.uint32) << 16
    values = halves.view(np.float32)
    assert abs(values.mean()) < 0.001
    assert values.std() == pytest.approx(0.1, rel=0.02)


def test_the_large_shapes_are_the_published_ones():
    assert SHAPES["llama-3.1-8b"].weight_bytes / 2 == pytest.approx(8.03e9, rel=1e-3)
    assert SHAPES["llama-3.2-1b"].weight_bytes / 2 == pytest.approx(1.236e9, rel=1e-3)
    assert SHAPES["llama-3.1-8b"].kv_bytes == 131072


@pytest.mark.parametrize("vocabulary", [2048, 128256])
def test_the_tokenizer_has_a_text_for_every_token_and_one_token_for_frequent_words(vocabulary):
    model = tokenizer(vocabulary)["model"]
    assert sorted(model["vocab"].values()) == list(range(vocabulary))
    assert all(word in model["vocab"] and "Ġ" + word in model["vocab"] for word in WORDS)


def test_a_model_that_is_there_stays(tmp_path):
    folder = write_model(tmp_path / "little", SHAPES["little"])
    before = (folder / "config.json").stat().st_mtime_ns
    assert (write_model(folder, SHAPES["little"]) / "config.json").stat().st_mtime_ns == before


# -- the parts, in front of simulated servers


SMALL = replace(
    SIZES["cpu"],
    profile=("--prompt-lengths", "8,64", "--batches", "1,2", "--output-tokens", "48", "--repeats", "1"),
    lab="poisson:requests=8,rate={rate},input_tokens=60,output_tokens=4,prefixes=2,prefix_tokens=32",
    lab_rate=20,
    heatmap=("--prompt-lengths", "32", "--ratios", "0.25,0.5", "--rates", "20", "--requests", "2"),
    fleet=LoadSettings(sessions=1, system_words=40, chat_output_tokens=8, flood_open=6, flood_words=(30, 60)),
    seconds=1.0,
    warm_up_s=0.2,
    pairs={"long prompts": "poisson:requests=8,rate=40,input_tokens=100,output_tokens=8,shared=0"},
)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent / 'simulated_vllm'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Setting(
        device=Cpu(1 << 30),
        python=sys.executable,
        model=write_model(tmp_path / "little", SHAPES["little"]),
        servers=2,
        sizes=SMALL,
        out=tmp_path,
        logs=tmp_path / "logs",
        seed=7,
        at_most_s=100.0,
        routers="fairlead:queue=fcfs,smg",
        peers=tmp_path,
    )


async def found(part, setting):
    """What a part says and what it was taken on, as it would be written."""
    document = json.loads(json.dumps(await run(part, setting)))
    about = document["setting"]
    assert (about["part"], about["seed"], about["model"], about["servers"]) == (part, 7, "little", 2)
    assert about["machine"]["device"] == "cpu"
    assert about["commit"]
    return document[part]


async def test_a_profile_is_taken_alone_and_with_all_busy_and_the_lab_is_held_beside_reality(setting):
    part = await found("profile", setting)
    assert list(part["profiles"]) == ["alone", "all busy"]
    urls = [content["conditions"]["url"] for content in part["profiles"].values()]
    assert urls[1].split(", ")[0] == urls[0]
    columns = part["lab_and_reality"]
    assert list(columns) == ["virtual time, alone.json", "virtual time, busy.json", "real workers"]
    assert columns["real workers"]["completed"] == 8
    assert (setting.out / "profile.png").stat().st_size > 1000


async def test_a_heatmap_is_measured_and_every_prompt_of_the_pair_was_fetched(setting):
    part = await found("heatmap", setting)
    assert part["map"]["conditions"]["batches_done"] == 2
    assert part["map"]["conditions"]["hardware"] == "CPU"
    assert part["fetched_tokens"] == 32 + 2 * 2 * 2 * 32
    assert (setting.out / "heatmap.png").stat().st_size > 1000


async def test_the_fleets_routers_run_and_those_that_are_not_installed_are_named(setting):
    part = await found("fleet", setting)
    assert [each["router"] for each in part["runs"]] == ["fairlead:queue=fcfs", "fairlead:queue=fcfs, no flood"]
    assert "smg" in part["left_out"]["smg"]
    assert part["runs"][0]["figures"]["requests"] > 0
    assert "records" not in part["runs"][0]
    assert (setting.out / "fleet_ttft.png").exists()
    assert json.loads((setting.logs / "fleet-raw.json").read_text())["runs"][0]["records"]


async def test_colocated_servers_and_a_pair_answer_the_same_requests(setting):
    part = await found("pairs", setting)
    columns = part["workloads"]["long prompts"]["columns"]
    assert {name: column["completed"] for name, column in columns.items()} == {"colocated": 8, "prefill/decode": 8}
    assert columns["colocated"]["fetched_tokens"] == 0
    assert columns["prefill/decode"]["fetched_tokens"] > 0
    assert part["fetched_tokens"] == columns["prefill/decode"]["fetched_tokens"]
    assert (setting.out / "pairs.png").exists()
