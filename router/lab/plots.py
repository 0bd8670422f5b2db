"""Pictures of a comparison, as PNG files. Needs matplotlib, the extra `plots`; draws without a display.

Every picture has a row per combination, or lines with a legend beside the axes, so that no label can lie on
another; bars carry the range over the seeds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from router.lab.comparison import CombinationResult
from router.lab.seeds import extremes, seeds_of

_PANELS = 12
"""Combinations shown where each has a panel of its own: the first ones, as sorted."""
_LINES = 16
"""Combinations that are told apart by their line: the first ones, as sorted."""
_CLIENTS = 8
"""Clients shown by name: those with the most service."""
_DPI = 110
_COLOUR = "tab:blue"
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
"""Behind a number, so that no line crosses it."""

Results = Sequence[CombinationResult]
Bounds = dict[str, Any]


def draw(folder: Path, results: Results, workload: str, rate: float, bounds: Bounds) -> list[Path]:
    """Write every picture into the folder, which is made if it is missing. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Results, Bounds], Figure]] = {
        "ttft.png": _first_tokens,
        "end_to_end.png": _ends,
        "times.png": _times,
        "service_per_client.png": _service,
        "throughput_and_fairness.png": _tradeoff,
        "hit_ratio.png": _hit_ratio,
        "worker_load.png": _worker_load,
    }
    title = _title(results[0].report, workload, rate)
    files = []
    for name, picture in pictures.items():
        figure = picture(results, bounds)
        figure.suptitle(title, fontsize=10)
        figure.savefig(folder / name, dpi=_DPI)
        files.append(folder / name)
    return files


def _title(report: dict[str, Any], workload: str, rate: float) -> str:
    seeds = seeds_of(report)
    numbers = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return (
        f"{workload}\n{report['requests']:,.0f} requests at rate x {rate:g}, {report['workers']:.0f} workers "
        f"({report['profile']}), {numbers}"
    )


def _first_tokens(results: Results, bounds: Bounds) -> Figure:
    del bounds
    return _distribution(results, [_pooled(result, "ttft_s") for result in results], "time to first token (s)")


def _ends(results: Results, bounds: Bounds) -> Figure:
    del bounds
    return _distribution(results, [_pooled(result, "e2e_s") for result in results], "time to the last token (s)")


def _pooled(result: CombinationResult, name: str) -> list[float]:
    """The times of all seeds, sorted."""
    return sorted(time for curves in result.curves for time in getattr(curves, name))


def _distribution(results: Results, times: Sequence[Sequence[float]], label: str) -> Figure:
    """Share of requests with at most this time."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots()
    for result, values in list(zip(results, times, strict=True))[:_LINES]:
        shares = [(rank + 1) / len(values) for rank in range(len(values))]
        axes.plot(values, shares, label=result.name, linewidth=1.2)
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="share of requests", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    _legend_beside(axes)
    return figure


def _times(results: Results, bounds: Bounds) -> Figure:
    """Time to first token and end to end, mean and 99th percentile; the dashed line is the limit of any router."""
    figure = Figure(figsize=(13, 1.8 + 0.3 * len(results)), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    measures = (("ttft_s", "mean"), ("ttft_s", "p99"), ("e2e_s", "mean"), ("e2e_s", "p99"))
    titles = ("first token, mean", "first token, p99", "end to end, mean", "end to end, p99")
    for axes, (part, name), title in zip(panels, measures, titles, strict=True):
        _bars(axes, results, [result.report[part][name] or 0.0 for result in results], (part, name))
        if bounds[part][name] is not None:
            axes.axvline(bounds[part][name], color="black", linestyle="--", linewidth=0.8)
        axes.set(xlabel=f"{title} (s)")
    panels[0].invert_yaxis()
    return figure


def _service(results: Results, bounds: Bounds) -> Figure:
    """Service of each client up to a moment, first seed: parallel lines are fair, a line that bends down waits."""
    del bounds
    shown = results[:_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.5 * columns + 1.5, 3.2 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    total = {client: lines[-1] for client, lines in shown[0].curves[0].service.items()}
    largest = sorted(sorted(total, key=lambda client: -total[client])[:_CLIENTS])
    for number, result in enumerate(shown):
        axes = panels[number // columns][number % columns]
        service, bin_s = result.curves[0].service, result.curves[0].bin_s
        for client in largest:
            line = service.get(client, [])
            axes.plot([bin_s * (n + 1) for n in range(len(line))], line, label=client)
        axes.set_title(result.name, fontsize=9)
        axes.grid(alpha=0.3)
        _plain_numbers(axes)
    for number in range(len(shown), rows * columns):
        panels[number // columns][number % columns].set_visible(False)
    figure.supxlabel("time (s)", fontsize=10)
    figure.supylabel("service so far", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    return figure


def _tradeoff(results: Results, bounds: Bounds) -> Figure:
    """Service in the steady window beside Jain's index, a row per combination."""
    del bounds
    figure = Figure(figsize=(11, 1.8 + 0.3 * len(results)), layout="constrained")
    service, fairness = figure.subplots(1, 2, sharey=True)
    _bars(
        service,
        results,
        [r.report["steady"]["service_per_s"] or 0.0 for r in results],
        ("steady", "service_per_s"),
    )
    service.set(xlabel="service per second, steady window")
    _bars(fairness, results, [result.report["jain"] or 0.0 for result in results], ("jain",))
    fairness.set(xlabel="Jain's index of service per client", xlim=(0, 1.15))
    service.invert_yaxis()
    return figure


