"""The tables of a run as Markdown: what `README.md` here shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.lab.runs import Table
from policies import catalog


def markdown(found: Mapping[str, Any]) -> str:
    """Every table, with its heading."""
    lines: list[str] = []
    for title, table in found["placements"].items():
        share, queue = title.split()
        if share == "120%":
            lines += [f"### {share} of capacity, queue `{queue}`: service per second, Jain's index", ""]
            lines += _rows(table, lambda row: f"{row['service_per_s']:,.0f}, {_number(row['jain'], 3)}")
        else:
            lines += [f"### {share} of capacity, queue `{queue}`: TTFT mean / p99 in s, prefix hits", ""]
            lines += [*_rows(table, _ttft), "", *against_the_best(table)]
        lines.append("")
    lines += [
        "### One misbehaving client: TTFT p99 of the well-behaved / of that client in s, service per second",
        "",
    ]
    lines += [*_rows(found["misbehaving"], _misbehaving), "", *gain(found["misbehaving"]), ""]
    lines += ["### 90% of capacity, one part of the default changed: TTFT mean / p99 in s, prefix hits", ""]
    lines += _rows(found["ablation"], _ttft)
    return "\n".join(lines) + "\n"


def against_the_best(table: Table) -> Iterator[str]:
    """The default beside the best other placement, workload by workload."""
    ours = table[catalog.DEFAULT_PLACEMENT]
    others = {name: row for name, row in table.items() if name != catalog.DEFAULT_PLACEMENT}
    for what, key in (("mean", "ttft_mean_s"), ("p99", "ttft_p99_s")):
        parts = []
        for case, row in ours.items():
            best = min(others, key=lambda name: others[name][case][key])
            parts.append(f"{case} {row[key] / others[best][case][key]:.2f} x `{best}`")
        yield f"`{catalog.DEFAULT_PLACEMENT}` beside the best of the others, TTFT {what}: {', '.join(parts)}."


def gain(table: Table) -> Iterator[str]:
    """How much sooner the well-behaved are served than under the unfair combinations."""
    default = catalog.DEFAULT_PLACEMENT
    ours = table[f"{catalog.DEFAULT_QUEUE} / {default}"]
    unfair = {name: row for name, row in table.items() if name.startswith("fcfs") and not name.endswith(default)}
    for case, row in ours.items():
        best = min(unfair, key=lambda name: unfair[name][case]["well_behaved_p99_s"])
        lower = [
            f"{beside['well_behaved_p99_s'] / row['well_behaved_p99_s']:.1f} x lower than under `{name}` at "
            f"{row['service_per_s'] / beside['service_per_s']:.0%} of its service"
            for name, beside in (
                (best, unfair[best][case]),
                (f"fcfs / {default}", table[f"fcfs / {default}"][case]),
            )
        ]
        yield f"- {case}: {', '.join(lower)}."


def _rows(table: Table, cell: Any) -> Iterator[str]:
    cases = list(next(iter(table.values())))
    yield "| | " + " | ".join(cases) + " |"
    yield "|---|" + "---|" * len(cases)
    for name, row in table.items():
        shown = f"**{name}**" if name == catalog.DEFAULT_PLACEMENT else name
        yield f"| {shown} | " + " | ".join(cell(row[case]) for case in cases) + " |"


def _ttft(row: Mapping[str, Any]) -> str:
    return f"{row['ttft_mean_s']:.3f} / {row['ttft_p99_s']:.2f}, {row['hits']:.0%}"


def _misbehaving(row: Mapping[str, Any]) -> str:
    return f"{row['well_behaved_p99_s']:.2f} / {row['misbehaving_p99_s']:.2f}, {row['service_per_s']:,.0f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
