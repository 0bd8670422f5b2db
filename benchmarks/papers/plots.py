"""The pictures of a run, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.papers import d2lpm, memory
from benchmarks.papers.runner import Row


def draw(folder: Path, found: Mapping[str, Any], title: str) -> list[Path]:
    """Write the pictures of every part that is there into the folder, which exists. Returns the files."""
    figures: dict[str, Figure] = {}
    if "d2lpm" in found:
        figures["d2lpm_service.png"] = _service(found["d2lpm"])
        figures["d2lpm_latency.png"] = _latency(found["d2lpm"])
    if "dist_sched" in found:
        figures["dist_sched.png"] = _rates(found["dist_sched"]["pools"])
    if "memory" in found:
        figures["memory.png"] = _memory(found["memory"])
    for name, figure in figures.items():
        figure.suptitle(title, fontsize=9)
        figure.savefig(folder / name, dpi=110)
    return [folder / name for name in figures]


def _service(tables: Mapping[str, Any]) -> Figure:
    """A panel per situation and workload: service over that of VTC with round robin, by number of workers."""
    shown = list(d2lpm.SITUATIONS)
    shapes = list(tables[shown[0]])
    figure = Figure(figsize=(4 * len(shapes), 3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(shapes), squeeze=False)
    for row, situation in zip(grid, shown, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            counts = tables[situation][shape]
            for name in d2lpm.COMBINATIONS:
                ratios = [
                    rows[name]["service_per_s"] / rows[d2lpm.VTC]["service_per_s"] for rows in counts.values()
                ]
                _line(axes, [str(count) for count in counts], ratios, name)
            axes.set(title=f"{shape}, {situation}", xlabel="workers", ylabel="service / VTC's")
    grid[0][0].legend(fontsize=7)
    return figure


def _latency(tables: Mapping[str, Any]) -> Figure:
    """A panel per situation and workload: P99 to the first token of the well-behaved, by number of workers."""
    shown = ["s1", "s2"]
    shapes = list(tables[shown[0]])
    figure = Figure(figsize=(4 * len(shapes), 3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(shapes), squeeze=False)
    for row, situation in zip(grid, shown, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            counts = tables[situation][shape]
            for name in d2lpm.COMBINATIONS:
                p99 = [rows[name]["well_behaved"]["ttft_s"]["p99"] for rows in counts.values()]
                _line(axes, [str(count) for count in counts], p99, name)
            axes.set(title=f"{shape}, {situation}", xlabel="workers", ylabel="TTFT P99 (s)", yscale="log")
    grid[0][0].legend(fontsize=7)
    return figure


def _rates(table: Mapping[str, Mapping[float, Mapping[str, Row]]]) -> Figure:
    """A row per workload: mean time end to end and to the first token, over the rate."""
    figure = Figure(figsize=(11, 4 * len(table)), layout="constrained")
    for row, (workload, rates) in zip(figure.subplots(len(table), 2, squeeze=False), table.items(), strict=True):
        for axes, key, what in ((row[0], "e2e_s", "end to end"), (row[1], "ttft_s", "to the first token")):
            for name in next(iter(rates.values())):
                _line(
                    axes,
                    [float(rate) for rate in rates],
                    [rows[name][key]["mean"] for rows in rates.values()],
                    name,
                )
            axes.set(title=workload, xlabel="requests per second", ylabel=f"mean {what} (s)", yscale="log")
        row[0].legend(fontsize=6)
    return figure


def _memory(found: Mapping[str, Any]) -> Figure:
    """Ratios to the bound: by kind of instance, by what is known of the lengths; and means on the H100."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    kinds, widths, lab = figure.subplots(1, 3)
    width = 0.8 / len(memory.QUEUES)
    for number, queue in enumerate(memory.QUEUES):
        places = [place + number * width for place in range(len(found["exact"]))]
        kinds.bar(places, [rows[queue]["ratio"] for rows in found["exact"].values()], width, label=queue)
        _line(
            widths, list(found["intervals"]), [rows[queue]["ratio"] for rows in found["intervals"].values()], queue
        )
    kinds.set_xticks([place + 0.4 for place in range(len(found["exact"]))], list(found["exact"]), fontsize=8)
    kinds.set(title="unit steps, exact lengths", ylabel="total completion time / lower bound")
    widths.set(title="unit steps, log-normal", xlabel="lengths known up to this factor")
    widths.legend(fontsize=7)
    lab.barh(list(found["lab"]), [row["e2e_s"]["mean"] for row in found["lab"].values()])
    lab.axvline(next(iter(found["lab"].values()))["bound_s"], color="black", linestyle=":")
    lab.set(title="simulated H100 (dotted: lower bound)", xlabel="mean end to end (s)")
    lab.invert_yaxis()
    return figure


def _line(axes: Axes, x: Any, y: list[float], name: str) -> None:
    """What ships is drawn thick."""
    ours = name.split(":", maxsplit=1)[0] in {d2lpm.DEFAULT, "dlpm"}
    axes.plot(x, y, marker="o", markersize=3, linewidth=2.5 if ours else 1.2, label=name)
    axes.grid(visible=True, alpha=0.3)
