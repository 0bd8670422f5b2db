"""The tables of a run as Markdown, and who comes before whom.

A number of a row is a list with one value per seed (`runner.stacked`): cells show the mean, and where the
figure is what the table is about, the least and the most in brackets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.papers import d2lpm, memory
from benchmarks.papers.runner import Row

Values = Sequence[float]
_TITLES = {
    "overload": "150% of capacity, nobody misbehaves",
    "s1": "S1: one client sends more",
    "s2": "S2: one client sends longer prefixes",
    "tight": "150% of capacity, small KV cache",
}
_TIMES = {"e2e_s": "end to end", "ttft_s": "to the first token"}


def markdown(found: Mapping[str, Any]) -> str:
    """Every part that is there, with its headings."""
    parts: Mapping[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
        "d2lpm": ("D²LPM", _d2lpm),
        "arena": ("Clients of Chatbot Arena", _arena),
        "dist_sched": ("dist_sched", _dist_sched),
        "memory": ("Memory limit", _memory),
        "optimum": ("The optimum", _optimum),
    }
    lines: list[str] = []
    for name, (title, part) in parts.items():
        if name in found:
            lines += [f"## {title}", "", found[name].get("title", ""), *part(found[name]), ""]
    return "\n".join(lines)


# -- numbers


def with_spread(values: Values, places: int = 2) -> str:
    """The mean, and the least and most of more than one."""
    mean = f"{fmean(values):,.{places}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):,.{places}f}-{max(values):,.{places}f})"


def over(values: Values, base: Values) -> list[float]:
    """Seed by seed."""
    return [value / other for value, other in zip(values, base, strict=True)]


# -- D2LPM


def _d2lpm(found: Mapping[str, Any]) -> Iterator[str]:
    for situation, title in _TITLES.items():
        table = found[situation]
        yield from ("", f"### {title}: service per second, prefix hits", "")
        yield from _by_workers(table, _service)
        yield from ("", f"Service over that of `{d2lpm.VTC}`:")
        yield from _over(table, d2lpm.VTC, lambda row, base: over(row["service_per_s"], base["service_per_s"]))
        if situation in ("s1", "s2"):
            for key, what in _TIMES.items():
                yield from ("", f"### {title}: the well-behaved, {what}, P50 / P99 in s", "")
                yield from _by_workers(table, partial(_well_behaved, key))
                for base in (d2lpm.PREBLE, d2lpm.RR_LPM):
                    yield from ("", f"P99 {what} of the well-behaved under `{base}` over that under the others:")
                    yield from _over(table, base, partial(_sooner, key))
    for key, what in _TIMES.items():
        yield from ("", f"### Several misbehaving clients: the well-behaved, {what}, P50 / P99 in s", "")
        yield from _crowds(found["crowds"], key)
    for shape, shares in found["caches"].items():
        yield from (
            "",
            f"### One worker, {shape}, 150% of capacity: service per second, hits, mean end to end in s",
            "",
        )
        yield from _caches(shares)
    for cache, table in found["quanta"].items():
        yield from ("", f"### {_TITLES['overload']}, {cache}, D²LPM as printed: service per second, hits", "")
        yield from _by_workers(table, _service)
    for situation, table in found["variants"].items():
        title = f"{_TITLES[situation]}: service per second, hits, well-behaved to the first token P50 / P99 in s"
        yield from ("", f"### The default varied, {title}", "")
        yield from _by_workers(table, lambda row: f"{_service(row)}, {_well_behaved('ttft_s', row)}")


def _service(row: Row) -> str:
    return f"{with_spread(row['service_per_s'], 0)}, {fmean(row['hits']):.0%}"


def _well_behaved(key: str, row: Row) -> str:
    times = row["well_behaved"][key]
    return f"{fmean(times['p50']):.2f} / {with_spread(times['p99'])}"


def _sooner(key: str, row: Row, base: Row) -> list[float]:
    return over(base["well_behaved"][key]["p99"], row["well_behaved"][key]["p99"])


def _by_workers(table: Mapping[str, Mapping[Any, Mapping[str, Row]]], cell: Callable[[Row], str]) -> Iterator[str]:
    columns = [(name, count) for name, counts in table.items() for count in counts]
    rows = {
        combination: [cell(table[name][count][combination]) for name, count in columns]
        for combination in next(iter(next(iter(table.values())).values()))
    }
    yield from _grid([f"{name} x {count}" for name, count in columns], rows)


def _over(table: d2lpm.Table, base: str, figure: Callable[[Row, Row], Values]) -> Iterator[str]:
    """Each combination's figure over the base's, at each number of workers."""
    yield ""
    for combination in d2lpm.COMBINATIONS:
        if combination != base:
            parts = []
            for name, counts in table.items():
                ratios = (with_spread(figure(rows[combination], rows[base])) for rows in counts.values())
                parts.append(f"{name} {', '.join(ratios)}")
            yield f"- {_bold(combination)}: {'; '.join(parts)}"


def _crowds(crowds: Mapping[str, Mapping[str, Mapping[Any, Mapping[str, Row]]]], key: str) -> Iterator[str]:
    """A column per workload and number of misbehaving clients; each table is of one number of workers."""
    columns = [
        (f"{shape}, {crowd}", rows)
        for crowd, table in crowds.items()
        for shape, counts in table.items()
        for rows in counts.values()
    ]
    rows = {name: [_well_behaved(key, rows[name]) for _, rows in columns] for name in columns[0][1]}
    yield from _grid([title for title, _ in columns], rows)


def _caches(shares: Mapping[Any, Mapping[str, Row]]) -> Iterator[str]:
    """A column per size of cache."""
    rows = {
        name: [
            f"{_service(rows[name])}, {with_spread(rows[name]['e2e_s']['mean'], 1)}" for rows in shares.values()
        ]
        for name in next(iter(shares.values()))
    }
    tokens = [fmean(next(iter(rows.values()))["kv_tokens"]) for rows in shares.values()]
    titles = [f"{float(share):.0%}: {size:,.0f} tokens" for share, size in zip(shares, tokens, strict=True)]
    yield from _grid(titles, rows)


# -- arena


def _arena(found: Mapping[str, Any]) -> Iterator[str]:
    rates = found["rates"]
    queues = next(iter(rates.values()))
    groups = next(iter(queues.values()))
    for key, what in _TIMES.items():
        yield from ("", f"### Mean over clients of the median time {what}, in s", "")
        titles = [f"{float(rate):g} x, {group} ({groups[group]['clients']})" for rate in rates for group in groups]
        rows = {
            queue: [f"{rates[rate][queue][group][key]:.2f}" for rate in rates for group in groups]
            for queue in queues
        }
        yield from _grid(titles, rows)


# -- dist_sched


def _dist_sched(found: Mapping[str, Any]) -> Iterator[str]:
    agreement = found["heatmap"]["agreement"]
    yield from ("", "The shipped heatmap disaggregates in {positive} of {cells} cells;".format(**found["heatmap"]))
    yield f"{agreement:.0%} of the cells have the same sign at every rate."
    for workload, rates in found["pools"].items():
        yield from ("", f"### {workload}: mean time end to end / to the first token in s, share on pairs", "")
        rows = {
            name: [
                f"{with_spread(row['e2e_s']['mean'])} / {fmean(row['ttft_s']['mean']):.2f}, "
                f"{fmean(row['disaggregated']):.0%}"
                for row in (rows[name] for rows in rates.values())
            ]
            for name in next(iter(rates.values()))
        }
        yield from _grid([f"{float(rate):g}/s" for rate in rates], rows)


# -- memory


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "### Unit steps, exact lengths: total completion time over the lower bound on the optimum", "")
    yield from _ratios(found["exact"], lambda row: with_spread(row["ratio"]))
    yield from ("", "### Unit steps, log-normal, lengths known up to a factor: the same, and preemptions", "")
    widths = {f"factor {width}": rows for width, rows in found["intervals"].items()}
    yield from _ratios(widths, lambda row: f"{with_spread(row['ratio'])}, {fmean(row['preemptions']):.0f}")
    yield from ("", "### Simulated H100, estimated lengths: seconds", "")
    titles = ["end to end mean", "P50", "P99", "over the bound", "to the first token, mean", "preemptions"]
    yield from _grid(titles, {queue: _in_seconds(row) for queue, row in found["lab"].items()})


def _in_seconds(row: Row) -> list[str]:
    e2e = row["e2e_s"]
    return [
        with_spread(e2e["mean"], 1),
        with_spread(e2e["p50"], 1),
        with_spread(e2e["p99"], 1),
        with_spread(over(e2e["mean"], row["bound_s"])),
        with_spread(row["ttft_s"]["mean"], 1),
        with_spread(row["preemptions"], 0),
    ]


def _ratios(columns: Mapping[str, Mapping[str, Row]], cell: Callable[[Row], str]) -> Iterator[str]:
    yield from _grid(columns, {queue: [cell(rows[queue]) for rows in columns.values()] for queue in memory.QUEUES})


# -- the optimum


def _optimum(found: Mapping[str, Any]) -> Iterator[str]:
    solved = found["solved"]
    for kind, cases in solved.items():
        gap = f", the others within {cases['gap']:.1%}" if cases["proven"] < cases["cases"] else ""
        yield from ("", f"{kind}: the optimum of {cases['proven']} of {cases['cases']} cases is proven{gap}.")
    widths = next(iter(found["ratios"].values()))
    for width in widths:
        known = "lengths known" if width == "1" else f"lengths known up to a factor of {width}"
        yield from ("", f"### {known}: total completion time over the optimum, mean (over seeds) / worst case", "")
        kinds = found["ratios"]
        rows = {
            name: [
                f"{with_spread(kinds[kind][width][name]['mean'], 3)} / {max(kinds[kind][width][name]['max']):.2f}"
                for kind in kinds
            ]
            for name in widths[width]
        }
        yield from _grid(kinds, rows)


# -- cells


def _grid(titles: Iterable[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    heads = list(titles)
    yield f"| | {' | '.join(heads)} |"
    yield "|---|" + "---|" * len(heads)
    for name, cells in rows.items():
        yield f"| {_bold(name)} | {' | '.join(cells)} |"


def _bold(name: str) -> str:
    """What ships stands out."""
    ours: Iterable[str] = (d2lpm.DEFAULT, "dlpm")
    return f"**{name}**" if name.split(":", maxsplit=1)[0] in ours else name
