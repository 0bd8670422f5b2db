"""Pictures of the parts that have none of their own, as PNG files. Needs matplotlib; draws without a display."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_TIMES = (("TTFT", "ttft_s"), ("time per token", "tpot_s"), ("end to end", "e2e_s"))


def profile(file: Path, profiles: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """What was measured (points) and what the fit says (lines): first tokens, and steps of decoding."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    prefill, decode = figure.subplots(1, 2)
    for number, (name, content) in enumerate(profiles.items()):
        colour = f"C{number}"
        points = sorted(content["points"], key=lambda point: (point["prompt_tokens"], point["batch"]))
        firsts = [point for point in points if point["kind"] == "prefill"]
        _line(prefill, firsts, "prompt_tokens", colour, name)
        longest = max(point["prompt_tokens"] for point in points if point["kind"] == "decode")
        steps = [p for p in points if p["kind"] == "decode" and p["prompt_tokens"] == longest]
        _line(decode, steps, "batch", colour, f"{name}, over {longest} tokens each")
    prefill.set(xlabel="prompt (tokens)", ylabel="time to first token (ms)", xscale="log", yscale="log")
    decode.set(xlabel="answers side by side", ylabel="time per token (ms)", ylim=(0, None))
    for axes in (prefill, decode):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def _line(axes: Any, points: list[dict[str, Any]], over: str, colour: str, name: str) -> None:
    where = [point[over] for point in points]
    axes.plot(where, [1000 * point["measured_s"] for point in points], "o", color=colour, label=name)
    axes.plot(where, [1000 * point["predicted_s"] for point in points], "-", color=colour, linewidth=1)


def pairs(file: Path, found: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Mean and p99 of each time, colocated beside a pair: a row per workload."""
    figure = Figure(figsize=(4.2 * len(_TIMES), 3.0 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(_TIMES), squeeze=False)
    for row, (workload, content) in zip(grid, found.items(), strict=True):
        for axes, (name, key) in zip(row, _TIMES, strict=True):
            for number, (arrangement, column) in enumerate(content["columns"].items()):
                values = [1000 * column[key][each] for each in ("mean", "p99")]
                axes.bar([number - 0.2, number + 0.2], values, width=0.38, color=["tab:blue", "tab:orange"])
                axes.text(number, 0, arrangement, ha="center", va="bottom", fontsize="small")
            axes.set(title=f"{workload}: {name}", ylabel="ms: mean, p99", xticks=[])
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
