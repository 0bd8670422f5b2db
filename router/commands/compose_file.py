"""Which containers make a fleet on a number of GPUs? From the options of `fairlead compose` to a compose file.

`deploy/compose.yaml` is the pattern: images, hardening, health checks and monitoring are taken from there, its
workers are repeated for the GPUs at hand, and its variables are filled with their defaults. Whether the machine
has what the file asks for is `compose_command`'s part.

The router's configuration goes into its environment and the list of scrape targets into that of the service which
writes it, so the file needs no other file that is made for it. (Inline `configs:` would read better, but Docker
refuses them in containers with a read-only root.)
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from workers.launch.plan import flags_in

Role = Literal["both", "prefill", "decode"]
Document = dict[str, Any]

PATTERN: Mapping[Role, str] = {"both": "worker-0", "prefill": "prefill-0", "decode": "decode-0"}
"""The service of the pattern that a worker of each role is made from."""
WORKER_PORT = 8000
STATUS_PORT = 9464
"""Where Prometheus reads the router's metrics; not published."""
DCGM_PORT = 9400
OWN_FLAGS = {
    "--host": "every worker listens inside its own container",
    "--port": "every worker listens inside its own container",
    "--model": "use `--model` before the `--`",
    "--api-key": "only the router reaches the workers; keys for clients are given with `--client`",
    "--tensor-parallel-size": "it decides how many workers there are; use `--tensor-parallel`",
    "--kv-transfer-config": "it follows from `--prefill` and `--decode`",
}
_VARIABLE = re.compile(r"(?<!\$)\$\{\w+:-([^}]*)\}")
_MODEL_FOLDER = "/model"


class ComposeRefused(Exception):
    """No file can be made of these options; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class ComposeOptions:
    """What the command line says, looked up and checked against the machine."""

    model: str
    gpus: tuple[str, ...]
    """What the driver calls them: numbers, or UUIDs of MIG slices. Empty with `worker_urls`."""
    deploy: str
    """The folder with the pattern, as seen from the file that is written."""
    installed: bool = False
    """That folder is `router/deploy` of an installed package; else `deploy` of a checkout."""
    prefill: int = 0
    """GPUs of prefill workers; with `decode` all of `gpus`, or both zero."""
    decode: int = 0
    tensor_parallel: int = 1
    host: str = "127.0.0.1"
    """Address of this machine under which ports are published."""
    ports: Mapping[str, int] = field(default_factory=lambda: {"router": 8000, "prometheus": 9090, "grafana": 3000})
    monitoring: bool = True
    hf_token: str | None = None
    """File with a Hugging Face token; None: none is needed."""
    clients: Mapping[str, str] = field(default_factory=dict)
    """Name of each client and the file with its key."""
    vllm_options: Sequence[str] = ()
    worker_urls: tuple[str, ...] = ()
    """vLLM servers of other machines: the file holds a router in front of these and no worker."""
    workers_only: bool = False
    """The other side of that: workers with published ports, and no router."""
    worker_port_base: int = 8101
    """First published port of those."""


@dataclass(frozen=True, slots=True)
class ComposeWorker:
    """One vLLM server."""

    url: str
    role: Role = "both"
    gpus: tuple[str, ...] = ()
    """None of this machine's: it runs on another one."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the router's configuration says of it."""
        return {"url": self.url} if self.role == "both" else {"url": self.url, "roles": [self.role]}

    @property
    def name(self) -> str:
        """Its host: of a container, the service's name."""
        return urlsplit(self.url).hostname or ""

    @property
    def target(self) -> str:
        """Where Prometheus finds it."""
        parts = urlsplit(self.url)
        return parts.netloc if parts.port else f"{parts.netloc}:80"


def fleet(options: ComposeOptions) -> list[ComposeWorker]:
    """The workers, prefill first, each with its GPUs. Raises ComposeRefused where the numbers do not fit."""
    size, prefill, decode = options.tensor_parallel, options.prefill, options.decode
    if options.worker_urls:
        return [ComposeWorker(url) for url in options.worker_urls]
    if not (prefill or decode):
        return _workers("both", options.gpus, size, "--gpus")
    if not (prefill and decode):
        raise ComposeRefused("--prefill and --decode belong together: a fleet needs GPUs for both")
    if options.workers_only:
        raise ComposeRefused("--workers-only goes without --prefill: NIXL needs addresses that all workers reach")
    if prefill + decode != len(options.gpus):
        raise ComposeRefused(
            f"--prefill {prefill} and --decode {decode} make {prefill + decode} GPUs, "
            f"not the {len(options.gpus)} of --gpus"
        )
    return [
        *_workers("prefill", options.gpus[:prefill], size, "--prefill"),
        *_workers("decode", options.gpus[prefill:], size, "--decode"),
    ]


