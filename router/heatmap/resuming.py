"""A measurement that goes on where it was interrupted: what its file says, and whether it is the same one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.heatmap.file import read_heatmap
from router.heatmap.measure import Bench
from router.heatmap.sweep import Findings, Sweep

_SAME = ("model", "workers_per_side", "requests_per_worker", "most_tokens", "seed")
"""Conditions under which the batches of both parts can stand in one map."""


class DifferentSweepError(ValueError):
    """A file that another measurement has written; the message says how they differ."""


def conditions_of(bench: Bench, sweep: Sweep, hardware: str) -> dict[str, Any]:
    """What goes into the file beside the gains; `batches_done` is moved as the measurement goes on."""
    versions = sorted({facts.version for facts in bench.facts if facts.version is not None})
    return {
        "model": bench.facts[0].model,
        "profile": "measured",
        "hardware": hardware,
        "versions": {"vllm": ", ".join(versions) or "not said"},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "workers_per_side": bench.workers,
        "requests_per_worker": sweep.requests,
        "most_tokens": sweep.most_tokens,
        "seed": sweep.seed,
        "batches": sum(1 for _ in sweep.places()),
        "batches_done": 0,
    }


def resumed(file: Path, sweep: Sweep, conditions: Mapping[str, Any]) -> tuple[Findings, int]:
    """What was found so far, and how many batches that took. Raises HeatmapError, DifferentSweepError."""
    before = read_heatmap(file).measured
    there: dict[str, Any] = {name: before.conditions.get(name) for name in _SAME}
    there |= {"prompt lengths": before.prefill_tokens, "ratios": before.ratios}
    there["rates"] = tuple(layer.rate_per_s for layer in before.layers)
    here: dict[str, Any] = {name: conditions[name] for name in _SAME}
    here |= {"prompt lengths": sweep.prefill_tokens, "ratios": sweep.ratios, "rates": sweep.rates_per_s}
    for name, value in here.items():
        if there[name] != value:
            raise DifferentSweepError(f"{file}: measured with {name} {there[name]}, now it would be {value}")
    done = before.conditions.get("batches_done")
    places = list(sweep.places())
    if not isinstance(done, int) or isinstance(done, bool) or not 0 <= done <= len(places):
        raise DifferentSweepError(
            f"{file}: does not say how many of {len(places)} batches are done (batches_done)"
        )
    findings = Findings(sweep)
    for place in places[:done]:
        findings.gains[place] = before.layers[place.rate].gains[place.row][place.column]
    return findings, done
