"""The pictures of a run, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lab.cells import LIMIT, CellFile, Combination
from benchmarks.lab.plan import Wanted, misbehaving_cells, placement_cells
from benchmarks.lab.tables import Seeds, grouped
from policies import catalog

_MOST = 3.0
"""Where the axis of ratios ends; a longer bar has its number all the same."""
_DPI = 110
_OURS, _OTHER = "tab:orange", "tab:blue"


def draw(folder: Path, wanted: Wanted, file: CellFile, title: str) -> list[Path]:
    """Write every picture of which there are rows into the folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    found = grouped(placement_cells(wanted), file)
    for load in wanted.loads:
        groups = {case: group for (case, at), group in found.items() if at == load and len(group) > 1}
        for queue in wanted.queues:
            if groups:
                figures[f"placements_{load:.0%}_{queue}.png".replace("%", "")] = placements(groups, load, queue)
    if flooded := grouped(misbehaving_cells(wanted), file):
        figures["misbehaving.png"] = misbehaving({case: group for (case, _), group in flooded.items()})
    seeds = (
        f"seeds {wanted.seeds[0]} to {wanted.seeds[-1]}" if len(wanted.seeds) > 1 else f"seed {wanted.seeds[0]}"
    )
    for name, figure in figures.items():
        figure.suptitle(f"{title}, {seeds}\n{figure.get_label()}", fontsize=10)
        figure.savefig(folder / name, dpi=_DPI)
    return [folder / name for name in figures]


def placements(groups: Mapping[str, Mapping[Combination, Seeds]], load: float, queue: str) -> Figure:
    """Mean TTFT and mean end-to-end time over the best one's, of each placement's better binding."""
    names = list(
        dict.fromkeys(
            c.placement for group in groups.values() for c in group if c.placement != LIMIT and c.queue == queue
        )
    )
    figure = Figure(figsize=(2.5 * len(groups) + 2.5, 0.24 * len(names) * 2 + 2.4), layout="constrained")
    figure.set_label(
        f"{load:.0%} of capacity, queue {queue}; the better binding of each placement over the best of all"
    )
    panels = figure.subplots(2, len(groups), sharey=True, squeeze=False)
    for column, (case, group) in enumerate(groups.items()):
        for row, (part, label) in enumerate((("ttft_s", "TTFT mean / best"), ("e2e_s", "end to end mean / best"))):
            axes = panels[row][column]
            better = {name: _better(group, name, queue, part) for name in names}
            best = min((value for value in better.values() if value is not None), default=None)
            _ratios(
                axes, names, [None if value is None or not best else value / best for value in better.values()]
            )
            axes.set_xlabel(label, fontsize=8)
            if row == 0:
                axes.set_title(case, fontsize=10)
    panels[0][0].invert_yaxis()  # shared by all
    return figure


def _better(group: Mapping[Combination, Seeds], placement: str, queue: str, part: str) -> float | None:
    values = [
        value
        for combination, seeds in group.items()
        if combination.placement == placement
        and combination.queue == queue
        and (value := seeds.mean(part, "mean")) is not None
    ]
    return min(values, default=None)


def _ratios(axes: Axes, names: list[str], ratios: list[float | None]) -> None:
    colours = [_OURS if name == catalog.DEFAULT_PLACEMENT else _OTHER for name in names]
    axes.barh(range(len(names)), [min(ratio or 0.0, _MOST) for ratio in ratios], color=colours, height=0.7)
    for number, ratio in enumerate(ratios):
        if ratio is not None:
            axes.text(min(ratio, _MOST) + 0.04, number, f"{ratio:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0.8, _MOST * 1.2)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)


def misbehaving(groups: Mapping[str, Mapping[Combination, Seeds]]) -> Figure:
    """A row per combination, two panels per case: first tokens of the well-behaved, and service."""
    names = list(dict.fromkeys(c.name for group in groups.values() for c in group))
    figure = Figure(figsize=(4.2 * len(groups) + 2.5, 0.26 * len(names) * 2 + 2.4), layout="constrained")
    figure.set_label("one misbehaving client")
    panels = figure.subplots(2, len(groups), sharey=True, squeeze=False)
    for column, (case, group) in enumerate(groups.items()):
        by_name = {combination.name: seeds for combination, seeds in group.items()}
        for row, (path, label, digits) in enumerate(
            (
                (("well_behaved_p99_s",), "TTFT p99 of the well-behaved (s)", 2),
                (("steady", "service_per_s"), "service per second, steady", 0),
            )
        ):
            axes = panels[row][column]
            values = [by_name[name].mean(*path) if name in by_name else None for name in names]
            colours = [_OTHER if name.startswith("fcfs") else _OURS for name in names]
            axes.barh(range(len(names)), [value or 0.0 for value in values], color=colours, height=0.7)
            longest = max((value for value in values if value is not None), default=1.0)
            for number, value in enumerate(values):
                if value is not None:
                    axes.text(value + longest * 0.02, number, f"{value:,.{digits}f}", va="center", fontsize=7)
            axes.set_xlim(0, longest * 1.25)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_xlabel(label, fontsize=8)
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)
            axes.tick_params(axis="x", labelsize=7)
            if row == 0:
                axes.set_title(case, fontsize=10)
    panels[0][0].invert_yaxis()  # shared by all
    return figure