def _hit_ratio(results: Results, bounds: Bounds) -> Figure:
    """Dashed: one cache of the fleet's size that knows the future; dotted: one without bound."""
    figure, axes = _rows_of(results)
    _bars(axes, results, [result.report["prefix_hit_ratio"] for result in results], ("prefix_hit_ratio",))
    axes.axvline(
        bounds["prefix_hit_ratio"], color="black", linestyle="--", linewidth=0.8, label="pooled cache, MIN"
    )
    axes.axvline(bounds["unlimited_hit_ratio"], color="black", linestyle=":", linewidth=0.8, label="unbounded")
    axes.set(xlabel="prompt tokens found in the workers' caches (share)", xlim=(0, 1.1))
    _legend_beside(axes)
    return figure


def _worker_load(results: Results, bounds: Bounds) -> Figure:
    """A dot per worker, first seed; close together is even."""
    del bounds
    figure, axes = _rows_of(results)
    for number, result in enumerate(results):
        load = result.curves[0].worker_load
        axes.scatter(load, [number] * len(load), s=22, alpha=0.7, color=_COLOUR)
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.set(xlabel="tokens computed per worker (prompt + 2 x output)", xlim=(0, None))
    _plain_numbers(axes)
    return figure


def _bars(axes: Axes, results: Results, values: Sequence[float], path: tuple[str, ...]) -> None:
    """A bar per combination with its value behind it, and the range over the seeds."""
    places = range(len(results))
    axes.barh(places, values, color=_COLOUR, height=0.7)
    longest = max(values, default=0.0) or 1.0
    for number, (result, value) in enumerate(zip(results, values, strict=True)):
        between = extremes(result.report, *path)
        end = value
        if between is not None:
            axes.plot(between, (number, number), color="black", linewidth=1)
            end = max(value, between[1])
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
        axes.text(end + longest * 0.01, number, shown, va="center", fontsize=7, bbox=_LABEL, zorder=3)
        longest = max(longest, end)
    axes.set_yticks(places, [result.name for result in results])
    axes.set_xlim(0, longest * 1.2)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    _plain_numbers(axes)


def _rows_of(results: Results) -> tuple[Figure, Axes]:
    """A row per combination, the first on top."""
    figure = Figure(figsize=(10, 1.8 + 0.3 * len(results)), layout="constrained")
    axes = figure.subplots()
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", labelsize=8)
    return figure, axes


def _plain_numbers(axes: Axes) -> None:
    """No offset and no power of ten at the end of an axis: each tick is the number itself."""
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.tick_params(axis="x", labelsize=8)


def _legend_beside(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
