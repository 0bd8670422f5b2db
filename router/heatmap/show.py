"""A heatmap as a person reads it: a table in the terminal, a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from policies.estimates.heatmap import Heatmap, LearnedHeatmap

_WIDTH = 140
_STRONG = 0.1
"""A gain that is shown in full colour."""


def print_heatmap(heatmap: Heatmap | LearnedHeatmap) -> None:
    """The gains in percent, row by row, and the conditions they were measured under."""
    measured, gains = _parts(heatmap)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for name, value in measured.conditions.items():
        console.print(f"{name}: {_plain(value)}", highlight=False)
    console.print(
        f"rates: {', '.join(f'{layer.rate_per_s:g}' for layer in measured.layers)} requests/s per worker"
    )
    table = Table(
        title="gain of disaggregating in %, mean over the rates: + a prefill/decode pair is faster",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("prompt \\ answer/prompt", no_wrap=True)
    for ratio in measured.ratios:
        table.add_column(f"{ratio:.3g}", justify="right", no_wrap=True)
    for row, length in enumerate(measured.prefill_tokens):
        cells = [_cell(heatmap, row, column, gain) for column, gain in enumerate(gains[row])]
        table.add_row(f"{length:,}", *cells)
    console.print(table)
    console.print("( ) not measured: its nearest neighbour's   * learned from requests", highlight=False)
    agreement = measured.agreement()
    if agreement is not None:
        console.print(f"{agreement:.0%} of the cells have the same sign at every rate", highlight=False)


def plot_heatmap(heatmap: Heatmap | LearnedHeatmap, file: Path) -> None:
    """Draw the map that decides and, beside it, each rate's. Raises ImportError without matplotlib, OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    measured, gains = _parts(heatmap)
    panels: list[tuple[str, Sequence[Sequence[float | None]]]] = [("all rates (mean)", gains)]
    panels += [(f"{layer.rate_per_s:g} requests/s per worker", layer.gains) for layer in measured.layers]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, values) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        numbers = [[float("nan") if gain is None else 100 * gain for gain in row] for row in values]
        image = axes.imshow(numbers, cmap="RdBu", vmin=-50, vmax=50, origin="lower", aspect="auto")
        axes.set_title(title)
        axes.set_xticks(range(len(measured.ratios)), [f"{ratio:.3g}" for ratio in measured.ratios], rotation=45)
        axes.set_yticks(range(len(measured.prefill_tokens)), [f"{length:,}" for length in measured.prefill_tokens])
        axes.set_xlabel("answer / prompt")
        axes.set_ylabel("prompt, tokens")
    figure.colorbar(image, ax=figure.axes, label="gain of disaggregating, %")
    figure.suptitle(str(measured.conditions.get("profile") or measured.conditions.get("model") or ""))
    figure.savefig(file)


def _parts(heatmap: Heatmap | LearnedHeatmap) -> tuple[Heatmap, Sequence[Sequence[float]]]:
    if isinstance(heatmap, LearnedHeatmap):
        return heatmap.measured, heatmap.gains
    return heatmap, heatmap.total


def _cell(heatmap: Heatmap | LearnedHeatmap, row: int, column: int, gain: float) -> Text:
    measured = heatmap.measured if isinstance(heatmap, LearnedHeatmap) else heatmap
    known = any(layer.gains[row][column] is not None for layer in measured.layers)
    learned = isinstance(heatmap, LearnedHeatmap) and gain != measured.total[row][column]
    text = f"{100 * gain:+.0f}{'*' if learned else ''}"
    colour = "green" if gain > 0 else "red"
    style = colour if abs(gain) >= _STRONG else f"dim {colour}"
    return Text(text if known or learned else f"({text})", style)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
