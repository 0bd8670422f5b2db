"""The tables of a run as Markdown, and who comes before whom."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.papers import d2lpm, memory
from benchmarks.papers.runner import Row

_TITLES = {
    "overload": "150% of capacity, nobody misbehaves",
    "s1": "S1: one client sends more",
    "s2": "S2: one client sends longer prefixes",
    "tight": "150% of capacity, small KV cache",
}
_TIMES = {"e2e_s": "end to end", "ttft_s": "to the first token"}


def markdown(found: Mapping[str, Any]) -> str:
    """Every part that is there, with its headings."""
    parts: Mapping[str, Callable[[Any], Iterator[str]]]
    parts = {"d2lpm": _d2lpm, "dist_sched": _dist_sched, "memory": _memory}
    return "\n".join(line for name, part in parts.items() if name in found for line in part(found[name])) + "\n"


# -- D2LPM


def _d2lpm(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## D²LPM"
    for situation, title in _TITLES.items():
        table = found[situation]
        yield from ("", f"### {title}: service per second, prefix hits", "")
        yield from _by_workers(table, lambda row: f"{row['service_per_s']:,.0f}, {row['hits']:.0%}")
        yield from ("", f"Service over that of `{d2lpm.VTC}`:")
        yield from _over(table, d2lpm.VTC, lambda row: row["service_per_s"])
        if situation in ("s1", "s2"):
            for key, what in _TIMES.items():
                yield from ("", f"### {title}: the well-behaved, {what}, P50 / P99 in s", "")
                yield from _by_workers(table, partial(_well_behaved, key))
                for base in (d2lpm.PREBLE, d2lpm.RR_LPM):
                    yield from ("", f"P99 {what} of the well-behaved under `{base}` over that under the others:")
                    yield from _over(table, base, partial(_sooner, key))
    for cache, table in found["quanta"].items():
        yield from ("", f"### {_TITLES['overload']}, {cache}, D²LPM as printed: service per second, hits", "")
        yield from _by_workers(table, lambda row: f"{row['service_per_s']:,.0f}, {row['hits']:.0%}")
    for situation, table in found["variants"].items():
        title = f"{_TITLES[situation]}: service per second, hits, well-behaved to the first token P50 / P99 in s"
        yield from ("", f"### The default varied, {title}", "")
        yield from _by_workers(table, _variant)
    yield ""


def _variant(row: Row) -> str:
    return f"{row['service_per_s']:,.0f}, {row['hits']:.0%}, {_well_behaved('ttft_s', row)}"


def _well_behaved(key: str, row: Row) -> str:
    times = row["well_behaved"][key]
    return f"{times['p50']:.2f} / {times['p99']:.2f}"


def _sooner(key: str, row: Row) -> float:
    return 1 / float(row["well_behaved"][key]["p99"])


def _by_workers(table: d2lpm.Table, cell: Any) -> Iterator[str]:
    columns = [(name, count) for name, counts in table.items() for count in counts]
    yield "| | " + " | ".join(f"{name} x {count}" for name, count in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for combination in next(iter(next(iter(table.values())).values())):
        cells = (cell(table[name][count][combination]) for name, count in columns)
        yield f"| {_bold(combination)} | " + " | ".join(cells) + " |"


def _over(table: d2lpm.Table, base: str, figure: Any) -> Iterator[str]:
    """Each combination's figure over the base's, at each number of workers."""
    yield ""
    for combination in d2lpm.COMBINATIONS:
        if combination != base:
            parts = []
            for name, counts in table.items():
                ratios = (figure(rows[combination]) / figure(rows[base]) for rows in counts.values())
                parts.append(f"{name} {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
            yield f"- {_bold(combination)}: {'; '.join(parts)}"


# -- dist_sched


def _dist_sched(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## dist_sched"
    agreement = found["heatmap"]["agreement"]
    yield from ("", "The shipped heatmap disaggregates in {positive} of {cells} cells;".format(**found["heatmap"]))
    yield f"{agreement:.0%} of the cells have the same sign at every rate."
    for workload, rates in found["pools"].items():
        yield from ("", f"### {workload}: mean time end to end / to the first token in s, share on pairs", "")
        yield "| | " + " | ".join(f"{rate:g}/s" for rate in rates) + " |"
        yield "|---|" + "---|" * len(rates)
        for combination in next(iter(rates.values())):
            cells = (
                f"{row['e2e_s']['mean']:.2f} / {row['ttft_s']['mean']:.2f}, {row['disaggregated']:.0%}"
                for row in (rows[combination] for rows in rates.values())
            )
            yield f"| {_bold(combination)} | " + " | ".join(cells) + " |"
    yield ""


# -- memory


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Memory limit"
    yield from ("", "### Unit steps, exact lengths: total completion time over the lower bound on the optimum", "")
    yield from _ratios(found["exact"], lambda row: f"{row['ratio']:.2f}")
    yield from ("", "### Unit steps, log-normal, lengths known up to a factor: the same, and preemptions", "")
    widths = {f"factor {width}": rows for width, rows in found["intervals"].items()}
    yield from _ratios(widths, lambda row: f"{row['ratio']:.2f}, {row['preemptions']:.0f}")
    yield from ("", "### Simulated H100, estimated lengths: seconds", "")
    yield "| | end to end mean | P50 | P99 | over the bound | to the first token, mean | preemptions |"
    yield "|---|---|---|---|---|---|---|"
    for queue, row in found["lab"].items():
        e2e = row["e2e_s"]
        yield (
            f"| {_bold(queue)} | {e2e['mean']:.1f} | {e2e['p50']:.1f} | {e2e['p99']:.1f} "
            f"| {e2e['mean'] / row['bound_s']:.2f} | {row['ttft_s']['mean']:.1f} | {row['preemptions']} |"
        )
    yield ""


def _ratios(columns: Mapping[str, Mapping[str, Row]], cell: Any) -> Iterator[str]:
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for queue in memory.QUEUES:
        yield f"| {_bold(queue)} | " + " | ".join(cell(rows[queue]) for rows in columns.values()) + " |"


# -- cells


def _bold(name: str) -> str:
    """What ships stands out."""
    ours: Iterable[str] = (d2lpm.DEFAULT, "dlpm")
    return f"**{name}**" if name.split(":", maxsplit=1)[0] in ours else name
