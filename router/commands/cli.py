"""The command `fairlead`.

Exit status: 0 when it ended as asked, 1 when it could not do its work, 2 when it was asked wrongly (an unknown
option, a bad configuration). Heavy modules are imported by the command that needs them, so that `--help` and a
refused option answer at once.
"""

# ruff: noqa: PLC0415, FBT002, PLR0917  # late imports as said above; typer's boolean options have boolean defaults, and its
# commands are called by keyword
import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from router.commands import compose as compose_command
from router.commands import explain as explain_command
from router.commands import keys as keys_command
from router.commands import policies as policies_command
from router.commands import top as top_command
from router.commands import workers as workers_command
from router.heatmap import command as heatmap_command
from router.lab import commands as lab

if TYPE_CHECKING:
    from router.config.schema import Config

EXAMPLES = """\b
Examples:
  fairlead demo                                   try it on this machine, no GPU needed
  fairlead up Qwen/Qwen3-8B                       one vLLM per GPU, the gateway in front
  fairlead up Qwen/Qwen3-8B -- --max-model-len 8192
  fairlead compose --model Qwen/Qwen3-8B          the same as a docker compose file, with monitoring
  fairlead serve --config fairlead.yaml           in front of vLLM servers that already run
  fairlead check-config fairlead.yaml
  fairlead compare trace.jsonl --all              which policy is best for this traffic
  fairlead policies                               what each of them does, and its settings
  fairlead top                                    workers, clients and decisions, live
  fairlead explain REQUEST_ID                     why a request waited, or went there
  fairlead keys create alice --expires 90d        an API key while the gateway runs
"""

cli = typer.Typer(
    help="fairlead: a serving router in front of vLLM workers.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_HALF_A_PAIR = "--prefill and --decode belong together: a fleet needs workers for both"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; see `print-config --defaults`.")
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on (127.0.0.1).")]
PortNumber = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on (8000); 0: a free one.")
]


def main() -> None:
    """Entry point of the console script."""
    cli()


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it with the option's value
    if wanted:
        from router import __version__

        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


