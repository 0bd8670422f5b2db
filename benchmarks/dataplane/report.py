"""The table of a run, and everything as JSON."""

import json
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.dataplane.outcome import Figure, Outcome
from benchmarks.dataplane.routers import FAIRLEAD

_LESS_IS_BETTER = ("µs", "ms", "kB", "MB")


def as_json(setting: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    """Every value of every round."""
    return json.dumps({"setting": setting, "scenarios": {n: asdict(o) for n, o in outcomes.items()}}, indent=1)


def show(console: Console, setting: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    """A line per figure, a column per router: the median, its spread, and the ratio to the best peer."""
    routers = setting["routers"]
    table = Table("figure", *routers, f"{FAIRLEAD} / best peer")
    for outcome in outcomes.values():
        for figure in outcome.figures:
            cells = [_cell(figure, router) for router in routers]
            table.add_row(
                f"{figure.name}{f', {figure.unit}' if figure.unit else ''}", *cells, _ratio(figure, routers)
            )
    console.print(table)
    console.print("Medians over rounds, smallest to largest in brackets.")
    where = setting["machine"]
    console.print(
        f"{where['cores']} cores, {where['cpu']}, load average before {where['load_average_1min_before']:.1f}; "
        f"commit {setting['commit']}, seed {setting['seed']}, "
        f"{setting['rounds']} rounds of {setting['seconds']:g} s"
    )
    console.print(f"routers: {', '.join(f'{name} {version}' for name, version in setting['versions'].items())}")
    for name, outcome in outcomes.items():
        for figure in outcome.figures:
            for router, note in figure.notes.items():
                console.print(f"{name}: {figure.name}: {router}: {note}", markup=False)
        for router, count in outcome.failed.items():
            console.print(
                f"{name}: {router}: {count} answers were not whole: {outcome.faults[router]}", markup=False
            )
        for router, reason in outcome.left_out.items():
            console.print(f"{name}: left out: {router}: {reason}", markup=False)


def _cell(figure: Figure, router: str) -> str:
    values = figure.values.get(router)
    if not values:
        return "-"
    return (
        f"{_number(median(values))} ({_number(min(values))} - {_number(max(values))})"
        if values[1:]
        else _number(values[0])
    )


def _ratio(figure: Figure, routers: list[str]) -> str:
    own = figure.median(FAIRLEAD)
    peers = [name for name in routers if not name.startswith(FAIRLEAD)]
    medians = [value for name in peers if (value := figure.median(name)) is not None]
    if own is None or not medians or figure.unit not in _LESS_IS_BETTER or min(medians) <= 0:
        return ""
    return f"{own / min(medians):.2f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
