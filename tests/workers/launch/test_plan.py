import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workers.launch.devices import Cpu, Gpu
from workers.launch.disaggregation import Split
from workers.launch.errors import (
    BadArgument,
    BadPairs,
    BadTensorParallel,
    NixlNotInstalled,
    PortTaken,
    VllmNotInstalled,
)
from workers.launch.plan import LaunchSpec, check_ports, check_vllm, flags_in, plan

GPUS = [Gpu(id=str(index), name="H200", memory_bytes=141 << 30) for index in range(4)]
CPUS = [Cpu(memory_bytes=2 << 30)] * 3


def specs_of(devices, *extra_args, model="org/model", ports=range(9000, 9010), **options):
    return plan(
        model,
        devices,
        ports=ports,
        extra_args=extra_args,
        vllm_python="/venv/bin/python",
        log_dir=Path("/logs"),
        scratch_prefix="/tmp/fairlead-1-",
        **options,
    )


def value_of(spec: LaunchSpec, flag: str) -> str:
    assert spec.argv.count(flag) == 1
    return spec.argv[spec.argv.index(flag) + 1]


def test_each_gpu_gets_a_worker_with_a_port_a_log_and_a_scratch_directory_of_its_own():
    specs = specs_of(GPUS)
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0", "1", "2", "3"]
    assert [spec.url for spec in specs] == [f"http://127.0.0.1:{9000 + n}" for n in range(4)]
    assert [value_of(spec, "--port") for spec in specs] == ["9000", "9001", "9002", "9003"]
    assert len({spec.log for spec in specs}) == len({spec.scratch for spec in specs}) == 4
    assert all(spec.environment["VLLM_RPC_BASE_PATH"] == str(spec.scratch) for spec in specs)


def test_the_command_is_the_interpreter_s_own_vllm_with_what_the_router_wants_to_know_switched_on():
    (spec,) = specs_of(GPUS[:1])
    assert spec.argv[:5] == ("/venv/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", "org/model")
    assert "--enable-prompt-tokens-details" in spec.argv
    assert "--enable-request-id-headers" in spec.argv


def test_tensor_parallel_groups_neighbouring_gpus():
    specs = specs_of(GPUS, tensor_parallel=2)
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0,1", "2,3"]
    assert value_of(specs[0], "--tensor-parallel-size") == "2"


@pytest.mark.parametrize(("devices", "size"), [(GPUS, 3), (GPUS, 8), (GPUS, 0), ([], 1), (CPUS, 3)])
def test_a_tensor_parallel_size_that_does_not_fit_is_refused(devices, size):
    with pytest.raises(BadTensorParallel):
        specs_of(devices, tensor_parallel=size)


def test_a_gpu_worker_has_no_settings_meant_for_the_cpu():
    (spec,) = specs_of(GPUS[:1])
    assert not {"--enforce-eager", "--dtype", "--max-model-len"} & set(spec.argv)
    assert "OMP_NUM_THREADS" not in spec.environment


