"""What does the gateway cost per request, per chunk and per open stream, beside its peers, in one run?

python -m benchmarks.dataplane --peers vllm-router,sglang-router,smg,litellm --json out.json
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from benchmarks.dataplane import kernel, report
from benchmarks.dataplane.outcome import Options, Outcome
from benchmarks.dataplane.routers import FAIRLEAD, Place, found, peers
from benchmarks.dataplane.scenarios import DEFAULT, SCENARIOS, files_needed
from benchmarks.fleet.report import commit, fairlead_version, machine, peer_version
from benchmarks.fleet.routers import NotInstalledError

PEERS = Path("~/.cache/fairlead/peers")


def tell(text: str) -> None:
    """Progress goes to standard error; the table alone to standard output."""
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.dataplane", description=__doc__.split("\n", 1)[0])
    add = command.add_argument
    add("--peers", default="", help=f"with commas between, of {', '.join(peers())}; also {FAIRLEAD}@DIR")
    add("--scenarios", default=",".join(DEFAULT), help=f"of {', '.join(SCENARIOS)}; or `all`")
    add("--seconds", type=float, default=4.0, help="measured per router and round")
    add("--rounds", type=int, default=5, help="after one that only warms up")
    add("--workers", type=int, default=4, help="backends behind each router")
    add("--streams", type=int, default=5000, help="open at once in the scenario `memory`")
    add("--rate", type=float, default=300.0, help="requests per second in the scenario `open-loop`")
    add(
        "--peers-at",
        type=Path,
        default=PEERS,
        help="folder of environments with the peers' commands (%(default)s)",
    )
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="OUT", help="write every value of every round")
    return command


@asynccontextmanager
async def backends(count: int, adapters: int = 0) -> AsyncIterator[tuple[str, ...]]:
    """Addresses of backends, in a process of their own; each lists a number of adapters."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.dataplane.backend", str(count), str(adapters)),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    try:
        ports = (await process.stdout.readline()).split()
        yield tuple(f"http://127.0.0.1:{int(port)}" for port in ports)
    finally:
        process.stdin.close()  # it ends when nothing more can come
        await process.wait()


async def measure(names: list[str], options: Options, given: argparse.Namespace) -> dict[str, Outcome]:
    """Each scenario in turn."""
    log_dir = Path(tempfile.mkdtemp(prefix="fairlead-dataplane-"))
    tell(f"logs of the routers: {log_dir}")
    outcomes = {}
    for name in names:
        async with backends(given.workers) as workers:
            place = Place(workers, given.peers_at.expanduser(), log_dir)
            outcomes[name] = await SCENARIOS[name](place, options)
    return outcomes


def versions(routers: tuple[str, ...], below: Path) -> dict[str, str]:
    """What runs, as its packages say; nothing of those that are not there."""
    known_ = {FAIRLEAD: fairlead_version()}
    for name in routers[1:]:
        try:
            known_[name] = peer_version(name, found(name, below))
        except NotInstalledError:
            continue
    return known_


def main() -> None:
    """Measure, print the table, write what was asked for."""
    command = parser()
    given = command.parse_args()
    routers = (FAIRLEAD, *(name for name in given.peers.split(",") if name))
    names = list(SCENARIOS) if given.scenarios == "all" else given.scenarios.split(",")
    for name in routers[1:]:
        if name not in peers() and not name.startswith(f"{FAIRLEAD}@"):
            command.error(f"there is no router {name!r}; known are {', '.join(peers())}")
    for name in names:
        if name not in SCENARIOS:
            command.error(f"there is no scenario {name!r}; known are {', '.join(SCENARIOS)}")
    options = Options(routers, given.seconds, given.rounds, given.streams, given.rate, given.seed, tell)
    files = kernel.raise_file_limit()
    for name in names:
        if (needed := files_needed(name, options)) > files:
            command.error(
                f"the scenario {name!r} needs {needed} open files per process, and the hard limit is {files}: "
                f"raise it (`ulimit -Hn {needed}` as root) or take fewer `--streams`"
            )
    setting: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "routers": list(routers),
        "versions": versions(routers, given.peers_at.expanduser()),
        "seed": given.seed,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "workers": given.workers,
    }
    outcomes = uvloop.run(measure(names, options, given))
    report.show(Console(width=200), setting, outcomes)
    if given.json:
        given.json.write_text(report.as_json(setting, outcomes))


if __name__ == "__main__":
    main()
