"""Do the papers' orderings come out in the lab, and where does the shipped default stand among them?

    python -m benchmarks.papers --out benchmarks/papers/results

Three parts, all in virtual time: D²LPM against VTC, Preble and round robin (`d2lpm`), dist_sched with its heatmap
against round robin (`dist_sched`), orders under a memory limit beside a lower bound on the optimum (`memory`). The
tables go to standard output as Markdown; `--out` writes them, `papers.json` and the pictures into a folder.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.fleet.report import commit, machine
from benchmarks.papers import d2lpm, dist_sched, memory
from benchmarks.papers.runner import Runner
from benchmarks.papers.tables import markdown

PARTS: Mapping[str, Callable[[Runner, int], dict[str, Any]]] = {
    "d2lpm": d2lpm.reproduce,
    "dist_sched": dist_sched.reproduce,
    "memory": memory.reproduce,
}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default=",".join(PARTS), help="parts, with commas between (%(default)s)")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="write tables.md, papers.json and pictures (need matplotlib)")
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    started = time.perf_counter()
    with Runner(chosen.jobs, lambda text: print(text, file=sys.stderr, flush=True)) as runner:
        found = {name: PARTS[name](runner, chosen.seed) for name in names}
    where = machine()
    title = f"commit {commit()}, seed {chosen.seed}, {where['cores']} cores of {where['cpu']}"
    tables = f"{title}, {time.perf_counter() - started:.0f} s\n\n{markdown(found)}"
    print(tables, end="")
    if chosen.out:
        from benchmarks.papers import plots  # noqa: PLC0415  # matplotlib is an extra

        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "tables.md").write_text(tables)
        (chosen.out / "papers.json").write_text(json.dumps({"title": title, **found}))
        plots.draw(chosen.out, found, title)


if __name__ == "__main__":
    main()
