"""`fairlead compose`: what it writes is right for the GPUs, and what it refuses leaves nothing behind."""

import errno
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from compose_file import DEPLOY, ROOT, VALIDATOR, device_ids, interpolated, mounts, read
from typer.testing import CliRunner

from router.commands import compose_file as compose
from router.commands.cli import cli
from router.commands.compose_file import ComposeOptions, ComposeRefused, document, fleet
from router.config.schema import Config
from workers.launch import devices
from workers.launch.errors import NoGpu

ELSEWHERE = ("--elsewhere", "--model", "Qwen/Qwen3-8B")
DRIVERS = ["GPU-0", "GPU-1", "GPU-2", "MIG-3"]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(devices, "find_gpus", lambda: [SimpleNamespace(id=name) for name in DRIVERS])


@pytest.fixture
def free(monkeypatch):
    """Options for three ports that are free."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    numbers = [str(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    names = ("--port", "--prometheus-port", "--grafana-port")
    return [word for pair in zip(names, numbers, strict=True) for word in pair]


def invoke(*arguments):
    return CliRunner().invoke(cli, ["compose", *map(str, arguments)])


def written(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.stdout)


def refused(*arguments):
    """The one line that says why."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line.removeprefix("fairlead: ")


def workers(contents):
    return {
        name: device_ids(service)
        for name, service in contents["services"].items()
        if name.split("-")[0] in {"worker", "prefill", "decode"}
    }


def router_config(contents, folder):
    """What the router in the file reads: from its environment, secrets from their files."""
    router = interpolated(contents["services"]["router"], {})
    assert router["command"] == ["serve"]
    environment = dict(router["environment"])
    for mount in mounts(contents, router, folder):
        if "FAIRLEAD_CLIENTS" in environment:
            environment["FAIRLEAD_CLIENTS"] = environment["FAIRLEAD_CLIENTS"].replace(
                mount.target, str(mount.source)
            )
    return Config.load(None, env=environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpus", 1),
        ("--gpus", 8, "--prefill", 2, "--decode", 6),
        ("--gpus", 8, "--prefill", 2, "--decode", 6, "--tensor-parallel", 2),
        ("--gpus", 4, "--no-monitoring"),
        (
            "--gpus",
            2,
            "--client",
            "a/b=KEYS/x",
            "--client",
            "c=KEYS/y",
            "--hf-token-file",
            "KEYS/t",
            "--host",
            "::1",
        ),
        ("--gpus", 2, "--", "--max-model-len", 8192, "--served-model-name", "$weird ${name}"),
    ],
    ids=str,
)
def test_what_is_written_passes_the_schema_and_the_routers_own_check(arguments, tmp_path):
    out = tmp_path / "compose.yaml"
    for name in ("t", "x", "y"):
        (tmp_path / name).write_text(f"secret {name}")
    given = [str(word).replace("KEYS", str(tmp_path)) for word in arguments]
    result = invoke(*ELSEWHERE, "--out", out, *given)
    assert (result.exit_code, result.output) == (0, "")
    contents = read(out)
    VALIDATOR.validate(contents)
    config = router_config(contents, tmp_path)
    assert {worker.url for worker in config.workers} == {f"http://{name}:8000" for name in workers(contents)}
    assert config.listen.host == "0.0.0.0"
    for service in contents["services"].values():
        for mount in mounts(contents, service, tmp_path):
            named = mount.source in contents["volumes"] if isinstance(mount.source, str) else None
            written_by_others = not isinstance(mount.source, str) and "grafana" in mount.source.parts
            assert named or written_by_others or mount.source.exists()
        assert set(service.get("depends_on", ())) <= set(contents["services"])
        assert "profiles" not in service
        assert set(service.get("networks", ())) <= set(contents["networks"])


