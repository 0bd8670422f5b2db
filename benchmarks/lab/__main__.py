"""Is the shipped default the best, on every workload, with a client that misbehaves, and with all of its parts?

    python -m benchmarks.lab --mooncake mooncake_conversation_trace.jsonl --arena arena_clients.jsonl
    python -m benchmarks.lab --only tot,chat --loads 90 --seeds 1 --placements fairlead,cache_aware
    python -m benchmarks.lab --parts misbehaving,ablation
    python -m benchmarks.lab --calibrate

The first is the whole comparison, the second a quick look, the third adds two parts to what is there, the last
shows at which loads each fleet keeps up.

All in virtual time on simulated H100s: every placement under both bindings at shares of what its fleet can do
(`cases.py`), beside what no router can exceed; fair and unfair combinations with one misbehaving client; the
default with one part changed at a time. Each replay is kept in OUT/cells.jsonl as soon as it is finished: a run
that was stopped (Ctrl-C, --minutes) goes on where it was, and prints the tables of what there is.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.fleet.report import machine
from benchmarks.lab.cases import generated, traces
from benchmarks.lab.cells import Cell, CellFile, Row, code, measure
from benchmarks.lab.plan import (
    BINDINGS,
    Wanted,
    ablation_cells,
    calibration_cells,
    misbehaving_cells,
    placement_cells,
)
from benchmarks.lab.tables import markdown
from policies import catalog
from router.lab.processes import results_of

PARTS = {"placements": placement_cells, "misbehaving": misbehaving_cells, "ablation": ablation_cells}
OUT = Path("benchmarks/lab/results")


def main() -> None:
    """Run, print, write."""
    chosen = _arguments()
    cases = {**generated(), **traces(chosen.mooncake, chosen.arena)}
    names = list(cases) if chosen.only is None else chosen.only.split(",")
    if unknown := [name for name in names if name not in cases]:
        sys.exit(f"there is no workload {', '.join(unknown)}; known are {', '.join(cases)}")
    wanted = Wanted(
        {name: cases[name] for name in names},
        [int(load) / 100 for load in chosen.loads.split(",")],
        range(chosen.seeds),
        chosen.placements.split(","),
        chosen.queues.split(","),
        chosen.bindings.split(","),
    )
    if chosen.calibrate:
        _calibrate(wanted, chosen.jobs)
        return
    file = CellFile(chosen.out / "cells.jsonl", code(), any_version=chosen.any_version)
    if file.outdated:
        _say(f"{file.outdated} replays in {chosen.out / 'cells.jsonl'} are of other code and are not used")
    cells = [cell for part in chosen.parts.split(",") for cell in PARTS[part](wanted)]
    if not chosen.tables_only:
        _run(file, file.missing(cells), chosen.jobs, chosen.minutes)
    where = machine()
    title = f"lab of commit {code()}, {where['cores']} cores of {where['cpu']}"
    text = f"{title}\n\n{markdown(wanted, file)}"
    print(text, end="")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "tables.md").write_text(text)
    if not chosen.no_pictures:
        from benchmarks.lab.plots import draw  # noqa: PLC0415  # matplotlib is an extra

        draw(chosen.out, wanted, file, title)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--mooncake", metavar="FILE", help="a trace with prefixes, in Mooncake's format, as one more workload")
    add(
        "--arena",
        metavar="FILE",
        help="a trace with clients, such as VTC's of Chatbot Arena, as one more workload",
    )
    add("--only", help="workloads, with commas between (all)")
    add("--parts", default="placements", help=f"of {', '.join(PARTS)}, with commas between (%(default)s)")
    add("--loads", default="60,90", help="percent of capacity (%(default)s)")
    add("--seeds", type=int, default=3, help="from 0 up (%(default)s)")
    add("--placements", default=",".join(catalog.placement_policies()), help="with commas between (all)")
    add("--queues", default=catalog.DEFAULT_QUEUE, help="with commas between (%(default)s)")
    add("--bindings", default=",".join(BINDINGS), help="(%(default)s)")
    add("--jobs", type=int, default=1, help="processes (%(default)s)")
    add("--minutes", type=float, help="stop after this time; the next run goes on")
    add("--out", type=Path, default=OUT, metavar="DIR", help="cells.jsonl, tables.md, pictures (%(default)s)")
    add("--any-version", action="store_true", help="use replays of other code, too")
    add("--tables-only", action="store_true", help="replay nothing")
    add("--no-pictures", action="store_true")
    add("--calibrate", action="store_true", help="show at which loads each fleet keeps up, and nothing else")
    return parser.parse_args()


def _run(file: CellFile, cells: list[Cell], jobs: int, minutes: float | None) -> None:
    """Replay what is missing, until it is all there, the time is up, or Ctrl-C."""
    started = time.monotonic()
    try:
        with closing(results_of(measure, cells, jobs)) as results:
            for done, (number, row) in enumerate(results, 1):
                cell = cells[number]
                file.add(cell, row)
                took = time.monotonic() - started
                _say(
                    f"{done} of {len(cells)}, {took:.0f} s: {cell.case.name} {cell.load:.0%} seed {cell.seed} "
                    f"{cell.combination.name}"
                )
                if minutes is not None and took > 60 * minutes:
                    _say("the time is up")
                    return
    except KeyboardInterrupt:
        _say("interrupted; what is finished is kept")


def _calibrate(wanted: Wanted, jobs: int) -> None:
    """Print what each fleet does at loads below and above its capacity."""
    cells = calibration_cells(wanted.cases)
    for number, row in _in_order(cells, jobs):
        cell, window = cells[number], row["steady"]
        rate = (window["service_per_s"] or 0.0) / row["service_per_request"]
        name, times = cell.case.name, (row["ttft_s"]["mean"], row["e2e_s"]["mean"])
        print(
            f"{name} (unit {cell.case.unit:g}) at {cell.load:.0%}: {row['sent_per_s']:.1f} requests/s sent, "
            f"{rate:.1f} served, TTFT mean {times[0]:.3f} s, end to end {times[1]:.2f} s"
        )


def _in_order(cells: list[Cell], jobs: int) -> Iterator[tuple[int, Row]]:
    yield from sorted(results_of(measure, cells, jobs), key=lambda found: found[0])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