def _workers(role: Role, gpus: Sequence[str], size: int, option: str) -> list[ComposeWorker]:
    if len(gpus) % size:
        raise ComposeRefused(f"--tensor-parallel {size} does not divide the {len(gpus)} GPUs of {option}")
    stem = PATTERN[role].removesuffix("-0")
    groups = [tuple(gpus[start : start + size]) for start in range(0, len(gpus), size)]
    urls = [f"http://{stem}-{number}:{WORKER_PORT}" for number in range(len(groups))]
    return [ComposeWorker(url, role, group) for url, group in zip(urls, groups, strict=True)]


def settings(options: ComposeOptions, workers: Iterable[ComposeWorker]) -> dict[str, Any]:
    """The router's configuration inside its container."""
    secrets = _client_secrets(options)
    return {
        "listen": {"host": "0.0.0.0", "port": WORKER_PORT},
        "status": {"host": "0.0.0.0", "port": STATUS_PORT},
        "workers": [worker.settings for worker in workers],
        "clients": [
            {"name": name, "keys": [f"file:/run/secrets/{secret}"]}
            for name, secret in zip(options.clients, secrets, strict=True)
        ],
    }


def document(options: ComposeOptions, pattern: Document) -> Document:
    """The compose file as plain data. Raises ComposeRefused."""
    for flag in flags_in(options.vllm_options) & set(OWN_FLAGS):
        raise ComposeRefused(f"{flag} cannot be passed to vLLM here: {OWN_FLAGS[flag]}")
    workers = fleet(options)
    shipped = _filled(pattern)["services"]
    services: Document = {}
    if not options.workers_only:
        services["router"] = _router(options, workers, shipped["router"])
    for number, worker in enumerate(workers):
        if worker.gpus:
            services[worker.name] = _worker(options, worker, shipped[PATTERN[worker.role]])
        if options.workers_only:
            services[worker.name]["ports"] = [_published(options, options.worker_port_base + number, WORKER_PORT)]
    if options.monitoring:
        services |= _monitoring(options, workers, shipped)
    files = {"hf_token": options.hf_token or "/dev/null", **_client_secrets(options)}
    secrets, networks = _used(services, "secrets"), _used(services, "networks")
    volumes = [volume.partition(":")[0] for volume in _used(services, "volumes")]
    contents = {
        "name": pattern["name"],
        "services": services,
        "secrets": {name: {"file": _literal(files[name])} for name in secrets},
        "networks": {name: {} for name in networks},
        "volumes": {name: {} for name in dict.fromkeys(volumes) if not name.startswith((".", "/"))},
    }
    return {key: content for key, content in contents.items() if content}


def _used(services: Document, key: str) -> list[str]:
    """What the services name under this key, each once."""
    return list(dict.fromkeys(name for service in services.values() for name in service.get(key, ())))


def as_text(contents: Document, command: str) -> str:
    """The file, with the command that it came from on top."""
    body: str = yaml.safe_dump(contents, sort_keys=False, width=115, allow_unicode=True)
    return f"# Written by `{command}`; the reasons for each line stand in deploy/compose.yaml.\n{body}"


def _router(options: ComposeOptions, workers: Sequence[ComposeWorker], shipped: Document) -> Document:
    router = _plain(shipped, options)
    del router["configs"]
    configured = settings(options, workers)
    router["command"] = ["serve"]
    router["environment"] = {
        "FAIRLEAD_LISTEN__HOST": configured["listen"]["host"],
        "FAIRLEAD_LISTEN__PORT": str(configured["listen"]["port"]),
        "FAIRLEAD_STATUS__HOST": configured["status"]["host"],
        "FAIRLEAD_STATUS__PORT": str(configured["status"]["port"]),
        "FAIRLEAD_WORKERS": _literal(json.dumps(configured["workers"])),
    }
    if options.clients:
        router["environment"]["FAIRLEAD_CLIENTS"] = _literal(json.dumps(configured["clients"]))
        router["secrets"] = list(_client_secrets(options))
    router["ports"] = [_published(options, options.ports["router"], WORKER_PORT)]
    router["depends_on"] = {worker.name: {"condition": "service_started"} for worker in workers if worker.gpus}
    return router


