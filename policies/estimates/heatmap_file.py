"""A heatmap as text: JSON that carries the conditions it was measured under, checked when it is read.

    {"format": "fairlead heatmap", "version": 1, "conditions": {"model": ..., "profile": ..., "hardware": ...},
     "prefill_tokens": [128, 512], "ratios": [0.1, 1],
     "layers": [{"rate_per_s": 1.0, "gains": [[0.2, -0.1], [0.4, null]]}],
     "learned": [{"row": 0, "column": 1, "gain": 0.1, "colocated": [1.3, 8.5], "disaggregated": [1.2, 9.0]}]}

`learned` is what a gateway has learned since (`LearnedHeatmap`); a measured map has none.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from policies.estimates.heatmap import Evidence, Gains, Heatmap, Layer, LearnedHeatmap, Mean

FORMAT = "fairlead heatmap"
VERSION = 1
_MOST = 128
"""Lengths, ratios or rates; and a bound on what a foreign file can make us compute."""
_KEYS = {"format", "version", "conditions", "prefill_tokens", "ratios", "layers", "learned"}


class HeatmapError(ValueError):
    """A text that is not a heatmap: the message says where, what, and what it should be instead."""


def render(heatmap: Heatmap | LearnedHeatmap) -> str:
    """The text of a map; `parse` gives the same again."""
    measured = heatmap.measured if isinstance(heatmap, LearnedHeatmap) else heatmap
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "conditions": dict(measured.conditions),
        "prefill_tokens": measured.prefill_tokens,
        "ratios": measured.ratios,
    }
    head = json.dumps(document, indent=1)[:-2]
    layers = ",\n  ".join(_layer_text(layer) for layer in measured.layers)
    text = f'{head},\n "layers": [\n  {layers}\n ]'
    if isinstance(heatmap, LearnedHeatmap) and heatmap.evidence:
        learned = ",\n  ".join(json.dumps(_learned_entry(heatmap, cell)) for cell in sorted(heatmap.evidence))
        text += f',\n "learned": [\n  {learned}\n ]'
    return text + "\n}\n"


def parse(text: str) -> LearnedHeatmap:
    """Read a map and what was learned since. Raises `HeatmapError`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeatmapError(f"not JSON ({error}); expected a file of `fairlead heatmap measure`") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HeatmapError(f'not a heatmap: there is no `"format": "{FORMAT}"` at its top')
    if document.get("version") != VERSION:
        raise HeatmapError(f"version: {_shown(document.get('version'))}; this release reads {VERSION}")
    if unknown := sorted(set(document) - _KEYS):
        raise HeatmapError(f"unknown {', '.join(unknown)}; a heatmap has {', '.join(sorted(_KEYS))}")
    conditions = document.get("conditions")
    if not isinstance(conditions, dict):
        raise HeatmapError(
            f"conditions: {_shown(conditions)}; expected an object with the model, the hardware ..."
        )
    lengths = _axis(document, "prefill_tokens")
    if any(length != int(length) for length in lengths):
        raise HeatmapError("prefill_tokens: expected whole numbers of tokens")
    ratios = _axis(document, "ratios")
    layers = tuple(
        _layer(entry, f"layers[{number}]", len(lengths), len(ratios))
        for number, entry in enumerate(_list(document, "layers"))
    )
    if not layers:
        raise HeatmapError("layers: none; expected one for each rate that was measured")
    if all(gain is None for layer in layers for row in layer.gains for gain in row):
        raise HeatmapError(
            "layers: not one cell was measured (`fairlead heatmap measure --resume` goes on with it)"
        )
    measured = Heatmap(tuple(int(length) for length in lengths), ratios, layers, conditions)
    learned = LearnedHeatmap(measured)
    for number, entry in enumerate(_list(document, "learned") if "learned" in document else ()):
        _restore_learned(learned, entry, f"learned[{number}]")
    return learned


# -- writing


def _layer_text(layer: Layer) -> str:
    rows = ",\n    ".join(json.dumps([None if g is None else round(g, 4) for g in row]) for row in layer.gains)
    return f'{{"rate_per_s": {json.dumps(layer.rate_per_s)}, "gains": [\n    {rows}]}}'


