from types import SimpleNamespace

import pynvml
import pytest

from workers.launch import devices
from workers.launch.devices import Cpu, choose_gpus, find_cpus, find_gpus, visible_ids
from workers.launch.errors import NoGpu

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


@pytest.fixture
def three_gpus(monkeypatch):
    """NVML of a machine with three GPUs, numbered 0, 1, 2; a handle is the number or the UUID itself."""
    nvml = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(UUIDS),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUUID=lambda index: UUIDS[index],
        nvmlDeviceGetName=lambda handle: f"GPU {handle}".encode(),
        nvmlDeviceGetMemoryInfo=lambda _handle: SimpleNamespace(total=80 << 30),
    )
    monkeypatch.setattr(devices, "pynvml", nvml)


def test_all_gpus_are_found_when_nothing_hides_them(three_gpus):
    assert [gpu.id for gpu in find_gpus({})] == ["0", "1", "2"]
    assert find_gpus({})[1].name == "GPU 1"
    assert find_gpus({})[1].memory_bytes == 80 << 30


def test_cuda_visible_devices_hides_and_orders(three_gpus):
    assert [gpu.id for gpu in find_gpus({"CUDA_VISIBLE_DEVICES": "2,0"})] == ["2", "0"]


def test_no_gpu_left_is_an_error_that_says_who_hid_them(three_gpus):
    for value in ("", "-1"):
        with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES hides every GPU"):
            find_gpus({"CUDA_VISIBLE_DEVICES": value})


def test_a_machine_without_a_driver_is_pointed_to_the_cpu(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(devices.pynvml, "nvmlInit", fail)
    with pytest.raises(NoGpu, match=r"no GPU found.*--device cpu"):
        find_gpus({})


def test_visible_devices_may_be_uuids_their_prefixes_or_mig_slices():
    assert visible_ids("GPU-cc33, GPU-aa", UUIDS) == ["2", "0"]
    assert visible_ids("MIG-12", UUIDS) == ["MIG-12"]
    assert visible_ids("1,-1,0", UUIDS) == ["1"]


@pytest.mark.parametrize("entry", ["3", "GPU-a", "GPU-zz", "all"])
def test_a_visible_device_that_does_not_exist_or_is_ambiguous_is_named(entry):
    with pytest.raises(NoGpu, match=entry):
        visible_ids(entry, UUIDS)


def test_gpus_are_chosen_by_their_place_among_the_visible_ones(three_gpus):
    visible = find_gpus({"CUDA_VISIBLE_DEVICES": "2,0"})
    assert [gpu.id for gpu in choose_gpus(visible, [1])] == ["0"]
    for indices in ([2], [-1], [0, 0]):
        with pytest.raises(NoGpu):
            choose_gpus(visible, indices)


def test_cpu_workers_divide_the_memory_that_is_available(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu amx_tile_not avx\n")
    assert find_cpus(2, tmp_path) == [Cpu(32 * 1024)] * 2


def test_a_cpu_with_amx_is_known_by_its_flags(tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable:   64 kB\n")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile avx\n")
    assert find_cpus(1, tmp_path) == [Cpu(64 * 1024, amx=True)]
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd\n")
    assert find_cpus(1, tmp_path) == [Cpu(64 * 1024)]
