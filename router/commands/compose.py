"""The command `fairlead compose`: look at the machine, refuse what it cannot do, then write a compose file.

Everything is checked before the first byte is written. Exit status 2 for everything that is refused.
"""

# ruff: noqa: PLC0415, FBT002, PLR0917  # as in `router/commands/cli.py`: late imports, and what typer makes of parameters
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from router.commands.compose_file import ComposeOptions

EXAMPLES = """\b
Examples:
  fairlead compose --model Qwen/Qwen3-8B > compose.yaml
  fairlead compose --gpus 8 --model Qwen/Qwen3-32B --tensor-parallel 2 > compose.yaml
  fairlead compose --gpus 8 --model Qwen/Qwen3-8B --prefill 2 --decode 6 --out compose.yaml
  fairlead compose --elsewhere --gpus 4 --model Qwen/Qwen3-8B -- --max-model-len 8192
  fairlead compose --workers-only --host 10.0.0.7 --model Qwen/Qwen3-8B > compose.yaml    on a GPU box
  fairlead compose --worker http://10.0.0.7:8101 --worker http://10.0.0.7:8102 > compose.yaml    in front of it
"""


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command("compose", epilog=EXAMPLES)(compose)


def compose(
    model: Annotated[
        str | None, typer.Option(help="What vLLM serves: a name on the hub, or a folder.", show_default=False)
    ] = None,
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="-- VLLM_OPTION", help="Go to every vLLM as they are.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=64, help="How many GPUs.", show_default="all")] = None,
    prefill: Annotated[int, typer.Option(min=0, help="GPUs for workers that only prefill.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="GPUs for workers that only decode.")] = 0,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs per worker.")] = 1,
    host: Annotated[str, typer.Option(help="Address under which ports are published.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The router's port.")] = 8000,
    prometheus_port: Annotated[int, typer.Option(min=1, max=65535)] = 9090,
    grafana_port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    monitoring: Annotated[bool, typer.Option(help="Prometheus, Grafana and the DCGM exporter.")] = True,
    client: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A client and the file with its key; repeatable.")
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Instead of workers here: a vLLM that runs elsewhere; repeatable."),
    ] = None,
    workers_only: Annotated[
        bool, typer.Option("--workers-only", help="No router: workers for a router on another machine.")
    ] = False,
    worker_port_base: Annotated[
        int, typer.Option(min=1, max=65535, help="With --workers-only: the first worker's port.")
    ] = 8101,
    hf_token_file: Annotated[Path | None, typer.Option(help="File with a Hugging Face token.")] = None,
    deploy_dir: Annotated[
        Path | None, typer.Option(help="Folder with fairlead's compose.yaml.", show_default="found by itself")
    ] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="For another machine: check neither GPUs, ports nor files here.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write to this file.", show_default="standard output")
    ] = None,
) -> None:
    """Write a docker compose file.

    The router, a vLLM per GPU (or per group of GPUs), and the monitoring, for the machine at hand.
    """
    from router.commands.compose_file import ComposeOptions, ComposeRefused, as_text, document, fleet, settings
    from router.config.yaml_lines import ConfigError, read

    for option in (vllm_options or [])[:1]:
        if not option.startswith("-"):
            _refuse(f"unexpected argument {option!r}; options for vLLM go after `--`")
    if worker and (gpus or prefill or decode or workers_only or vllm_options):
        _refuse(
            "--worker names servers that run elsewhere: it goes without GPUs, --workers-only and vLLM's options"
        )
    if not worker and not model:
        _refuse("--model is needed: what should vLLM serve?")
    deploy = _deploy_folder(deploy_dir)
    here = out.parent if out else Path()
    keys = _clients(client or [])
    secrets = {f"--client {name}": file for name, file in keys.items()}
    secrets |= {"--hf-token-file": hf_token_file} if hf_token_file else {}
    if not elsewhere:
        _check_files(secrets)
    options = ComposeOptions(
        model=model or "",
        gpus=() if worker else _gpus(gpus or (prefill + decode) or None, elsewhere=elsewhere),
        deploy=_seen_from(here, deploy),
        installed=not (deploy.resolve().parent / "pyproject.toml").is_file(),
        prefill=prefill,
        decode=decode,
        tensor_parallel=tensor_parallel,
        host=host,
        ports={"router": port, "prometheus": prometheus_port, "grafana": grafana_port},
        monitoring=monitoring,
        hf_token=_seen_from(here, hf_token_file) if hf_token_file else None,
        clients={name: _seen_from(here, file) for name, file in keys.items()},
        vllm_options=vllm_options or [],
        worker_urls=tuple(worker or ()),
        workers_only=workers_only,
        worker_port_base=worker_port_base,
    )
    try:
        workers = fleet(options)
        _check_settings(settings(options, workers), keys, read_keys=not elsewhere)
        contents = document(options, read(deploy / "compose.yaml").data)
    except ComposeRefused as error:
        _refuse(str(error))
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if not elsewhere:
        _check_ports(options, len(workers))
    text = as_text(contents, shlex.join(["fairlead", *sys.argv[1:]]))
    if out is None:
        typer.echo(text, nl=False)
        return
    _write(out, text)