def test_every_worker_has_its_own_gpus_prefill_first():
    contents = written(*ELSEWHERE, "--gpus", 8, "--prefill", 2, "--decode", 6, "--tensor-parallel", 2)
    assert workers(contents) == {
        "prefill-0": ["0", "1"],
        "decode-0": ["2", "3"],
        "decode-1": ["4", "5"],
        "decode-2": ["6", "7"],
    }
    for name, kv_role in (("prefill-0", "kv_producer"), ("decode-2", "kv_consumer")):
        command = contents["services"][name]["command"]
        assert command[0] == "Qwen/Qwen3-8B"
        assert command[command.index("--tensor-parallel-size") + 1] == "2"
        assert kv_role in command[command.index("--kv-transfer-config") + 1]
    config = router_config(contents, ROOT)
    assert [sorted(worker.roles) for worker in config.workers] == [["prefill"], *[["decode"]] * 3]


def test_gpus_are_those_of_this_machine(four_gpus, free):
    contents = written("--model", "M", *free)
    assert workers(contents) == {f"worker-{n}": [name] for n, name in enumerate(DRIVERS)}
    contents = written("--model", "M", "--gpus", 2, *free)
    assert workers(contents) == {"worker-0": ["GPU-0"], "worker-1": ["GPU-1"]}
    assert contents["services"]["router"]["ports"] == [f"127.0.0.1:{free[1]}:8000"]
    assert contents["services"]["prometheus"]["ports"] == [f"127.0.0.1:{free[3]}:9090"]
    assert contents["services"]["grafana"]["ports"] == [f"127.0.0.1:{free[5]}:3000"]


def test_services_are_those_of_the_committed_file():
    shipped = read(DEPLOY / "compose.yaml")["services"]
    contents = interpolated(written(*ELSEWHERE, "--gpus", 2), {})["services"]
    changed = {"profiles", "depends_on", "volumes", "build", "command", "environment", "configs", "secrets"}
    for name in ("router", "worker-0", "worker-1", "prometheus", "grafana", "dcgm-exporter"):
        kept = {key: value for key, value in shipped[name].items() if key not in changed}
        assert {key: contents[name][key] for key in kept} == kept
    assert contents["worker-0"]["command"] == shipped["worker-0"]["command"]
    assert contents["grafana"]["environment"] == shipped["grafana"]["environment"]


def test_prometheus_is_told_every_worker():
    contents = interpolated(written(*ELSEWHERE, "--gpus", 4, "--prefill", 1, "--decode", 3), {})
    groups = yaml.safe_load(contents["services"]["targets"]["environment"]["VLLM"])
    told = {(target, group["labels"]["role"]) for group in groups for target in group["targets"]}
    assert told == {("prefill-0:8000", "prefill"), *((f"decode-{n}:8000", "decode") for n in range(3))}


def test_options_for_vllm_reach_every_worker_and_dollars_stay_what_they_are():
    contents = interpolated(written(*ELSEWHERE, "--gpus", 2, "--", "--seed", "$HOME", "--no-enable-log"), {})
    for name in workers(contents):
        assert contents["services"][name]["command"][-3:] == ["--seed", "$HOME", "--no-enable-log"]


def test_an_option_that_is_given_replaces_our_own():
    contents = written(*ELSEWHERE, "--gpus", 1, "--", "--no-enable-prompt-tokens-details")
    assert contents["services"]["worker-0"]["command"].count("--enable-prompt-tokens-details") == 0


def test_a_model_in_a_folder_is_mounted_under_its_own_name(tmp_path):
    contents = written("--elsewhere", "--gpus", 1, "--model", tmp_path)
    worker = contents["services"]["worker-0"]
    assert f"{tmp_path}:/model:ro" in worker["volumes"]
    assert worker["command"][0] == "/model"
    assert worker["command"][-2:] == ["--served-model-name", str(tmp_path)]


def test_keys_of_clients_go_in_as_secrets(four_gpus, free, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"key-{name}\n")
    contents = written(
        *("--model", "M", "--client", f"team/a={tmp_path / 'a'}", "--client", f"b={tmp_path / 'b'}"), *free
    )
    config = router_config(contents, ROOT)
    assert [client.name for client in config.clients] == ["team/a", "b"]
    assert "key-a" not in yaml.safe_dump(contents)
    assert contents["secrets"]["hf_token"] == {"file": "/dev/null"}


