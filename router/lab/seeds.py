"""Several replays of one combination that differ in their seed, as one report.

Every number of the merged report is the mean over the seeds that have it. Beside those:

- `seeds`: the seeds, instead of `seed`;
- `spread`: the least and the largest value of every number, as [min, max], in the shape of the report;
- `runs`: the reports themselves.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

_NO_SPREAD = {"clients", "roles", "seed", "wall_s", "limit"}
"""Parts of a report whose spread is left out: it is there in `runs`."""


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report for all, at least one; a single one stays as it is."""
    if len(reports) == 1:
        return reports[0]
    mean = _mean(reports)
    del mean["seed"]
    numbers = [{name: value for name, value in report.items() if name not in _NO_SPREAD} for report in reports]
    seeds = [report["seed"] for report in reports]
    return {**mean, "seeds": seeds, "spread": _extremes(numbers), "runs": list(reports)}


def seeds_of(report: dict[str, Any]) -> list[int]:
    """The seeds that a report, merged or not, is about."""
    seeds: list[int] = report["seeds"] if "seeds" in report else [report["seed"]]
    return seeds


def extremes(report: dict[str, Any], *path: str) -> tuple[float, float] | None:
    """The least and largest value over the seeds of the number at this path; None for one seed, or no number."""
    value: Any = report.get("spread")
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else (value[0], value[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keys(values: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for value in values for key in value))


def _mean(values: Sequence[Any]) -> Any:
    there = [value for value in values if value is not None]
    if not there:
        return None
    if all(isinstance(value, dict) for value in there):
        return {key: _mean([value[key] for value in there if key in value]) for key in _keys(there)}
    if all(map(_is_number, there)):
        return there[0] if all(value == there[0] for value in there) else fmean(there)
    return there[0]


def _extremes(values: Sequence[Any]) -> Any:
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, dict) for value in there):
        parts = {key: _extremes([value[key] for value in there if key in value]) for key in _keys(there)}
        return {key: part for key, part in parts.items() if part is not None} or None
    if there and all(map(_is_number, there)):
        return [min(there), max(there)]
    return None
