"""Reports as a person reads them."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from policies import catalog
from router.lab.comparison import MEASURES, best_of_others, name_of
from router.lab.distribution import NAMES
from router.lab.seeds import extremes, seeds_of
from router.lab.setup import make_setup
from router.lab.workload import Workload

_WIDTH = 200
_CLIENTS = 20
"""Clients shown by name: those with the most service."""


def print_report(report: dict[str, Any], workload: Workload) -> None:
    """One run: its numbers, its times, its clients."""
    console = _console()
    console.print(
        f"{workload.name}: {report['requests']:,.0f} requests on {_fleet(report)} x {report['profile']}, "
        f"placement {report['placement']}, queue {report['queue']}, {report['binding']} binding, "
        f"seed {', '.join(map(str, seeds_of(report)))}",
        highlight=False,
    )
    console.print(_totals(report))
    console.print(_times(report))
    console.print(_clients(report, workload))


def print_comparison(reports: Sequence[dict[str, Any]], workload: Workload, bounds: dict[str, Any]) -> None:
    """A row per combination, the best first, then the limit of any router, then the default beside the others."""
    first = reports[0]
    seeds = seeds_of(first)
    table = Table(
        title=f"{workload.name}: {first['requests']:,.0f} requests on {_fleet(first)} x {first['profile']}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; seconds"
        + ("" if len(seeds) == 1 else ", means over the seeds and half their range"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("queue", "placement", "binding"):
        table.add_column(name, no_wrap=True)
    heads = ("TTFT", "p50", "p99", "E2E", "p50", "p99", "TPOT", "service/s", "hits", "Jain", "load CV", "SLO")
    for name in (*heads, "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(
            report["queue"],
            report["placement"],
            report["binding"],
            *(_with_spread(report, "ttft_s", name) for name in ("mean", "p50", "p99")),
            *(_with_spread(report, "e2e_s", name) for name in ("mean", "p50", "p99")),
            _seconds(report["tpot_s"]["mean"]),
            _service(report),
            f"{report['prefix_hit_ratio']:.1%}",
            "-" if report["jain"] is None else f"{report['jain']:.3f}",
            f"{report['worker_load_cv']:.3f}",
            f"{report['slo']['attained']:.1%}",
            f"{report['rejected'] + report['failed']:,.0f}",
        )
    table.add_section()
    table.add_row(
        "limit",
        "of any router",
        "",
        *(_seconds(bounds["ttft_s"][name]) for name in ("mean", "p50", "p99")),
        *(_seconds(bounds["e2e_s"][name]) for name in ("mean", "p50", "p99")),
        "",
        "",
        f"{bounds['prefix_hit_ratio']:.1%}",
    )
    console = _console()
    console.print(table)
    console.print(
        "service/s: input + 2 x output tokens per second from the first tenth of the arrivals to the last.\n"
        "limit: hits of one cache of the whole fleet's size that evicts with knowledge of the future "
        f"(without bound {bounds['unlimited_hit_ratio']:.1%}), times with those hits and no waiting.",
        highlight=False,
    )
    for line in _verdicts(reports):
        console.print(line, highlight=False)


def _verdicts(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The default as it ships beside the best of the other placements, each under its better binding."""
    pairs = best_of_others(reports, catalog.DEFAULT_PLACEMENT, make_setup().binding)
    for measure, (ours, theirs) in pairs.items():
        part, name = MEASURES[measure]
        mine, best = ours[part][name], theirs[part][name]
        ratio = f"{mine / best:.3f} x" if best else "-"
        yield f"{measure}: {name_of(ours)} {mine:.3f}, best other {name_of(theirs)} {best:.3f}: {ratio}"


def _with_spread(report: dict[str, Any], *path: str) -> str:
    """`0.213`, or `0.213 ±0.012` with half the range over the seeds."""
    value = report[path[0]][path[1]]
    between = extremes(report, *path)
    if value is None or between is None:
        return _seconds(value)
    return f"{value:.3f} ±{(between[1] - between[0]) / 2:.3f}"


