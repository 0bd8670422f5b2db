"""Routers in turn in front of the same vLLM servers on the CPU: how soon do polite clients beside a flood hear?

    python -m benchmarks.fleet --model smollm2 --vllm-python PATH --models DIR --json out.json --plot DIR

README.md here says what each figure means.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.fleet import report, routers, servers
from benchmarks.fleet.comparison import PEERS, ROUTERS, Comparison, compare, tell
from benchmarks.fleet.load import SCENARIOS, LoadSettings
from benchmarks.fleet.report import RouterRun
from benchmarks.fleet.routers import RouterChoice, Surroundings
from benchmarks.fleet.servers import FleetError, ServerSettings
from workers.launch.errors import LaunchError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__.split("\n", 1)[0])
    add = command.add_argument
    add("--model", default="smollm2", help="folder below --models, and the name it is served under")
    add("--models", type=Path, help="folder of models")
    add("--vllm-python", help="interpreter of the environment that has vLLM")
    add("--workers-at", metavar="URL,URL,...", help="use servers that run already instead of starting some")
    add("--scenario", choices=SCENARIOS, default="flood", help="chats beside a flood, or more chats alone")
    add("--routers", help="with commas between; name[:key=value...] (default: those of the scenario)")
    add("--peers-python-env", type=Path, default=PEERS, help="environment with the peers' commands (%(default)s)")
    add("--seconds", type=float, default=60.0, help="measured, per router")
    add("--warm-up", type=float, default=8.0, help="seconds of load before what is measured")
    add("--repeats", type=int, default=1, help="all routers in turn, so many times; the table has medians")
    add("--no-flood", action="store_true", help="at the end the first router once more, with the flood off")
    add("--flood-open", type=int, help="requests that the flood keeps open (default: as in the scenario)")
    add("--sessions", type=int, help="chats of each polite client (default: as in the scenario)")
    add("--max-num-seqs", type=int, default=ServerSettings("", Path()).max_num_seqs)
    add("--kv-mib", type=int, default=ServerSettings("", Path()).kv_mib, help="KV cache per server")
    add("--kv-events", action="store_true", help="servers that are started here report what their caches hold")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="write everything, raw records included")
    add("--plot", type=Path, metavar="DIR", help="write pictures (needs matplotlib)")
    return command


@asynccontextmanager
async def fleet(options: argparse.Namespace, log_dir: Path) -> AsyncIterator[list[str]]:
    """The servers' addresses: those given, or three that are started here and ended with it."""
    if options.workers_at:
        yield options.workers_at.split(",")
        return
    settings = ServerSettings(
        python=options.vllm_python,
        model=options.models.expanduser() / options.model,
        max_num_seqs=options.max_num_seqs,
        kv_mib=options.kv_mib,
        kv_events=options.kv_events,
    )
    async with servers.started(settings, log_dir, tell) as specs:
        yield [spec.url for spec in specs]


def load_of(options: argparse.Namespace) -> LoadSettings:
    """The scenario's, with what is said otherwise."""
    given = {name: getattr(options, name) for name in ("sessions", "flood_open")}
    told = {name: value for name, value in given.items() if value is not None}
    return replace(SCENARIOS[options.scenario], seed=options.seed, **told)


async def measure(
    choices: list[RouterChoice], options: argparse.Namespace
) -> tuple[dict[str, Any], list[RouterRun], dict[str, str]]:
    """The setting, a run for each router that works here, and why the others do not."""
    log_dir = Path(tempfile.mkdtemp(prefix="fairlead-fleet-"))
    tell(f"logs of servers and routers: {log_dir}")
    load = load_of(options)
    machine = report.machine()
    async with fleet(options, log_dir) as urls:
        peers = options.peers_python_env.expanduser()
        around = Surroundings(tuple(urls), options.model, options.max_num_seqs, peers, log_dir)
        comparison = Comparison(
            choices, load, options.seconds, options.warm_up, no_flood=options.no_flood, repeats=options.repeats
        )
        runs, left_out, version = await compare(comparison, around)
    setting = {
        "machine": machine,
        "vllm": version,
        "servers": len(urls),
        "model": options.model,
        "seconds": options.seconds,
        "warm_up_s": options.warm_up,
        "max_num_seqs": options.max_num_seqs,
        "kv_mib": None if options.workers_at else options.kv_mib,
        "kv_events": None if options.workers_at else options.kv_events,
        "scenario": options.scenario,
        "repeats": options.repeats,
        "load": asdict(load),
        "commit": report.commit(),
    }
    return setting, runs, left_out


def main() -> None:
    """Measure, print the table, write what was asked for."""
    command = parser()
    options = command.parse_args()
    if not options.workers_at and not (options.vllm_python and options.models):
        command.error("give --vllm-python and --models to start servers, or --workers-at")
    try:
        choices = [routers.parse(text) for text in (options.routers or ROUTERS[options.scenario]).split(",")]
        setting, runs, left_out = asyncio.run(measure(choices, options))
    except ValueError as error:
        command.error(str(error))
    except (LaunchError, FleetError) as error:
        sys.exit(f"benchmarks.fleet: {error}")
    report.show(Console(width=200), setting, runs, left_out)
    if options.json:
        options.json.write_text(report.as_json(setting, runs, left_out))
    if options.plot and runs:
        from benchmarks.fleet import plots  # noqa: PLC0415  # matplotlib is an extra

        plots.draw(options.plot, runs, f"{setting['model']}, commit {setting['commit']}")


if __name__ == "__main__":
    main()
