"""Pictures of a comparison, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from router.lab.comparison import CombinationResult

_PANELS = 12
"""Combinations shown where each has a panel of its own: the first ones, as sorted."""
_CLIENTS = 8
"""Clients shown by name: those with the most service."""


def draw(folder: Path, entries: Sequence[CombinationResult], title: str) -> list[Path]:
    """Write every picture into the folder, which is made if it is missing. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Sequence[CombinationResult]], Figure]] = {
        "ttft.png": _ttft,
        "service_per_client.png": _service,
        "throughput_and_fairness.png": _tradeoff,
        "hit_ratio.png": _hit_ratio,
        "worker_load.png": _worker_load,
    }
    files = []
    for name, picture in pictures.items():
        figure = picture(entries)
        figure.suptitle(title)
        figure.savefig(folder / name, dpi=110)
        files.append(folder / name)
    return files


def _ttft(entries: Sequence[CombinationResult]) -> Figure:
    """Share of requests with at most this time to first token."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for entry in entries:
        times = entry.curves.ttft_s
        axes.plot(times, [(rank + 1) / len(times) for rank in range(len(times))], label=entry.name, linewidth=1.2)
    axes.set_xscale("log")
    axes.set(xlabel="time to first token (s)", ylabel="share of requests", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def _service(entries: Sequence[CombinationResult]) -> Figure:
    """Service of each client up to a moment: parallel lines are fair, a line that bends down waits."""
    shown = entries[:_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, entry in enumerate(shown):
        axes = panels[number // columns][number % columns]
        service, bin_s = entry.curves.service, entry.curves.bin_s
        largest = sorted(service, key=lambda client: -service[client][-1])[:_CLIENTS]
        for client in sorted(largest):
            axes.plot([bin_s * (n + 1) for n in range(len(service[client]))], service[client], label=client)
        axes.set_title(entry.name, fontsize=9)
        axes.grid(alpha=0.3)
        if number == 0:
            _legend(axes)
    for number in range(len(shown), rows * columns):
        panels[number // columns][number % columns].set_visible(False)
    figure.supxlabel("time (s)", fontsize=10)
    figure.supylabel("service so far", fontsize=10)
    return figure


def _tradeoff(entries: Sequence[CombinationResult]) -> Figure:
    """Up and to the right is better."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for entry in entries:
        fairness = entry.report["jain"]
        if fairness is not None:
            at = (entry.report["service_per_s"], fairness)
            axes.scatter(*at, s=28)
            axes.annotate(entry.name, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
    if not axes.collections:
        axes.text(0.5, 0.5, "never two clients at once", ha="center", transform=axes.transAxes)
    axes.set(xlabel="service per second", ylabel="Jain's index of service per client")
    axes.grid(alpha=0.3)
    return figure


def _hit_ratio(entries: Sequence[CombinationResult]) -> Figure:
    figure, axes = _rows_of(entries)
    axes.barh([entry.name for entry in entries], [entry.report["prefix_hit_ratio"] for entry in entries])
    axes.set(xlabel="prompt tokens found in the workers' caches (share)", xlim=(0, 1))
    return figure


def _worker_load(entries: Sequence[CombinationResult]) -> Figure:
    """A dot per worker; close together is even."""
    figure, axes = _rows_of(entries)
    for entry in entries:
        load = entry.curves.worker_load
        axes.scatter(load, [entry.name] * len(load), s=22, alpha=0.7)
    axes.set(xlabel="tokens computed per worker (prompt + 2 x output)", xlim=(0, None))
    return figure


def _rows_of(entries: Sequence[CombinationResult]) -> tuple[Figure, Axes]:
    """A row per combination, the first on top."""
    figure = Figure(figsize=(8, 1.4 + 0.32 * len(entries)), layout="constrained")
    axes = figure.subplots()
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", labelsize=8)
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
