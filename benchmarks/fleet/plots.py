"""Pictures of a run, as PNG files. Needs matplotlib, the extra `plots`; draws without a display."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.fleet.figures import ttft
from benchmarks.fleet.load import FLOOD, Record
from benchmarks.fleet.report import RouterRun

_COLUMNS = 2


def draw(folder: Path, runs: Sequence[RouterRun], title: str) -> list[Path]:
    """Write every picture into the folder, which is made if it is missing. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Sequence[RouterRun]], Figure]] = {
        "fleet_ttft.png": _ttft,
        "fleet_p50_p99.png": _bars,
        "fleet_waiting.png": _waiting,
    }
    files = []
    for name, picture in pictures.items():
        figure = picture(runs)
        figure.suptitle(title)
        figure.savefig(folder / name, dpi=110)
        files.append(folder / name)
    return files


def _ttft(runs: Sequence[RouterRun]) -> Figure:
    """Share of the requests with at most this time to first token: the chats, and the flood."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    chats, flood = figure.subplots(1, 2, sharey=True)
    for run in runs:
        for axes, is_flood in ((chats, False), (flood, True)):
            times = ttft([r for r in _in_window(run) if (r.client == FLOOD) == is_flood])
            if times:
                shares = [(rank + 1) / len(times) for rank in range(len(times))]
                axes.plot(times, shares, label=run.router, linewidth=1.3)
    for axes, name in ((chats, "well-behaved chats"), (flood, "flood")):
        axes.set_xscale("log")
        axes.set(title=name, xlabel="time to first token (s)", ylim=(0, 1.01))
        axes.grid(alpha=0.3)
    chats.set_ylabel("share of requests")
    chats.legend(fontsize="small")
    return figure


def _bars(runs: Sequence[RouterRun]) -> Figure:
    """Median and 99th percentile of the well-behaved clients, and the service beside them."""
    figure = Figure(figsize=(12, 1.5 + 0.55 * len(runs)), layout="constrained")
    times, service = figure.subplots(1, 2, sharey=True)
    rows = range(len(runs))
    latencies = [run.figures.well_behaved_ttft_s for run in runs]
    times.barh([row - 0.2 for row in rows], [each.p50 or 0.0 for each in latencies], height=0.38, label="p50")
    times.barh([row + 0.2 for row in rows], [each.p99 or 0.0 for each in latencies], height=0.38, label="p99")
    times.set(xlabel="well-behaved time to first token (s)")
    times.set_yticks(list(rows), [run.router for run in runs])
    times.invert_yaxis()
    times.legend()
    service.barh(list(rows), [run.figures.service_per_s for run in runs], height=0.6, color="tab:gray")
    service.set(xlabel="service per second (input + 2 x output tokens)")
    return figure


def _waiting(runs: Sequence[RouterRun]) -> Figure:
    """The waiting line inside vLLM over time, a line per server, a panel per router."""
    rows = -(-len(runs) // _COLUMNS)
    figure = Figure(figsize=(6.5 * _COLUMNS, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True)
    for number, run in enumerate(runs):
        axes = panels[number // _COLUMNS][number % _COLUMNS]
        moments = [sample.at_s - run.begin_s for sample in run.samples]
        for server, counts in enumerate(zip(*(sample.waiting for sample in run.samples), strict=True)):
            axes.step(moments, counts, where="post", linewidth=0.9, label=f"server {server}")
        axes.set_title(run.router, fontsize="small")
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.supxlabel("time in the window (s)")
    figure.supylabel("requests waiting inside vLLM")
    return figure


def _in_window(run: RouterRun) -> list[Record]:
    end_s = run.begin_s + run.figures.seconds
    return [record for record in run.records if run.begin_s <= record.sent_s < end_s]
