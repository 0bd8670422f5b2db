"""What a whole run tells: a table for people, JSON for everything else.

python -m benchmarks.fleet.report FILE...     one table of several runs' JSON, as if they were repeats of one
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from benchmarks.fleet.figures import Figures
from benchmarks.fleet.load import Record
from benchmarks.fleet.watch import Sample
from router import __version__


@dataclass(frozen=True, slots=True)
class RouterRun:
    """One router's run: its figures and what they come from."""

    router: str
    version: str
    caches_emptied: bool
    figures: Figures
    begin_s: float
    """Where the window begins on the clock of records and samples."""
    records: list[Record]
    samples: list[Sample]
    missed_samples: int


def machine() -> dict[str, Any]:
    """Where this runs, and how busy it is otherwise."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_1min_before": os.getloadavg()[0],
    }


def commit() -> str:
    """The checkout's commit, with a + where files differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def fairlead_version() -> str:
    """The installed one; the commit says more."""
    return __version__


def peer_version(program: str, command: Path) -> str:
    """The version of an installed package, asked of the interpreter beside its console script."""
    ask = f"from importlib.metadata import version; print(version({program!r}))"
    python = command.with_name("python")
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def as_json(setting: dict[str, Any], runs: Sequence[RouterRun], left_out: dict[str, str]) -> str:
    """Everything, raw records and samples included. `left_out`: routers that did not run, and why."""
    document = {"setting": setting, "left_out": left_out, "runs": [asdict(run) for run in runs]}
    return json.dumps(document, indent=1)


def read(files: Sequence[Path]) -> tuple[dict[str, Any], list[RouterRun], dict[str, str]]:
    """The first file's setting, the runs of all, and what any left out. Raises ValueError for another load."""
    documents = [json.loads(file.read_text()) for file in files]
    setting, left_out = documents[0]["setting"], {}
    for file, document in zip(files, documents, strict=True):
        for name in ("load", "servers", "model", "seconds", "commit"):
            if document["setting"][name] != setting[name]:
                raise ValueError(f"{file} has another {name} than {files[0]}: {document['setting'][name]}")
        left_out |= document["left_out"]
    runs = TypeAdapter(list[RouterRun]).validate_python([run for each in documents for run in each["runs"]])
    return setting, runs, left_out


def show(console: Console, setting: dict[str, Any], runs: Sequence[RouterRun], left_out: dict[str, str]) -> None:
    """Print the table and what it was taken on."""
    table = Table(title=f"{setting['model']} on {setting['servers']} servers, {setting['seconds']:g} s each")
    table.add_column("router", overflow="fold", min_width=40)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    by_router: dict[str, list[Figures]] = {}
    for run in runs:
        by_router.setdefault(run.router, []).append(run.figures)
    for router, repeats in by_router.items():
        table.add_row(router, *_cells(repeats))
    console.print(table)
    where = setting["machine"]
    gpu = f"{where['gpu']}, " if "gpu" in where else ""
    console.print(
        f"{gpu}{where['cores']} cores, {where['cpu']}, "
        f"load average before {where['load_average_1min_before']:.1f}; "
        f"vLLM {setting['vllm']}, commit {setting['commit']}, seed {setting['load']['seed']}"
    )
    versions = sorted({f"{run.router.split(':')[0].split(',')[0]} {run.version}" for run in runs})
    console.print(f"routers: {', '.join(versions)}")
    for router, reason in left_out.items():
        console.print(f"left out: {router}: {reason}", markup=False)
    if any(len(repeats) > 1 for repeats in by_router.values()):
        console.print("several runs of a router: their median, and the smallest to the largest", markup=False)
    for router in dict.fromkeys(run.router for run in runs if not run.caches_emptied):
        console.print(f"{router}: the servers' prefix caches could not be emptied before", markup=False)


COLUMNS = (
    "chat TTFT p50 s",
    "p99",
    "mean",
    "chat answer mean s",
    "flood p50",
    "p99",
    "service/s",
    "requests",
    "prefix hits",
    "of chats",
    "batch",
    "tokens a step",
    "vLLM waiting mean",
    "max",
    "idle, queued",
    "failed",
)


def _cells(repeats: Sequence[Figures]) -> list[str]:
    """One router's row: of several runs the median of each figure."""
    chats = [run.well_behaved_ttft_s for run in repeats]
    floods = [run.flood_ttft_s for run in repeats]
    engines = [engine for run in repeats for engine in run.engines]
    return [
        number([chat.p50 for chat in chats]),
        number([chat.p99 for chat in chats]),
        number([chat.mean for chat in chats]),
        number([run.e2e_mean_s for run in repeats]),
        number([flood.p50 for flood in floods]),
        number([flood.p99 for flood in floods]),
        number([run.service_per_s for run in repeats], ".0f"),
        number([run.requests for run in repeats], ".0f", spread=False),
        number([run.prefix_hit_ratio for run in repeats], ".1%", spread=False),
        number([run.chat_hit_ratio for run in repeats], ".1%", spread=False),
        number([engine.running for engine in engines], ".1f"),
        number([engine.tokens_per_step for engine in engines if engine.steps_per_s], ".1f", spread=False),
        number([run.waiting_mean for run in repeats], spread=False),
        number([run.waiting_max for run in repeats], ".0f", spread=False),
        number([run.idle_while_queued for run in repeats], ".1%", spread=False),
        str(sum(run.errors + run.unanswered for run in repeats)),
    ]


def number(values: Sequence[float | None], form: str = ".2f", *, spread: bool = True) -> str:
    """The median of those that are there; with the smallest and the largest where there are several."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    middle = f"{median(known):{form}}"
    return f"{middle} ({known[0]:{form}}-{known[-1]:{form}})" if spread and len(known) > 1 else middle


def main() -> None:
    """Print the table of the files on the command line."""
    if not (files := [Path(name) for name in sys.argv[1:]]):
        sys.exit("usage: python -m benchmarks.fleet.report FILE...")
    try:
        setting, runs, left_out = read(files)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.fleet.report: {error}")
    show(Console(width=200), setting, runs, left_out)


if __name__ == "__main__":
    main()