def _deploy_folder(given: Path | None) -> Path:
    """Where the pattern is: as told, below the current folder, in the checkout, or in the package."""
    here = Path(__file__).resolve()
    folders = [given] if given else [Path("deploy"), here.parents[2] / "deploy", here.parents[1] / "deploy"]
    for folder in folders:
        if (folder / "compose.yaml").is_file() and (folder / "Dockerfile").is_file():
            return folder
    if given:
        _refuse(f"--deploy-dir {given}: there is no compose.yaml and Dockerfile of fairlead's in it")
    return _refuse("fairlead's folder `deploy` is missing from this installation; name one with --deploy-dir")


def _gpus(wanted: int | None, *, elsewhere: bool) -> tuple[str, ...]:
    """What the driver calls the first `wanted` GPUs, or all of them."""
    from workers.launch.devices import find_gpus
    from workers.launch.errors import NoGpu

    if elsewhere:
        if wanted is None:
            _refuse("--elsewhere needs --gpus: how many has the other machine?")
        return tuple(map(str, range(wanted)))
    try:
        found = [gpu.id for gpu in find_gpus()]
    except NoGpu as error:
        reason = str(error).partition(";")[0]
        _refuse(f"{reason}; --elsewhere writes a file for another machine")
    if wanted is not None and wanted > len(found):
        _refuse(f"{wanted} GPUs are asked for, {len(found)} are here; --elsewhere writes for another machine")
    return tuple(found[:wanted])


def _clients(given: list[str]) -> dict[str, Path]:
    clients: dict[str, Path] = {}
    for entry in given:
        name, equals, file = entry.partition("=")
        if not (name and equals and file):
            _refuse(f"--client {entry}: should be a name and a file, such as team-a=secrets/team-a")
        if name in clients:
            _refuse(f"--client {name}: given twice")
        clients[name] = Path(file)
    return clients


def _check_files(secrets: Mapping[str, Path]) -> None:
    for option, file in secrets.items():
        if not file.is_file():
            _refuse(f"{option}: the secret file {file} does not exist")
        try:
            empty = not file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            _refuse(f"{option}: the secret file {file} cannot be read")
        if empty:
            _refuse(f"{option}: the secret file {file} is empty")


def _check_settings(settings: dict[str, object], keys: Mapping[str, Path], *, read_keys: bool) -> None:
    """What the router will say of its configuration, said now. Raises ConfigError."""
    from router.config.schema import Config

    clients = [
        {"name": name, "keys": [f"file:{file.resolve()}"]} if read_keys else {"name": name}
        for name, file in keys.items()
    ]
    Config.load(None, {}, {**settings, "clients": clients})


def _check_ports(options: "ComposeOptions", workers: int) -> None:
    from router.commands.startup import StartError, claim_port

    taken: dict[int, str] = {}
    for option, port in _ports(options, workers):
        if port in taken:
            _refuse(f"{option}: port {port} is the one of {taken[port]}")
        taken[port] = option
        try:
            claim_port(options.host, port)
        except StartError as error:
            _refuse(str(error).replace("--port", option))


def _ports(options: "ComposeOptions", workers: int) -> list[tuple[str, int]]:
    """Every port that will be published, with the option that chooses it."""
    if options.workers_only:
        return [("--worker-port-base", options.worker_port_base + number) for number in range(workers)]
    ports = [("--port", options.ports["router"])]
    if options.monitoring:
        ports += [(f"--{name}-port", options.ports[name]) for name in ("prometheus", "grafana")]
    return ports


def _seen_from(folder: Path, path: Path) -> str:
    """A path for a compose file in `folder`: relative where both are near each other, else absolute."""
    seen = os.path.relpath(path, folder)
    if path.is_absolute() or seen.startswith("../.."):
        return str(path.resolve())
    return seen if seen.startswith(".") else f"./{seen}"


def _write(out: Path, text: str) -> None:
    """The whole file or none: a reader never finds half of it."""
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(text)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        _refuse(f"--out {out}: cannot be written: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(2)
