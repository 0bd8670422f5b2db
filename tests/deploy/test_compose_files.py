"""The committed compose files and the Dockerfile: what Docker would refuse, and what a user would miss."""

import json
import os
import re
import shlex
import stat
from pathlib import Path

import jsonschema
import pytest
import yaml
from compose_file import DEPLOY, ROOT, VALIDATOR, active, device_ids, dotenv, mounts, read
from typer.main import get_command

from router.commands.cli import cli
from router.config.schema import Config
from workers.launch import disaggregation
from workers.simulator.__main__ import parser, read_config

FILES = sorted(DEPLOY.glob("compose*.yaml"))
COMPOSE = read(DEPLOY / "compose.yaml", dotenv())
SERVICES = COMPOSE["services"]
FLEETS = {"gpu": "router", "pd": "router-pd", "sim": "router-sim"}
ONE_SHOT = {"targets-gpu", "targets-pd", "targets-sim"}
ROOT_USER = {"dcgm-exporter"}
MADE_BY_THE_USER = DEPLOY / "secrets"


def instructions():
    """The Dockerfile as (instruction, rest), comments and continuations resolved."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_file_passes_the_schema_of_the_compose_specification(path):
    VALIDATOR.validate(read(path, dotenv()))


def test_the_schema_finds_a_key_that_does_not_exist():
    with pytest.raises(jsonschema.ValidationError, match="read_onyl"):
        VALIDATOR.validate({"services": {"router": {"read_onyl": True}}})


def test_plain_up_starts_the_gpu_cluster_with_monitoring():
    started = active(COMPOSE, *dotenv()["COMPOSE_PROFILES"].split(","))
    assert set(started) == {
        *("router", "worker-0", "worker-1", "targets-gpu"),
        *("dcgm-exporter", "prometheus", "grafana"),
    }


def test_every_service_has_a_profile_or_it_would_start_in_every_fleet():
    assert [name for name, service in SERVICES.items() if not service.get("profiles")] == []
    known = {"sim", "gpu", "pd", "monitoring"}
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == known


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_fleet_is_complete_with_and_without_monitoring(fleet):
    """What a service depends on starts with the same profiles, and the router is found by that name."""
    for profiles in ((fleet,), (fleet, "monitoring")):
        started = active(COMPOSE, *profiles)
        for name, service in started.items():
            for other, condition in service.get("depends_on", {}).items():
                assert other in SERVICES
                assert other in started or condition.get("required") is False, f"{name} needs {other}"
        routers = [name for name in started if name.startswith("router")]
        assert routers == [FLEETS[fleet]]
        network = started[routers[0]]["networks"]
        assert routers[0] == "router" or network["fleet"]["aliases"] == ["router"]


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_routers_configuration_names_the_workers_of_its_fleet(fleet):
    router = SERVICES[FLEETS[fleet]]
    [mount] = mounts(COMPOSE, router, DEPLOY)
    assert mount.target in router["command"]
    config = Config.load(mount.source, env={})
    workers = {worker.url: sorted(worker.roles) for worker in config.workers}
    assert set(workers) == {f"http://{name}:8000" for name in router["depends_on"]}
    for name in router["depends_on"]:
        role = name.split("-")[0]
        expected = [role] if role in {"prefill", "decode"} else ["decode", "prefill"]
        assert workers[f"http://{name}:8000"] == expected
        assert name in active(COMPOSE, fleet)
    assert (config.listen.host, config.listen.port) == ("0.0.0.0", 8000)
    assert seconds(router["stop_grace_period"]) > config.limits.drain_s


@pytest.mark.parametrize("fleet", FLEETS)
def test_prometheus_is_told_the_workers_of_the_fleet(fleet):
    environment = SERVICES[f"targets-{fleet}"]["environment"]
    groups = yaml.safe_load(environment["VLLM"])
    told = {target for group in groups for target in group["targets"]}
    assert told == {f"{name}:8000" for name in SERVICES[FLEETS[fleet]]["depends_on"]}
    has_gpus = "dcgm-exporter" in active(COMPOSE, fleet)
    dcgm = yaml.safe_load(environment["DCGM"])
    assert bool(dcgm) == has_gpus == (fleet != "sim")


def test_everything_that_is_mounted_is_there():
    missing = {}
    for path in FILES:
        document = read(path, dotenv())
        for name, service in document["services"].items():
            for mount in mounts(document, service, DEPLOY):
                is_volume = isinstance(mount.source, str)
                if is_volume:
                    there = mount.source in document["volumes"]
                else:
                    there = mount.source.exists() or MADE_BY_THE_USER in mount.source.parents
                if not there:
                    missing[name] = mount.source
    assert missing == {}


def test_no_inline_config_or_secret_goes_into_a_read_only_container():
    """Docker Compose copies those in after the container is made, and refuses to where the root is read-only."""
    for kind in ("configs", "secrets"):
        assert all(set(entry) == {"file"} for entry in COMPOSE[kind].values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened_bounded_watched_and_comes_back(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (service["user"].split(":")[0] == "0") == (name in ROOT_USER)
    assert ("cap_add" in service) == (name in ROOT_USER)
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert ("healthcheck" in service) == (name not in ONE_SHOT)
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", service["image"]), "images are pinned to a version"
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_gpus_are_not_given_to_two_workers_of_one_fleet():
    for fleet in ("gpu", "pd"):
        workers = [SERVICES[name] for name in SERVICES[FLEETS[fleet]]["depends_on"]]
        given = [gpu for worker in workers for gpu in device_ids(worker)]
        assert len(given) == len(set(given)) == 2


def test_vllm_is_a_supported_release_and_asked_for_what_the_router_reads():
    image = SERVICES["worker-0"]["image"]
    assert image.startswith("vllm/vllm-openai:v")
    assert tuple(map(int, image.rpartition(":v")[2].split("."))) >= (0, 20, 2)
    for name in ("worker-0", "worker-1", "prefill-0", "decode-0"):
        command = SERVICES[name]["command"]
        assert command[0] == dotenv()["MODEL"]
        assert {"--enable-prompt-tokens-details", "--enable-request-id-headers"} <= set(command)
        assert command[command.index("--port") + 1] == "8000"


def test_prefill_and_decode_workers_have_the_two_ends_of_the_connector():
    for name, role in (("prefill-0", "prefill"), ("decode-0", "decode")):
        command = SERVICES[name]["command"]
        transfer = json.loads(command[command.index(disaggregation.FLAG) + 1])
        assert transfer == disaggregation._CONFIGS[role], "as `fairlead up` starts them"
        script = SERVICES[name]["entrypoint"][2]
        assert script.startswith("VLLM_NIXL_SIDE_CHANNEL_HOST=")
        assert script.endswith('exec vllm serve "$@"')


def test_the_routers_and_the_simulators_options_exist():
    serve = get_command(cli).commands["serve"]
    for name in FLEETS.values():
        command, *arguments = SERVICES[name]["command"]
        assert command == "serve"
        serve.make_context("serve", arguments, resilient_parsing=False)
    for name in ("sim-0", "sim-1", "sim-2"):
        assert SERVICES[name]["entrypoint"] == ["python", "-P", "-m", "workers.simulator"]
        assert read_config(parser().parse_args(SERVICES[name]["command"])).port == 8000


def test_every_variable_in_dotenv_is_used_and_has_the_same_default():
    text = (DEPLOY / "compose.yaml").read_text()
    for name, value in dotenv().items():
        if name == "COMPOSE_PROFILES":
            continue
        defaults = set(re.findall(rf"\$\{{{name}:-([^}}]*)\}}", text))
        assert defaults == {value}
    assert not any(name.startswith("FAIRLEAD_") for name in dotenv()), "fairlead itself would read them"


def test_keys_and_a_login_are_an_override_that_the_router_accepts(tmp_path):
    keys = read(DEPLOY / "compose.keys.yaml")
    assert set(keys["services"]) == {*FLEETS.values(), "grafana"}
    for name in FLEETS.values():
        environment, secrets = keys["services"][name]["environment"], keys["services"][name]["secrets"]
        for secret in secrets:
            (tmp_path / secret).write_text("k" * 64)
        env = {key: value.replace("/run/secrets", str(tmp_path)) for key, value in environment.items()}
        config = Config.load(DEPLOY / "fairlead.yaml", env=env)
        assert [client.name for client in config.clients] == ["team-a"]
    table = (MADE_BY_THE_USER / "README.md").read_text()
    for secret in keys["secrets"]:
        assert f"`{secret}`" in table


def test_git_never_sees_a_secret():
    assert (MADE_BY_THE_USER / ".gitignore").read_text().splitlines()[0] == "*"


def seconds(duration):
    return int(duration.removesuffix("s"))


# -- the image


def test_what_the_image_copies_exists_and_reaches_the_builder():
    build = SERVICES["router"]["build"]
    context = Path(os.path.normpath(DEPLOY / build["context"]))
    assert context / build["dockerfile"] == DEPLOY / "Dockerfile"
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    copied = set()
    for instruction, rest in instructions():
        if instruction == "COPY" and "--from" not in rest:
            copied |= {name.removeprefix("${PROJECT}/") for name in rest.split()[:-1]}
    assert "*" in ignore
    assert copied == let_through
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = {name for name in copied if (ROOT / name).is_dir()}
    assert packages == {"router", "workers", "policies"}


def test_the_image_has_two_stages_a_pinned_python_and_a_user_who_is_not_root():
    lines = instructions()
    froms = [rest for instruction, rest in lines if instruction == "FROM"]
    assert len(froms) == 2
    base, *_ = [rest for instruction, rest in lines if instruction == "ARG"]
    assert re.fullmatch(r"PYTHON=python:3\.12\.\d+-slim-\w+", base)
    [user] = [rest for instruction, rest in lines if instruction == "USER"]
    assert user == SERVICES["router"]["user"] == "10001:10001"
    last_stage = lines[[n for n, (what, _) in enumerate(lines) if what == "FROM"][-1] :]
    assert not any("pip" in rest for what, rest in last_stage if what == "RUN")


def test_the_images_command_is_ours():
    lines = dict(instructions())
    assert json.loads(lines["ENTRYPOINT"]) == ["fairlead"]
    command, *arguments = json.loads(lines["CMD"])
    get_command(cli).commands[command].make_context(command, arguments)
    health = shlex.split(lines["HEALTHCHECK"].split("CMD", 1)[0])
    assert all(option.startswith("--") for option in health)
    assert json.loads(lines["HEALTHCHECK"].split("CMD ", 1)[1])[2] == SERVICES["router"]["healthcheck"]["test"][3]


def test_no_file_of_a_container_is_readable_by_its_owner_only():
    """Containers run as other users; git keeps no more than the executable bit, but a checkout may be strict."""
    for name in ("fairlead.yaml", "fairlead-sim.yaml", "fairlead-pd.yaml"):
        assert (DEPLOY / name).stat().st_mode & stat.S_IROTH