def _learned_entry(heatmap: LearnedHeatmap, cell: tuple[int, int]) -> dict[str, Any]:
    evidence = heatmap.evidence[cell]
    return {
        "row": cell[0],
        "column": cell[1],
        "gain": heatmap.gains[cell[0]][cell[1]],
        "colocated": [evidence.colocated.value, evidence.colocated.weight],
        "disaggregated": [evidence.disaggregated.value, evidence.disaggregated.weight],
    }


# -- reading


def _axis(document: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = [_number(value, f"{name}[{place}]") for place, value in enumerate(_list(document, name))]
    if not values:
        raise HeatmapError(f"{name}: empty; expected at least one number")
    for place, value in enumerate(values):
        if value <= (values[place - 1] if place else 0):
            raise HeatmapError(f"{name}[{place}]: {value:g}; expected positive numbers, each larger than the last")
    return tuple(values)


def _layer(entry: Any, where: str, rows: int, columns: int) -> Layer:
    if not isinstance(entry, dict):
        raise HeatmapError(f"{where}: {_shown(entry)}; expected an object with `rate_per_s` and `gains`")
    rate = _number(entry.get("rate_per_s"), f"{where}.rate_per_s")
    if rate <= 0:
        raise HeatmapError(f"{where}.rate_per_s: {rate:g}; expected a positive number")
    gains = entry.get("gains")
    if not isinstance(gains, list) or len(gains) != rows:
        raise HeatmapError(f"{where}.gains: expected {rows} rows, one for each of prefill_tokens")
    return Layer(rate, _gains(gains, f"{where}.gains", columns))


def _gains(rows: Sequence[Any], where: str, columns: int) -> Gains:
    found: list[tuple[float | None, ...]] = []
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != columns:
            raise HeatmapError(f"{where}[{place}]: expected {columns} numbers, one for each of ratios")
        gains = [None if g is None else _number(g, f"{where}[{place}][{at}]") for at, g in enumerate(row)]
        for at, gain in enumerate(gains):
            if gain is not None and gain <= -1:
                raise HeatmapError(f"{where}[{place}][{at}]: {gain:g}; a ratio of times less 1 is above -1")
        found.append(tuple(gains))
    return tuple(found)


def _restore_learned(heatmap: LearnedHeatmap, entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise HeatmapError(f"{where}: {_shown(entry)}; expected an object")
    cell = tuple(_place(entry, name, where, len(axis)) for name, axis in (
        ("row", heatmap.measured.prefill_tokens), ("column", heatmap.measured.ratios)
    ))  # fmt: skip
    means = []
    for side in ("colocated", "disaggregated"):
        pair = entry.get(side)
        if not isinstance(pair, list) or len(pair) != 2:
            raise HeatmapError(f"{where}.{side}: expected a mean and its weight")
        value, weight = (_number(number, f"{where}.{side}") for number in pair)
        if value < 0 or weight < 0 or (weight and not value):
            raise HeatmapError(f"{where}.{side}: {value:g}, {weight:g}; expected a positive mean and its weight")
        means.append(Mean(value, weight))
    gain = _number(entry.get("gain"), f"{where}.gain")
    if gain <= -1:
        raise HeatmapError(f"{where}.gain: {gain:g}; a ratio of times less 1 is above -1")
    heatmap.restore((cell[0], cell[1]), Evidence(*means), gain)


def _place(entry: Mapping[str, Any], name: str, where: str, size: int) -> int:
    place = entry.get(name)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < size:
        raise HeatmapError(f"{where}.{name}: {_shown(place)}; expected 0 to {size - 1}")
    return place


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    values = document.get(name)
    if not isinstance(values, list):
        raise HeatmapError(f"{name}: {_shown(values)}; expected a list")
    most = _MOST if name != "learned" else _MOST * _MOST
    if len(values) > most:
        raise HeatmapError(f"{name}: {len(values)} entries; at most {most} are read")
    return values


def _number(value: Any, where: str) -> float:
    # The bound keeps whole numbers of any length out, which no float holds.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < 1e15
        or not isfinite(value)
    ):
        raise HeatmapError(f"{where}: {_shown(value)}; expected a number")
    return float(value)


def _shown(value: Any) -> str:
    return "missing" if value is None else json.dumps(value)[:60]