def test_without_monitoring_only_the_fleet_is_left():
    contents = written(*ELSEWHERE, "--gpus", 2, "--no-monitoring")
    assert set(contents["services"]) == {"router", "worker-0", "worker-1"}
    assert set(contents["volumes"]) == {"model-cache"}


def test_paths_are_seen_from_the_file_that_is_written(tmp_path, monkeypatch):
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    assert invoke(*ELSEWHERE, "--gpus", 1, "--out", "sub/compose.yaml").exit_code == 0
    services = read(tmp_path / "sub" / "compose.yaml")["services"]
    assert services["router"]["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}
    assert "../deploy/prometheus/rules:/etc/prometheus/rules:ro" in services["prometheus"]["volumes"]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["compose.yaml"]


def test_outside_of_a_checkout_the_files_are_found_beside_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    services = written(*ELSEWHERE, "--gpus", 1)["services"]
    assert services["router"]["build"]["context"] == str(ROOT)


def test_workers_only_are_published_for_a_router_elsewhere():
    contents = written(*ELSEWHERE, "--gpus", 2, "--workers-only", "--host", "10.0.0.7")
    VALIDATOR.validate(contents)
    services = contents["services"]
    assert {name: service["ports"] for name, service in services.items()} == {
        "worker-0": ["10.0.0.7:8101:8000"],
        "worker-1": ["10.0.0.7:8102:8000"],
        "dcgm-exporter": ["10.0.0.7:9400:9400"],
    }
    assert set(contents["volumes"]) == {"model-cache"}
    assert set(contents["networks"]) == {"fleet"}


def test_a_router_in_front_of_workers_elsewhere_needs_no_gpu(free):
    urls = ["http://10.0.0.7:8101", "http://10.0.0.7:8102", "http://10.0.0.8"]
    contents = written(*(word for url in urls for word in ("--worker", url)), *free)
    VALIDATOR.validate(contents)
    assert set(contents["services"]) == {"router", "targets", "prometheus", "grafana"}
    assert [worker.url for worker in router_config(contents, ROOT).workers] == urls
    told = contents["services"]["targets"]["environment"]
    assert [group["targets"] for group in yaml.safe_load(told["VLLM"])] == [
        ["10.0.0.7:8101"],
        ["10.0.0.7:8102"],
        ["10.0.0.8:80"],
    ]
    assert yaml.safe_load(told["DCGM"]) == [{"targets": ["10.0.0.7:9400", "10.0.0.8:9400"]}]
    assert "secrets" not in contents


# -- what is refused


def test_more_gpus_than_there_are(four_gpus):
    message = "5 GPUs are asked for, 4 are here; --elsewhere writes for another machine"
    assert refused("--model", "M", "--gpus", 5) == message
    assert refused("--model", "M", "--prefill", 2, "--decode", 3) == message


def test_no_gpu_at_all(monkeypatch):
    def none():
        raise NoGpu("no GPU found: the driver is not loaded; `--device cpu` runs vLLM without one")

    monkeypatch.setattr(devices, "find_gpus", none)
    message = "no GPU found: the driver is not loaded; --elsewhere writes a file for another machine"
    assert refused("--model", "M") == message


def test_a_tensor_parallel_size_that_does_not_divide():
    eight = (*ELSEWHERE, "--gpus", 8)
    assert refused(*eight, "--tensor-parallel", 3) == "--tensor-parallel 3 does not divide the 8 GPUs of --gpus"
    assert (
        refused(*eight, "--prefill", 3, "--decode", 5, "--tensor-parallel", 2)
        == "--tensor-parallel 2 does not divide the 3 GPUs of --prefill"
    )


def test_prefill_and_decode_that_do_not_make_the_fleet():
    eight = (*ELSEWHERE, "--gpus", 8)
    message = "--prefill 2 and --decode 5 make 7 GPUs, not the 8 of --gpus"
    assert refused(*eight, "--prefill", 2, "--decode", 5) == message
    assert refused(*eight, "--prefill", 8).startswith("--prefill and --decode belong together")


@pytest.mark.parametrize("option", ["--port", "--prometheus-port", "--grafana-port"])
def test_a_port_in_use(four_gpus, free, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"port {port} on 127.0.0.1 is already taken; choose another one with {option}"
        assert refused("--model", "M", *free, option, port) == message


def test_one_port_for_two(four_gpus, free):
    assert refused("--model", "M", *free, "--grafana-port", free[1]).endswith("is the one of --port")


@pytest.mark.parametrize("option", ["--client", "--hf-token-file"])
def test_a_secret_file_that_is_missing_or_empty(four_gpus, free, tmp_path, option):
    file = tmp_path / "secret"
    value = f"a={file}" if option == "--client" else file
    name = "--client a" if option == "--client" else option
    assert refused("--model", "M", *free, option, value) == f"{name}: the secret file {file} does not exist"
    file.write_text("\n")
    assert refused("--model", "M", *free, option, value) == f"{name}: the secret file {file} is empty"


def test_clients_that_the_router_would_refuse(four_gpus, free, tmp_path):
    (tmp_path / "k").write_text("the-same")
    same = ("--client", f"a={tmp_path / 'k'}", "--client", f"b={tmp_path / 'k'}")
    assert "the same key as one of clients[0]" in refused("--model", "M", *free, *same)
    assert "clients[0].name" in refused(*ELSEWHERE, "--gpus", 1, "--client", "-a=k")
    assert refused(*ELSEWHERE, "--gpus", 1, "--client", "a").startswith("--client a: should be a name and a file")
    assert refused(*ELSEWHERE, "--gpus", 1, "--client", "a=k", "--client", "a=k") == "--client a: given twice"


@pytest.mark.parametrize("flag", sorted(compose.OWN_FLAGS))
def test_options_of_vllm_that_are_ours_to_choose(flag):
    assert refused(*ELSEWHERE, "--gpus", 1, "--", f"{flag}=1").startswith(f"{flag} cannot be passed to vLLM here")


def test_several_boxes_are_asked_for_in_one_way():
    assert refused("--worker", "http://a:1", "--gpus", 2).startswith("--worker names servers that run elsewhere")
    assert refused("--elsewhere", "--gpus", 2) == "--model is needed: what should vLLM serve?"
    assert "did you mean http://10.0.0.7:8101?" in refused("--worker", "10.0.0.7:8101")
    apart = ("--gpus", 2, "--prefill", 1, "--decode", 1)
    assert refused(*ELSEWHERE, *apart, "--workers-only").startswith("--workers-only goes without --prefill")


def test_the_ports_of_published_workers_are_looked_at(four_gpus):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--model", "M", "--gpus", 1, "--workers-only", "--worker-port-base", port)
        assert line == f"port {port} on 127.0.0.1 is already taken; choose another one with --worker-port-base"


def test_other_mistakes(tmp_path):
    assert refused(*ELSEWHERE) == "--elsewhere needs --gpus: how many has the other machine?"
    assert refused(*ELSEWHERE, "--gpus", 1, "stray").startswith("unexpected argument 'stray'")
    assert "no compose.yaml" in refused(*ELSEWHERE, "--gpus", 1, "--deploy-dir", tmp_path)
    nowhere = refused(*ELSEWHERE, "--gpus", 1, "--out", tmp_path / "no" / "compose.yaml")
    assert nowhere.endswith("cannot be written: No such file or directory")


def test_what_is_refused_leaves_a_file_that_was_there_as_it_was(tmp_path):
    out = tmp_path / "compose.yaml"
    out.write_text("mine")
    refused(*ELSEWHERE, "--gpus", 8, "--tensor-parallel", 3, "--out", out)
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_is_full_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "compose.yaml"
    line = refused(*ELSEWHERE, "--gpus", 1, "--out", out)
    assert line == f"--out {out}: cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_are_refused_wherever_they_come_from():
    pattern = {"name": "x", "services": {}}
    with pytest.raises(ComposeRefused):
        document(ComposeOptions(model="M", gpus=("0", "1", "2"), deploy=".", tensor_parallel=2), pattern)
    assert [worker.gpus for worker in fleet(ComposeOptions(model="M", gpus=("0", "1"), deploy="."))] == [
        ("0",),
        ("1",),
    ]
