"""Is the shipped default the best, on every workload, with a client that misbehaves, and with all of its parts?

    python -m benchmarks.lab --trace mooncake_conversation_trace.jsonl --out benchmarks/lab/results

Three kinds of table, all in virtual time on simulated H100s: every placement under the same queue order at 60%,
90% and 120% of what the fleet can take (above capacity only service and fairness mean something); fair and unfair
combinations with one misbehaving client; the default with one part changed at a time. `cases.py` says at which
rates. They go to standard output as Markdown; `--out` writes them, `lab.json` and the pictures into a folder.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.fleet.report import commit, machine
from benchmarks.lab.cases import GENERATED
from benchmarks.lab.runs import Runner, everything
from benchmarks.lab.tables import markdown


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", help="a trace with prefixes, in Mooncake's format, as one more workload")
    add("--only", default=",".join(GENERATED), help="generated workloads, with commas between (%(default)s)")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="write tables.md, lab.json and pictures (need matplotlib)")
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name]
    if unknown := [name for name in names if name not in GENERATED]:
        parser.error(f"there is no workload {', '.join(unknown)}; known are {', '.join(GENERATED)}")
    runner = Runner(chosen.jobs, lambda text: print(text, file=sys.stderr, flush=True))
    found = everything(runner, names, chosen.trace, chosen.seed)
    where = machine()
    title = f"commit {commit()}, seed {chosen.seed}, {where['cores']} cores of {where['cpu']}"
    tables = f"{title}\n\n{markdown(found)}"
    print(tables, end="")
    if chosen.out:
        from benchmarks.lab import plots  # noqa: PLC0415  # matplotlib is an extra

        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "tables.md").write_text(tables)
        (chosen.out / "lab.json").write_text(json.dumps({"title": title, **found}, indent=1))
        plots.draw(chosen.out, found, title)


if __name__ == "__main__":
    main()
