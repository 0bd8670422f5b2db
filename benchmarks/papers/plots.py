"""The pictures of a run, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.papers import d2lpm, memory
from benchmarks.papers.runner import Row
from benchmarks.papers.tables import over


def draw(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write the pictures of every part that is there into the folder, which exists. Returns the files."""
    figures: dict[str, tuple[str, Figure]] = {}
    if "d2lpm" in found:
        figures["d2lpm_service.png"] = "d2lpm", _service(found["d2lpm"])
        figures["d2lpm_latency.png"] = "d2lpm", _latency(found["d2lpm"])
        figures["d2lpm_caches.png"] = "d2lpm", _caches(found["d2lpm"]["caches"])
    if "dist_sched" in found:
        figures["dist_sched.png"] = "dist_sched", _rates(found["dist_sched"]["pools"])
    if "memory" in found:
        figures["memory.png"] = "memory", _memory(found["memory"])
    if "optimum" in found:
        figures["optimum.png"] = "optimum", _optimum(found["optimum"]["ratios"])
    for name, (part, figure) in figures.items():
        figure.suptitle(f"{found[part].get('title', '')}; bars: least and most", fontsize=9)
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
                    over(rows[name]["service_per_s"], rows[d2lpm.VTC]["service_per_s"]) for rows in counts.values()
                ]
                _line(axes, [str(count) for count in counts], ratios, name)
            axes.set(title=f"{shape}, {situation}", xlabel="workers", ylabel="service / VTC's")
    grid[0][0].legend(fontsize=7)
    return figure


def _latency(tables: Mapping[str, Any]) -> Figure:
    """A panel per situation, metric and workload: P99 of the well-behaved, by number of workers."""
    shown = [(situation, key) for situation in ("s1", "s2") for key in ("e2e_s", "ttft_s")]
    shapes = list(tables["s1"])
    figure = Figure(figsize=(4 * len(shapes), 3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(shapes), squeeze=False)
    for row, (situation, key) in zip(grid, shown, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            counts = tables[situation][shape]
            for name in d2lpm.COMBINATIONS:
                p99 = [rows[name]["well_behaved"][key]["p99"] for rows in counts.values()]
                _line(axes, [str(count) for count in counts], p99, name)
            what = "end to end" if key == "e2e_s" else "TTFT"
            axes.set(title=f"{shape}, {situation}", xlabel="workers", ylabel=f"{what} P99 (s)", yscale="log")
    grid[0][0].legend(fontsize=7)
    return figure


def _caches(tables: Mapping[str, Any]) -> Figure:
    """A panel per workload: service of one worker by the size of its cache."""
    figure = Figure(figsize=(4 * len(tables), 3.5), layout="constrained")
    for axes, (shape, shares) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
        for name in next(iter(shares.values())):
            service = [rows[name]["service_per_s"] for rows in shares.values()]
            _line(axes, [100 * float(share) for share in shares], service, name)
        axes.set(
            title=f"{shape}, one worker", xlabel="KV cache, % of the working set", ylabel="service per second"
        )
        axes.legend(fontsize=7)
    return figure


def _rates(table: Mapping[str, Mapping[Any, Mapping[str, Row]]]) -> Figure:
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
    _bars(kinds, {kind: {q: row["ratio"] for q, row in rows.items()} for kind, rows in found["exact"].items()})
    kinds.set(title="unit steps, exact lengths", ylabel="total completion time / lower bound")
    for queue in memory.QUEUES:
        _line(
            widths, list(found["intervals"]), [rows[queue]["ratio"] for rows in found["intervals"].values()], queue
        )
    widths.set(title="unit steps, log-normal", xlabel="lengths known up to this factor")
    widths.legend(fontsize=7)
    means = {queue: row["e2e_s"]["mean"] for queue, row in found["lab"].items()}
    lab.barh(list(means), [fmean(values) for values in means.values()], xerr=_error(means.values()))
    lab.axvline(fmean(next(iter(found["lab"].values()))["bound_s"]), color="black", linestyle=":")
    lab.set(title="simulated H100 (dotted: lower bound)", xlabel="mean end to end (s)")
    lab.invert_yaxis()
    return figure


def _optimum(ratios: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> Figure:
    """A panel per width of interval: mean ratio to the optimum of the rules as printed, by kind of case."""
    widths = list(next(iter(ratios.values())))
    figure = Figure(figsize=(5 * len(widths), 4.5), layout="constrained")
    for axes, width in zip(figure.subplots(1, len(widths), squeeze=False)[0], widths, strict=True):
        groups = {
            kind: {
                name.removesuffix(", printed"): row["mean"]
                for name, row in rows[width].items()
                if name.endswith(", printed")
            }
            for kind, rows in ratios.items()
        }
        _bars(axes, groups)
        axes.set(title=f"lengths known up to a factor of {width}", ylabel="total completion time / optimum")
        axes.set_ylim(bottom=0.95)
    return figure


def _bars(axes: Axes, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A group of bars per key, one for each name in it."""
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + number * width for place in range(len(groups))]
        values = [group[name] for group in groups.values()]
        axes.bar(places, [fmean(one) for one in values], width, label=name, yerr=_error(values))
    axes.set_xticks([place + 0.4 for place in range(len(groups))], list(groups), fontsize=8)
    axes.legend(fontsize=6)


def _error(values: Iterable[Sequence[float]]) -> list[list[float]]:
    """How far the least lie below the means, and the most above."""
    each = list(values)
    return [[fmean(one) - min(one) for one in each], [max(one) - fmean(one) for one in each]]


def _line(axes: Axes, x: Any, y: Sequence[Sequence[float]], name: str) -> None:
    """Means with their spread; what ships is drawn thick."""
    ours = name.split(":", maxsplit=1)[0] in {d2lpm.DEFAULT, "dlpm"}
    means = [fmean(values) for values in y]
    axes.errorbar(
        x, means, yerr=_error(y), marker="o", markersize=3, capsize=2, linewidth=2.5 if ours else 1.2, label=name
    )
    axes.grid(visible=True, alpha=0.3)
