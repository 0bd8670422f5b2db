"""The pictures of a run, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.lab.runs import Table
from policies import catalog

_MOST = 3.0
"""Where the axis of ratios ends: what is worse is worse enough."""


def draw(folder: Path, found: Mapping[str, Any], title: str) -> list[Path]:
    """Write every picture into the folder, which is made if it is missing. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "placements.png": _placements(found["placements"][f"90% {catalog.DEFAULT_QUEUE}"]),
        "misbehaving.png": _misbehaving(found["misbehaving"]),
    }
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=10)
        figure.savefig(folder / name, dpi=110)
    return [folder / name for name in figures]


def _placements(table: Table) -> Figure:
    """A panel per workload: mean TTFT of each placement over the best one's."""
    cases = list(next(iter(table.values())))
    figure = Figure(figsize=(2.6 * len(cases) + 1.5, 0.28 * len(table) + 1.6), layout="constrained")
    for axes, case in zip(figure.subplots(1, len(cases), sharey=True, squeeze=False)[0], cases, strict=True):
        best = min(row[case]["ttft_mean_s"] for row in table.values())
        ratios = [row[case]["ttft_mean_s"] / best for row in table.values()]
        colours = ["tab:orange" if name == catalog.DEFAULT_PLACEMENT else "tab:blue" for name in table]
        axes.barh(list(table), [min(ratio, _MOST) for ratio in ratios], color=colours)
        for number, ratio in enumerate(ratios):
            axes.text(min(ratio, _MOST), number, f" {ratio:.2f}", va="center", fontsize=7)
        axes.set(title=case, xlim=(0.8, _MOST * 1.15), xlabel="mean TTFT / best")
        axes.tick_params(axis="y", labelsize=8)
        axes.invert_yaxis()
    return figure


def _misbehaving(table: Table) -> Figure:
    """A panel per case: down is sooner for the well-behaved, right is more service."""
    cases = list(next(iter(table.values())))
    figure = Figure(figsize=(4 * len(cases), 4), layout="constrained")
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for name, row in table.items():
            at = (row[case]["service_per_s"], row[case]["well_behaved_p99_s"])
            axes.scatter(*at, s=26, color="tab:blue" if name.startswith("fcfs") else "tab:orange")
            axes.annotate(name, at, fontsize=6, xytext=(4, 3), textcoords="offset points")
        axes.set(title=case, yscale="log", xlabel="service per second", ylabel="TTFT p99 of the well-behaved (s)")
        axes.grid(alpha=0.3)
    return figure