def _service(report: dict[str, Any]) -> str:
    value = report["steady"]["service_per_s"]
    if value is None:
        return "-"
    between = extremes(report, "steady", "service_per_s")
    return f"{value:,.0f}" + ("" if between is None else f" ±{(between[1] - between[0]) / 2:,.0f}")


def _fleet(report: dict[str, Any]) -> str:
    """`8`, or `4 mixed + 2 prefill + 2 decode`."""
    roles = report["roles"]
    return str(report["workers"]) if set(roles) == {"mixed"} else " + ".join(f"{n} {r}" for r, n in roles.items())


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe, as wide as the tables."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _totals(report: dict[str, Any]) -> Table:
    slo, best = report["slo"], report["limit"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = (
        (
            "completed",
            f"{report['completed']:,.0f}",
            "rejected, failed",
            f"{report['rejected']:,.0f}, {report['failed']:,.0f}",
        ),
        ("duration", f"{report['duration_s']:,.1f} s", "computed in", f"{report['wall_s']:.1f} s"),
        ("input tokens", f"{report['input_tokens']:,.0f}", "output tokens", f"{report['output_tokens']:,.0f}"),
        (
            "tokens per second",
            f"{report['tokens_per_s']:,.0f}",
            "service per second",
            f"{report['service_per_s']:,.0f}, steady {_service(report)}",
        ),
        (
            "prefix hit ratio",
            f"{report['prefix_hit_ratio']:.1%}",
            "at most",
            f"{best['prefix_hit_ratio']:.1%} (unbounded cache {best['unlimited_hit_ratio']:.1%})",
        ),
        ("preemptions", f"{report['preemptions']:,.0f}", "retries", f"{report['retries']:,.0f}"),
        (
            "Jain's index",
            "- (never two clients at once)" if report["jain"] is None else f"{report['jain']:.3f}",
            "worker load CV",
            f"{report['worker_load_cv']:.3f}",
        ),
        (
            "targets",
            f"TTFT {slo['ttft_s']:g} s, TPOT {slo['tpot_s']:g} s",
            "attained by",
            f"{slo['attained']:.1%}",
        ),
    )
    for row in rows:
        table.add_row(*row)
    if len(slo["classes"]) > 1:
        for name, each in slo["classes"].items():
            table.add_row("  of which", name, "attained by", f"{each['attained']:.1%} of {each['requests']:,.0f}")
    if set(report["roles"]) != {"mixed"}:
        table.add_row("on pairs", f"{report['disaggregated']:.1%}")
    return table


def _times(report: dict[str, Any]) -> Table:
    table = Table("seconds", box=SIMPLE_HEAD, pad_edge=False)
    for name in NAMES:
        table.add_column(name, justify="right")
    for label, key in (
        ("time to first token", "ttft_s"),
        ("time per output token", "tpot_s"),
        ("end to end", "e2e_s"),
        ("wait in the queue", "queue_wait_s"),
    ):
        table.add_row(label, *(_with_spread(report, key, name) for name in NAMES))
    for label, key in (("first token at best", "ttft_s"), ("end to end at best", "e2e_s")):
        table.add_row(label, *(_seconds(report["limit"][key][name]) for name in NAMES))
    return table


def _clients(report: dict[str, Any], workload: Workload) -> Table:
    clients = report["clients"]
    table = Table("client", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("weight", "requests", "service", "TTFT p50 (s)", "p99", "E2E p50", "p99"):
        table.add_column(name, justify="right")
    shown = sorted(clients, key=lambda name: -clients[name]["service"])[:_CLIENTS]
    for name in sorted(shown):
        client = clients[name]
        table.add_row(
            f"{name} (misbehaves)" if name in workload.misbehaving else name,
            f"{workload.weights.get(name, 1.0):g}",
            f"{client['requests']:,.0f}",
            f"{client['service']:,.0f}",
            _seconds(client["ttft_s"]["p50"]),
            _seconds(client["ttft_s"]["p99"]),
            _seconds(client["e2e_s"]["p50"]),
            _seconds(client["e2e_s"]["p99"]),
        )
    if len(clients) > len(shown):
        table.caption = f"and {len(clients) - len(shown)} clients with less service"
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
