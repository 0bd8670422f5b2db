"""One replay of the benchmark, what is kept of it, and the file that keeps it.

A *cell* is a workload at a load with a seed, under one combination of policies. Its row is appended to a file
of JSON lines as soon as it is finished, so a run that was stopped goes on where it was, and a second run adds
what is missing. Rows of other code (policies, simulator, lab) than the present are not taken for those of the
present.
"""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.lab.cases import Case
from router.lab.comparison import load
from router.lab.driver import NeverEndsError, replay
from router.lab.limits import limit
from router.lab.report import summarize
from router.lab.setup import Setup, make_setup

CODE = ("policies", "router/lab", "router/control/scheduler_factory.py", "router/heatmap", "workers/simulator")
"""What a row depends on."""
LIMIT = "limit of any router"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Combination:
    """The policies of a cell. `LIMIT` as the placement stands for what no router can exceed."""

    placement: str
    queue: str
    binding: str
    changes: tuple[tuple[str, Any], ...] = ()
    """Settings that differ from what ships, by name."""

    @property
    def name(self) -> str:
        changed = "".join(f", {name}={value}" for name, value in self.changes)
        return f"{self.queue} / {self.placement} / {self.binding}{changed}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One replay."""

    case: Case
    load: float
    seed: int
    combination: Combination

    @property
    def key(self) -> str:
        """Different for cells that differ in anything."""
        case, chosen = self.case, self.combination
        source = case.source(self.load, self.seed)
        wanted = Path(source.wanted).name if source.limit or source.rate != 1.0 else source.wanted
        parts = [wanted, source.rate, source.limit, self.seed, case.workers, dict(case.settings)]
        if chosen.placement != LIMIT:
            parts += [chosen.placement, chosen.queue, chosen.binding, dict(chosen.changes)]
        else:
            parts.append(LIMIT)
        return json.dumps(parts, sort_keys=True)

    def setup(self) -> Setup:
        chosen = self.combination
        known = chosen.placement != LIMIT
        return make_setup(
            placement=chosen.placement if known else None,
            queue=chosen.queue,
            binding=chosen.binding,
            workers=self.case.workers,
            seed=self.seed,
            settings={**self.case.settings, **dict(chosen.changes)},
            lenient=True,
        )


def measure(cell: Cell) -> Row:
    """Replay a cell, or work out its limit; what is kept of it, times in seconds."""
    workload, setup = load(cell.case.source(cell.load, cell.seed)), cell.setup()
    if cell.combination.placement == LIMIT:
        bounds = limit(workload, setup)
        return {
            "ttft_s": bounds["ttft_s"],
            "e2e_s": bounds["e2e_s"],
            "hits": bounds["prefix_hit_ratio"],
            "unlimited_hits": bounds["unlimited_hit_ratio"],
        }
    try:
        run = replay(workload, setup)
    except NeverEndsError as error:
        return {"error": str(error)}
    report = summarize(run, setup)
    row = {
        "requests": report["requests"],
        "rejected": report["rejected"] + report["failed"],
        "ttft_s": report["ttft_s"],
        "e2e_s": report["e2e_s"],
        "tpot_s": report["tpot_s"],
        "hits": report["prefix_hit_ratio"],
        "steady": report["steady"],
        "service_per_s": report["service_per_s"],
        "service_per_request": (report["input_tokens"] + 2 * report["output_tokens"])
        / max(1, report["completed"]),
        "sent_per_s": report["requests"] / (max(result.arrived for result in run.results) or 1.0),
        "jain": report["jain"],
        "slo": report["slo"]["attained"],
        "fault": run.fault,
        "wall_s": report["wall_s"],
    }
    if cell.case.misbehaving:
        p99 = {name: client["ttft_s"]["p99"] for name, client in report["clients"].items()}
        row["misbehaving_p99_s"] = p99.pop(cell.case.misbehaving, None)
        row["well_behaved_p99_s"] = max((value for value in p99.values() if value is not None), default=None)
    return row


@lru_cache(maxsize=1)
def code() -> str:
    """The state of the code that rows depend on: a digest of what git has, with a + where files differ from it."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=root)
        return done.stdout.strip()

    last = git("log", "-1", "--format=%h", "--", *CODE)
    return last + ("+" if git("status", "--porcelain", "--", *CODE) else "")


class CellFile:
    """Rows by the key of their cell, in a file of JSON lines; the last line of a key counts."""

    def __init__(self, path: Path | None, version: str, *, any_version: bool = False) -> None:
        """`path`: None keeps rows in memory only. `any_version`: rows of other code count, too."""
        self._path = path
        self._version = version
        self._rows: dict[str, Row] = {}
        self.outdated = 0
        """Rows in the file that are those of other code."""
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the last line of a run that was killed
                    continue
                if any_version or entry["code"] == version:
                    self._rows[entry["cell"]] = entry["row"]
                else:
                    self.outdated += 1

    def row(self, cell: Cell) -> Row | None:
        """What is known of a cell, None where nothing is."""
        return self._rows.get(cell.key)

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of which nothing is known, each once, in their order."""
        return list({cell.key: cell for cell in cells if cell.key not in self._rows}.values())

    def add(self, cell: Cell, row: Row) -> None:
        """Keep a row."""
        self._rows[cell.key] = row
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"cell": cell.key, "code": self._version, "row": row}) + "\n")