def _worker(options: ComposeOptions, worker: ComposeWorker, shipped: Document) -> Document:
    service = _plain(shipped, options)
    model, more = options.model, list(options.vllm_options)
    if Path(model).is_dir():
        service["volumes"].append(f"{_literal(str(Path(model).resolve()))}:{_MODEL_FOLDER}:ro")
        if "--served-model-name" not in flags_in(more):
            more = ["--served-model-name", model, *more]
        model = _MODEL_FOLDER
    if options.tensor_parallel > 1:
        more = ["--tensor-parallel-size", str(options.tensor_parallel), *more]
    given = flags_in(more)
    kept = [word for word in service["command"][1:] if word not in given]
    service["command"] = [_literal(model), *kept, *map(_literal, more)]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    device["device_ids"] = list(worker.gpus)
    return service


def _monitoring(options: ComposeOptions, workers: Sequence[ComposeWorker], shipped: Document) -> Document:
    """Prometheus and Grafana where the router is, the GPUs' exporter where GPUs are."""
    services: Document = {}
    if options.gpus:
        services["dcgm-exporter"] = _plain(shipped["dcgm-exporter"], options)
    if options.workers_only:
        services["dcgm-exporter"]["ports"] = [_published(options, DCGM_PORT, DCGM_PORT)]
        return services
    services["targets"] = _plain(shipped["targets-gpu"], options)
    exporters = ["dcgm-exporter"] if options.gpus else list(dict.fromkeys(worker.name for worker in workers))
    services["targets"]["environment"] = {
        # JSON is YAML, too.
        "VLLM": json.dumps([{"targets": [w.target], "labels": {"role": w.role}} for w in workers]),
        "DCGM": json.dumps([{"targets": [f"{name}:{DCGM_PORT}" for name in exporters]}]),
    }
    for name, inside in (("prometheus", 9090), ("grafana", 3000)):
        services[name] = _plain(shipped[name], options)
        services[name]["ports"] = [_published(options, options.ports[name], inside)]
    services["prometheus"]["depends_on"] = {"targets": {"condition": "service_completed_successfully"}}
    return services


def _plain(shipped: Document, options: ComposeOptions) -> Document:
    """A service of the pattern for a file in another folder, where it starts without a profile."""
    service: Document = json.loads(json.dumps(shipped))
    service.pop("profiles", None)
    if "build" in service:
        service["build"] = _build(options)
    service["volumes"] = [
        _literal(_relative(options.deploy, source)) + f":{rest}" if source.startswith("./") else f"{source}:{rest}"
        for source, _, rest in (volume.partition(":") for volume in service.get("volumes", ()))
    ]
    if not service["volumes"]:
        del service["volumes"]
    return service


def _build(options: ComposeOptions) -> Document:
    """How the image is made: from the checkout around the pattern, or from the packages as they are installed."""
    if not options.installed:
        context = _relative(options.deploy, "..")
        return {"context": _literal(context), "dockerfile": f"{Path(options.deploy).resolve().name}/Dockerfile"}
    return {
        "context": _literal(_relative(options.deploy, "../..")),
        "dockerfile": "router/deploy/Dockerfile",
        "args": {"PROJECT": "router/deploy/project"},
    }


def _relative(deploy: str, path: str) -> str:
    """A path below the pattern's folder. Compose takes names without a leading dot for volumes."""
    joined = os.path.normpath(Path(deploy) / path)
    return joined if joined.startswith(("/", ".")) else f"./{joined}"


def _published(options: ComposeOptions, port: int, inside: int) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{host}:{port}:{inside}"


def _filled(value: Any) -> Any:
    """The pattern with every `${NAME:-default}` replaced by its default."""
    if isinstance(value, dict):
        return {key: _filled(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_filled(item) for item in value]
    return _VARIABLE.sub(r"\1", value) if isinstance(value, str) else value


def _literal(text: str) -> str:
    """Compose replaces variables everywhere; a doubled dollar sign is one that means itself."""
    return text.replace("$", "$$")


def _client_secrets(options: ComposeOptions) -> dict[str, str]:
    """Secrets and their files, one per client; numbered: a client's name may hold signs that theirs may not."""
    return {f"client_{number}": file for number, file in enumerate(options.clients.values())}