def test_gpu_indices_mean_what_nvml_means_whatever_order_the_user_has_set():
    (spec,) = specs_of(GPUS[:1], user_environment={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert spec.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_cpu_workers_share_the_memory_and_start_fast():
    spec = specs_of(CPUS)[2]
    assert value_of(spec, "--kv-cache-memory-bytes") == str(512 << 20)
    assert value_of(spec, "--dtype") == "bfloat16"
    assert value_of(spec, "--max-model-len") == "auto"
    assert "--enforce-eager" in spec.argv
    assert spec.environment["OMP_NUM_THREADS"] == "1"
    assert spec.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in spec.environment


def test_a_cpu_with_amx_computes_in_float32_which_vllm_gets_right_there():
    [spec] = specs_of([Cpu(memory_bytes=2 << 30, amx=True)])
    assert value_of(spec, "--dtype") == "float32"


def test_a_cpu_worker_of_a_big_machine_does_not_take_all_of_it():
    (spec,) = specs_of([Cpu(memory_bytes=1 << 40)])
    assert value_of(spec, "--kv-cache-memory-bytes") == str(1 << 30)


def test_only_a_model_on_disk_is_loaded_offline(tmp_path):
    (hub,), (local,) = specs_of(CPUS[:1]), specs_of(CPUS[:1], model=str(tmp_path))
    assert "HF_HUB_OFFLINE" not in hub.environment
    assert local.environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "given",
    [
        ["--kv-cache-memory-bytes", "99"],
        ["--kv-cache-memory-bytes=99"],
        ["--kv_cache_memory_bytes", "99"],
    ],
)
def test_what_the_user_passes_to_vllm_wins_and_is_passed_once(given):
    (spec,) = specs_of(CPUS[:1], *given)
    assert spec.argv[-len(given) :] == tuple(given)
    assert "--kv-cache-memory-bytes" not in spec.argv[: -len(given)]
    assert "--dtype" in spec.argv


def test_switching_a_flag_off_counts_as_having_said_it():
    (spec,) = specs_of(CPUS[:1], "--no-enforce-eager")
    assert "--enforce-eager" not in spec.argv


def test_the_user_s_environment_wins_over_ours():
    (spec,) = specs_of(CPUS[:1], user_environment={"OMP_NUM_THREADS": "4", "HOME": "/home/a"})
    assert spec.environment["OMP_NUM_THREADS"] == "4"
    assert "HOME" not in spec.environment


@pytest.mark.parametrize("flag", ["--port", "--host", "--api-key", "--model", "-tp", "--tensor_parallel_size=2"])
def test_arguments_that_the_launcher_must_choose_are_refused_with_the_way_to_say_it(flag):
    with pytest.raises(BadArgument, match=r"(`--|argument|gateway)"):
        specs_of(GPUS, flag, "1")


def test_flags_are_recognised_in_every_spelling_and_values_are_not_flags():
    words = ["--max_model_len=5", "--no-enable-prefix-caching", "-q", "awq", "--seed", "-1"]
    assert flags_in(words) == {"--max-model-len", "--enable-prefix-caching", "--quantization", "--seed"}


def test_a_split_fleet_has_prefill_workers_first_and_each_worker_a_port_for_the_others():
    specs = specs_of(GPUS, split=Split(1, 2), user_environment={"VLLM_NIXL_SIDE_CHANNEL_PORT": "1"})
    assert [(spec.name, spec.role) for spec in specs] == [
        ("prefill-0", "prefill"),
        ("decode-0", "decode"),
        ("decode-1", "decode"),
    ]
    assert [spec.port for spec in specs] == [9000, 9001, 9002]
    assert [spec.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] for spec in specs] == ["9003", "9004", "9005"]
    configs = [json.loads(value_of(spec, "--kv-transfer-config")) for spec in specs]
    assert [config["kv_role"] for config in configs] == ["kv_producer", "kv_consumer", "kv_consumer"]
    assert {config["kv_connector"] for config in configs} == {"NixlConnector"}
    assert configs[1]["kv_load_failure_policy"] == "recompute"
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0", "1", "2"]


def test_workers_of_a_split_fleet_may_have_several_gpus():
    specs = specs_of(GPUS, split=Split(2, 2), tensor_parallel=2)
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0,1", "2,3"]


def test_a_connector_of_the_user_s_own_replaces_nixl():
    own = '{"kv_connector":"ExampleConnector","kv_role":"kv_both"}'
    specs = specs_of(GPUS, "--kv-transfer-config", own, split=Split(1, 1))
    assert [value_of(spec, "--kv-transfer-config") for spec in specs] == [own, own]
    assert [spec.role for spec in specs] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("split", "why"),
    [
        (Split(1, 0), "belong together"),
        (Split(0, 2), "belong together"),
        (Split(-1, -1), "belong together"),
        (Split(3, 2), "needs 5 GPUs; there are 4"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(split, why):
    with pytest.raises(BadPairs, match=why):
        specs_of(GPUS, split=split)
    with pytest.raises(BadTensorParallel):
        specs_of(GPUS, split=Split(1, 2), tensor_parallel=2)


def test_a_side_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        specs = specs_of(CPUS[:2], ports=[1, 2, 3, port], split=Split(1, 1))
        with pytest.raises(PortTaken, match=f"port {port}"):
            check_ports([replace(specs[1], port=port)])
        with pytest.raises(PortTaken, match=f"port {port}"):
            check_ports([replace(specs[1], port=0)])


async def test_pairs_want_nixl_beside_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_vllm"))
    await check_vllm(sys.executable)
    with pytest.raises(NixlNotInstalled, match="pip install nixl"):
        await check_vllm(sys.executable, nixl=True)
    (tmp_path / "nixl.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent / 'fake_vllm'}:{tmp_path}")
    await check_vllm(sys.executable, nixl=True)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken.*--base-port"):
            check_ports(specs_of(CPUS[:1], ports=[port]))


async def test_an_interpreter_without_vllm_is_told_apart_from_none_at_all(tmp_path):
    with pytest.raises(VllmNotInstalled, match=r"not installed.*pip install 'vllm>=0\.20\.2'.*--vllm-python"):
        await check_vllm(sys.executable)
    with pytest.raises(VllmNotInstalled, match="does not run"):
        await check_vllm(str(tmp_path / "python"))
    with pytest.raises(VllmNotInstalled, match="no Python interpreter"):
        await check_vllm("/bin/false")


async def test_an_interpreter_with_vllm_passes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_vllm"))
    await check_vllm(sys.executable)
