"""What a whole run tells: a table for people, JSON for everything else."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fleet.figures import Figures, Latency
from benchmarks.fleet.load import Record
from benchmarks.fleet.watch import Sample


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
    return version("fairlead")


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


def show(console: Console, setting: dict[str, Any], runs: Sequence[RouterRun], left_out: dict[str, str]) -> None:
    """Print the table and what it was taken on."""
    table = Table(title=f"{setting['model']} on {setting['servers']} servers, {setting['seconds']:g} s each")
    table.add_column("router", overflow="fold", min_width=40)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(run.router, *_cells(run.figures))
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
    for run in runs:
        if not run.caches_emptied:
            console.print(f"{run.router}: the servers' prefix caches could not be emptied before", markup=False)


COLUMNS = (
    "chat TTFT p50 s",
    "p99",
    "mean",
    "flood p50",
    "p99",
    "service/s",
    "requests",
    "prefix hits",
    "of chats",
    "vLLM waiting mean",
    "max",
    "idle, queued",
    "failed",
)


def _cells(figures: Figures) -> list[str]:
    chat, flood = figures.well_behaved_ttft_s, figures.flood_ttft_s
    return [
        *_latency(chat),
        _number(chat.mean),
        *_latency(flood),
        f"{figures.service_per_s:.0f}",
        str(figures.requests),
        _share(figures.prefix_hit_ratio),
        _share(figures.chat_hit_ratio),
        _number(figures.waiting_mean),
        "-" if figures.waiting_max is None else str(figures.waiting_max),
        _share(figures.idle_while_queued),
        str(figures.errors + figures.unanswered),
    ]


def _latency(latency: Latency) -> list[str]:
    return [_number(latency.p50), _number(latency.p99)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