@cli.callback()
def _fairlead(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself; each has done its work before this is called."""


@cli.command(
    epilog="\b\nExamples:\n  fairlead demo\n  fairlead demo --workers 8 --port 9000 --speed 10\n"
    "  fairlead demo --prefill 1 --decode 2\n"
)
def demo(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Simulated vLLM workers.")] = 3,
    prefill: Annotated[int, typer.Option(min=0, max=64, help="Workers that only prefill.")] = 0,
    decode: Annotated[int, typer.Option(min=0, max=64, help="Workers that only decode.")] = 0,
    host: Host = None,
    port: PortNumber = None,
    model: Annotated[str, typer.Option(help="Name of the simulated model.")] = "meta-llama/Llama-3.1-8B-Instruct",
    speed: Annotated[
        float, typer.Option(min=0.01, max=1000, help="How much faster than real hardware they answer.")
    ] = 1.0,
) -> None:
    """Try it here: simulated workers.

    Starts the gateway with simulated vLLM workers: no GPU, no model, no configuration.
    """
    if bool(prefill) != bool(decode):
        _refuse(_HALF_A_PAIR)

    from router.commands.hangups import hold_hangups

    hold_hangups()

    from router.commands import demo as demonstration

    options = demonstration.DemoOptions(
        host=host, port=port, workers=workers, prefill=prefill, decode=decode, model=model, speed=speed
    )
    _run(demonstration.run(options))


@cli.command(
    epilog="\b\nExamples:\n  fairlead serve --config fairlead.yaml\n"
    "  FAIRLEAD_LISTEN__PORT=9000 fairlead serve -c fairlead.yaml\n"
    "  FAIRLEAD_WORKERS='[\"http://10.0.0.7:8000\"]' fairlead serve\n"
)
def serve(config: ConfigFile = None, host: Host = None, port: PortNumber = None) -> None:
    """Run in front of running vLLMs.

    Workers, clients, limits and policies come from the configuration. SIGHUP reads it again.
    """
    from router.commands.hangups import hold_hangups

    hold_hangups()

    from router.commands.startup import at_port, cancelled_by_signals, claim_port, reread, say

    overrides = _listen(host, port)
    loaded = _load(config, overrides)
    if not loaded.workers and loaded.admin is None:
        _refuse("there are no workers: name them under `workers:`, or switch on `admin:` to add them later")

    from router import app

    async def gateway() -> None:
        port = claim_port(loaded.listen.host, loaded.listen.port)
        final = at_port(loaded, port)
        with cancelled_by_signals():
            await app.run(
                final,
                on_ready=lambda: say(f"ready {final.listen.url}"),
                reload=lambda: reread(config, overrides, loaded, port),
            )

    _run(gateway())


@cli.command(
    epilog="\b\nExamples:\n  fairlead up Qwen/Qwen3-8B\n"
    "  fairlead up Qwen/Qwen3-32B --gpus 0,1,2,3 --tensor-parallel 2\n"
    "  fairlead up Qwen/Qwen3-8B --prefill 1 --decode 3\n"
    "  fairlead up HuggingFaceTB/SmolLM2-135M-Instruct --device cpu --workers 2\n"
    "  fairlead up Qwen/Qwen3-8B --config fairlead.yaml -- --max-model-len 8192\n"
)
def up(
    model: Annotated[str, typer.Argument(help="What vLLM serves: a name on the hub, or a folder.")],
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="-- VLLM_OPTION", help="Go to vLLM as they are.")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to use, such as 0,1; otherwise all.")] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What the workers run on.")] = "cuda",
    workers: Annotated[int, typer.Option(min=1, max=64, help="With --device cpu: how many workers.")] = 1,
    prefill: Annotated[int, typer.Option(min=0, help="GPUs for workers that only prefill.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="GPUs for workers that only decode.")] = 0,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs per worker.")] = 1,
    vllm_python: Annotated[
        Path, typer.Option(show_default="this one", help="Python of the environment in which vLLM is installed.")
    ] = Path(sys.executable),
    config: ConfigFile = None,
    host: Host = None,
    port: PortNumber = None,
    worker_port_base: Annotated[
        int, typer.Option("--worker-port-base", "--base-port", min=1, max=65535, help="First worker's port.")
    ] = 8101,
    log_dir: Annotated[Path, typer.Option(help="Where each worker's output is kept.")] = Path("fairlead-logs"),
) -> None:
    """Start vLLM on every GPU, too.

    One vLLM per GPU and the gateway in front of them; all of it ends together.
    """
    from router.commands.hangups import hold_hangups

    hold_hangups()
    loaded = _load(config, _listen(host, port))
    if loaded.workers:
        _refuse("`up` starts its own workers: remove `workers:` from the configuration, or use `fairlead serve`")
    for option in (vllm_options or [])[:1]:
        if not option.startswith("-"):
            _refuse(f"unexpected argument {option!r}; options for vLLM go after `--`")

    if bool(prefill) != bool(decode):
        _refuse(_HALF_A_PAIR)

    from router.commands.up import UpOptions
    from workers.launch.disaggregation import Split

    options = UpOptions(
        model=model,
        vllm_python=str(vllm_python),
        log_dir=log_dir,
        gpus=_numbers(gpus),
        device=device,
        workers=workers,
        split=Split(prefill, decode),
        tensor_parallel=tensor_parallel,
        base_port=worker_port_base,
        extra_args=vllm_options or [],
    )
    _run(_up(options, config, loaded, _listen(host, port)))


async def _up(options: Any, path: Path | None, loaded: "Config", given: dict[str, dict[str, Any]]) -> None:
    from router import app
    from router.commands.startup import at_port, cancelled_by_signals, claim_port, reread, say
    from router.commands.up import launched
    from router.config.schema import Config

    port = claim_port(loaded.listen.host, loaded.listen.port)
    with cancelled_by_signals():
        async with launched(options) as fleet:
            overrides = {**given, "workers": fleet.workers}
            config = at_port(Config.load(path, overrides=overrides), port)
            await app.run(
                config,
                on_ready=lambda: say(f"ready {config.listen.url}"),
                reload=lambda: reread(path, overrides, loaded, port),
            )


lab.register(cli)
compose_command.register(cli)
policies_command.register(cli)
explain_command.register(cli)
top_command.register(cli)
workers_command.register(cli)
cli.add_typer(keys_command.commands, name="keys")
cli.add_typer(heatmap_command.commands, name="heatmap")


@cli.command("check-config")
def check_config(file: Annotated[Path, typer.Argument(help="YAML file.")]) -> None:
    """Say what is wrong in a file.

    The environment counts, as it would for `serve`.
    """
    config = _load(file, {})
    typer.echo(f"{file}: ok ({len(config.workers)} workers, {len(config.clients)} clients)")


@cli.command("print-config")
def print_config(
    file: Annotated[Path | None, typer.Argument(help="YAML file; without one, environment only.")] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Neither file nor environment: every key with its default.")
    ] = False,
) -> None:
    """Print every setting, explained.

    The configuration as it would be used, a comment above each key. API keys appear as hashes only.
    """
    from router.config.render import as_yaml
    from router.config.schema import Config

    if defaults and file is not None:
        _refuse("--defaults shows no file: leave one of them out")
    typer.echo(as_yaml(Config() if defaults else _load(file, {})), nl=False)


config_commands = typer.Typer(help="What a configuration may say.", no_args_is_help=True)
cli.add_typer(config_commands, name="config")


@config_commands.command("schema", epilog="\b\nExample:\n  fairlead config schema > fairlead.schema.json\n")
def config_schema() -> None:
    """Print the JSON Schema of the configuration.

    For editors: with `# yaml-language-server: $schema=fairlead.schema.json` as its first line they check a file
    while it is written.
    """
    from router.config.json_schema import as_json_schema

    typer.echo(as_json_schema(), nl=False)


@cli.command("hash-key", epilog="\b\nExample:\n  openssl rand -hex 32 | tee team-a.key | fairlead hash-key\n")
def hash_key() -> None:
    """Hash an API key.

    Reads the key from the terminal or standard input and prints its hash for `key_hashes`.
    """
    from router.config import api_keys as keys

    if sys.stdin.isatty():
        key = typer.prompt("API key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline().rstrip("\r\n")
    try:
        typer.echo(keys.hash_key(keys.checked(key)))
    except ValueError as error:
        _refuse(str(error))


@cli.command("version")
def version() -> None:
    """Print the version."""
    _print_version(wanted=True)


def _load(path: Path | None, overrides: dict[str, dict[str, Any]]) -> "Config":
    """Read the configuration, or end the program with everything that is wrong in it."""
    from router.config.schema import Config
    from router.config.yaml_lines import ConfigError

    try:
        config = Config.load(path, os.environ, overrides)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None
    for note in config.notes:
        typer.echo(f"note: {note}", err=True)
    return config


def _listen(host: str | None, port: int | None) -> dict[str, dict[str, Any]]:
    given = {"host": host, "port": port}
    return {"listen": {name: value for name, value in given.items() if value is not None}}


def _numbers(gpus: str | None) -> list[int] | None:
    if gpus is None:
        return None
    try:
        return [int(number) for number in gpus.split(",")]
    except ValueError:
        _refuse(f"--gpus {gpus}: give numbers with commas between them, such as 0,1")


def _refuse(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(2)


def _run(program: Coroutine[Any, Any, None]) -> None:
    """Run a program on uvloop to its end. What is expected to go wrong becomes one message and status 1."""
    import uvloop

    from router.commands.startup import StartError
    from router.config.yaml_lines import ConfigError
    from workers.launch.errors import LaunchError

    try:
        uvloop.run(program)
    except (StartError, LaunchError) as error:
        typer.echo(f"fairlead: {error}", err=True)
        raise typer.Exit(1) from None
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        # Stopped while starting; what had been started has been taken down on the way here.
        raise typer.Exit(0) from None
