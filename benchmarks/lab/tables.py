"""The tables of a run as Markdown: what `README.md` here shows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.lab.cells import LIMIT, Cell, CellFile, Combination, Row
from benchmarks.lab.plan import Wanted, ablations, default, limit_of, misbehaving_cells, placement_cells
from policies import catalog

MEASURES: Mapping[str, tuple[str, str]] = {
    "TTFT mean": ("ttft_s", "mean"),
    "TTFT p99": ("ttft_s", "p99"),
    "end to end mean": ("e2e_s", "mean"),
}
"""What the default is judged by: where the number is in a row."""


@dataclass(slots=True)
class Seeds:
    """The rows of one combination on one case at one load."""

    rows: list[Row] = field(default_factory=list)

    def values(self, *path: str) -> list[float]:
        """A number of each seed that has it."""
        found = []
        for row in self.rows:
            value = row
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None  # type: ignore[assignment]
            if value is not None:
                found.append(value)
        return found

    def mean(self, *path: str) -> float | None:
        values = self.values(*path)
        return fmean(values) if values else None

    def text(self, *path: str, digits: int = 3) -> str:
        """`0.213 ±0.012`: the mean over the seeds and half their range."""
        values = self.values(*path)
        if not values:
            return "-"
        spread = f" ±{(max(values) - min(values)) / 2:,.{digits}f}" if len(values) > 1 else ""
        return f"{fmean(values):,.{digits}f}{spread}"


Grouped = dict[tuple[str, float], dict[Combination, Seeds]]
"""By case and load, then by combination."""


def grouped(cells: Iterator[Cell], file: CellFile) -> Grouped:
    """The rows that there are, those of several seeds together."""
    found: Grouped = {}
    for cell in cells:
        row = file.row(cell)
        if row is not None:
            group = found.setdefault((cell.case.name, cell.load), {})
            group.setdefault(cell.combination, Seeds()).rows.append(row)
    return found


def markdown(wanted: Wanted, file: CellFile) -> str:
    """Every table of which there are rows, with its heading."""
    lines: list[str] = []
    found = grouped(placement_cells(wanted), file)
    for queue in wanted.queues:
        lines += _verdicts(found, queue)
    for (case, load), group in found.items():
        lines += ["", f"### {case} at {load:.0%} of capacity", "", *_placements(group)]
    flooded = grouped(misbehaving_cells(wanted), file)
    if flooded:
        lines += ["", "### One misbehaving client", ""]
        for (case, load), group in flooded.items():
            lines += [f"{case}, {load:.0%} if all behaved", "", *_flood(group), ""]
    if changed := list(_ablation(wanted, file)):
        lines += [
            "",
            "### 90% of capacity, one part of the default changed: TTFT mean / end to end mean in s",
            "",
            *changed,
        ]
    return "\n".join(lines).strip() + "\n"


def _verdicts(found: Grouped, queue: str) -> Iterator[str]:
    """The default beside the best of the other placements, each under its better binding; and beside the limit."""
    rows = list(verdicts(found, queue))
    if not rows:
        return
    yield f"### The default beside the best other placement and binding, queue `{queue}`"
    yield ""
    yield "| workload | load | " + " | ".join(MEASURES) + " | hits, at most | TTFT mean, at least |"
    yield "|---|---|" + "---|" * (len(MEASURES) + 2)
    for case, load, judged, ours, bounds in rows:
        cells = []
        for mine, theirs, rival in judged:
            cells.append(f"{mine:.3f}: {mine / theirs:.2f} x {rival.placement} {rival.binding}" if theirs else "-")
        hits = f"{ours.mean('hits') or 0:.1%}, {bounds.mean('hits') or 0:.1%}"
        best = bounds.mean("ttft_s", "mean")
        yield f"| {case} | {load:.0%} | " + " | ".join(cells) + f" | {hits} | {best or 0:.3f} |"


Judged = tuple[float, float, Combination]


def verdicts(found: Grouped, queue: str) -> Iterator[tuple[str, float, list[Judged], Seeds, Seeds]]:
    """Case, load, per measure (ours, the best other, which), the default's rows, the limit's rows."""
    for (case, load), group in found.items():
        ours = {
            c: seeds for c, seeds in group.items() if c.placement == catalog.DEFAULT_PLACEMENT and c.queue == queue
        }
        others = {
            c: seeds
            for c, seeds in group.items()
            if c.placement not in {catalog.DEFAULT_PLACEMENT, LIMIT} and c.queue == queue
        }
        shipped = next((seeds for c, seeds in ours.items() if c.binding == "late"), None)
        if shipped is None or not others:
            continue
        judged = []
        for path in MEASURES.values():
            mine = shipped.mean(*path)
            # A rival counts with the seeds that the default has, or the comparison is of other workloads.
            rivals = {
                c: value
                for c, seeds in others.items()
                if len(seeds.rows) == len(shipped.rows) and (value := seeds.mean(*path)) is not None
            }
            if mine is None or not rivals:
                continue
            best = min(rivals, key=rivals.__getitem__)
            judged.append((mine, rivals[best], best))
        if len(judged) == len(MEASURES):
            yield case, load, judged, shipped, group.get(limit_of(), Seeds())


def _placements(group: Mapping[Combination, Seeds]) -> Iterator[str]:
    """A row per combination, the least mean TTFT first; the limit last."""
    columns = (
        "TTFT mean",
        "p50",
        "p99",
        "end to end mean",
        "p50",
        "p99",
        "service/s",
        "hits",
        "Jain",
        "not served",
    )
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    limits = [seeds for c, seeds in group.items() if c.placement == LIMIT]
    rows = {c: seeds for c, seeds in group.items() if c.placement != LIMIT}
    for combination, seeds in sorted(
        rows.items(), key=lambda item: item[1].mean("ttft_s", "mean") or float("inf")
    ):
        name = combination.name
        shown = f"**{name}**" if combination.placement == catalog.DEFAULT_PLACEMENT else name
        if errors := [row["error"] for row in seeds.rows if "error" in row]:
            yield f"| {shown} | {errors[0]} |" + " |" * (len(columns) - 1)
            continue
        yield (
            f"| {shown} | "
            + " | ".join(
                [
                    *_times(seeds),
                    seeds.text("steady", "service_per_s", digits=0),
                    _share(seeds.mean("hits")),
                    seeds.text("jain"),
                    seeds.text("rejected", digits=0),
                ]
            )
            + " |"
        )
    for seeds in limits:
        hits = f"{_share(seeds.mean('hits'))} (unbounded {_share(seeds.mean('unlimited_hits'))})"
        yield "| *limit of any router* | " + " | ".join([*_times(seeds), "", hits, "", ""]) + " |"


def _times(seeds: Seeds) -> list[str]:
    return [seeds.text(part, name) for part in ("ttft_s", "e2e_s") for name in ("mean", "p50", "p99")]


def _flood(group: Mapping[Combination, Seeds]) -> Iterator[str]:
    columns = (
        *("well-behaved TTFT p99", "misbehaving TTFT p99", "TTFT mean", "end to end mean"),
        *("service/s, steady", "hits", "Jain"),
    )
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for combination, seeds in sorted(
        group.items(), key=lambda item: item[1].mean("well_behaved_p99_s") or float("inf")
    ):
        cells = [
            seeds.text("well_behaved_p99_s", digits=2),
            seeds.text("misbehaving_p99_s", digits=2),
            seeds.text("ttft_s", "mean"),
            seeds.text("e2e_s", "mean"),
            seeds.text("steady", "service_per_s", digits=0),
            _share(seeds.mean("hits")),
            seeds.text("jain"),
        ]
        yield f"| {combination.name} | " + " | ".join(cells) + " |"


def _ablation(wanted: Wanted, file: CellFile) -> Iterator[str]:
    """A row per change, a column per case."""
    rows: dict[str, dict[str, str]] = {}
    names = list(wanted.cases)
    for name, combination in {"as shipped": default(), **ablations()}.items():
        cells = {}
        for case in wanted.cases.values():
            found = [file.row(Cell(case, 0.9, seed, combination)) for seed in wanted.seeds]
            seeds = Seeds([row for row in found if row is not None])
            if seeds.rows:
                cells[case.name] = f"{seeds.text('ttft_s', 'mean')} / {seeds.text('e2e_s', 'mean')}"
        if cells:
            rows[name] = cells
    if len(rows) < 2:
        return
    yield "| | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(cells.get(case, "-") for case in names) + " |"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
