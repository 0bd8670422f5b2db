"""Do the papers' orderings come out in the lab, and where does the shipped default stand among them?

    python -m benchmarks.papers --arena TRACE --out benchmarks/papers/results

Five parts, all in virtual time: D²LPM against VTC, Preble and round robin (`d2lpm`); VTC and DLPM on the
clients of Chatbot Arena (`arena`, only with a trace); dist_sched with its heatmap against round robin
(`dist_sched`); orders under a memory limit beside a lower bound on the optimum (`memory`), and beside the
optimum itself (`optimum`, needs the extra `benchmarks`). Every part runs with several seeds. The tables go to
standard output as Markdown, progress to standard error; `--out` writes tables, `papers.json` and the pictures
into a folder, in which the parts that are not run again keep their results.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet.report import commit, machine
from benchmarks.papers import arena, d2lpm, dist_sched, memory, small_cases
from benchmarks.papers.runner import Runner
from benchmarks.papers.tables import markdown

PARTS: Mapping[str, Callable[[Runner, Sequence[int]], dict[str, Any]]] = {
    "d2lpm": d2lpm.reproduce,
    "dist_sched": dist_sched.reproduce,
    "memory": memory.reproduce,
    "optimum": small_cases.reproduce,
}
ARENA = "arena"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default=",".join((*PARTS, ARENA)), help="parts, with commas between (%(default)s)")
    add("--seed", type=int, default=0, help="the first one (%(default)s)")
    add("--seeds", type=int, default=3, help="how many (%(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--arena", type=Path, metavar="TRACE", help="clients of Chatbot Arena, as JSON lines")
    add("--out", type=Path, metavar="DIR", help="write tables.md, papers.json and pictures (need matplotlib)")
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name and (name != ARENA or chosen.arena)]
    if unknown := [name for name in names if name not in (*PARTS, ARENA)]:
        parser.error(f"there is no part {', '.join(unknown)}; known are {', '.join((*PARTS, ARENA))}")
    if chosen.seeds < 1:
        parser.error("--seeds should be at least 1")
    found = _kept(chosen.out)
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    with Runner(chosen.jobs, lambda text: print(text, file=sys.stderr, flush=True)) as runner:
        for name in names:
            started = time.perf_counter()
            part = arena.reproduce(runner, chosen.arena) if name == ARENA else PARTS[name](runner, seeds)
            found[name] = {"title": _title(seeds, time.perf_counter() - started), **part}
            if chosen.out:  # after each part: what is interrupted later is not lost
                _write(chosen.out, found)
    print(markdown(found), end="")


def _title(seeds: range, took_s: float) -> str:
    where = machine()
    which = f"seeds {seeds.start} to {seeds.stop - 1}" if len(seeds) > 1 else f"seed {seeds.start}"
    return f"commit {commit()}, {which}, {where['cores']} cores of {where['cpu']}, {took_s:.0f} s"


def _kept(folder: Path | None) -> dict[str, Any]:
    """What an earlier run has written there, with its titles."""
    file = folder / "papers.json" if folder else None
    return dict(json.loads(file.read_text())) if file and file.exists() else {}


def _write(folder: Path, found: dict[str, Any]) -> None:
    from benchmarks.papers import plots  # noqa: PLC0415  # matplotlib is an extra

    # Read back, so that keys that are numbers are text whether a part was run now or before.
    found = json.loads(json.dumps(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "papers.json").write_text(json.dumps(found, indent=1))
    (folder / "tables.md").write_text(markdown(found))
    plots.draw(folder, found)


if __name__ == "__main__":
    main()
