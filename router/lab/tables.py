"""Reports as a person reads them."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from router.lab.workload import Workload

_WIDTH = 140
_CLIENTS = 20
"""Clients shown by name: those with the most service."""


def print_report(report: dict[str, Any], workload: Workload) -> None:
    """One run: its numbers, its times, its clients."""
    console = _console()
    console.print(
        f"{workload.name}: {report['requests']} requests on {_fleet(report)} x {report['profile']}, "
        f"placement {report['placement']}, queue {report['queue']}, {report['binding']} binding, "
        f"seed {report['seed']}",
        highlight=False,
    )
    console.print(_totals(report))
    console.print(_times(report))
    console.print(_clients(report, workload))


def print_comparison(reports: Sequence[dict[str, Any]], workload: Workload) -> None:
    """A row per combination, the best first."""
    first = reports[0]
    table = Table(
        title=f"{workload.name}: {first['requests']} requests on {_fleet(first)} x {first['profile']}; "
        "means and 99th percentiles in seconds",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("queue", "placement", "binding"):
        table.add_column(name, no_wrap=True)
    for name in ("TTFT", "p99", "TPOT", "E2E", "service/s", "hits", "Jain", "load CV", "SLO", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(
            report["queue"],
            report["placement"],
            report["binding"],
            _seconds(report["ttft_s"]["mean"]),
            _seconds(report["ttft_s"]["p99"]),
            _seconds(report["tpot_s"]["mean"]),
            _seconds(report["e2e_s"]["mean"]),
            f"{report['service_per_s']:,.0f}",
            f"{report['prefix_hit_ratio']:.1%}",
            "-" if report["jain"] is None else f"{report['jain']:.3f}",
            f"{report['worker_load_cv']:.3f}",
            f"{report['slo']['attained']:.1%}",
            str(report["rejected"]),
        )
    _console().print(table)


def _fleet(report: dict[str, Any]) -> str:
    """`8`, or `4 mixed + 2 prefill + 2 decode`."""
    roles = report["roles"]
    return str(report["workers"]) if set(roles) == {"mixed"} else " + ".join(f"{n} {r}" for r, n in roles.items())


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe, as wide as the tables."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _totals(report: dict[str, Any]) -> Table:
    slo = report["slo"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = (
        ("completed", f"{report['completed']:,}", "rejected", f"{report['rejected']:,}"),
        ("duration", f"{report['duration_s']:,.1f} s", "computed in", f"{report['wall_s']:.1f} s"),
        ("input tokens", f"{report['input_tokens']:,}", "output tokens", f"{report['output_tokens']:,}"),
        (
            "tokens per second",
            f"{report['tokens_per_s']:,.0f}",
            "service per second",
            _whole(report["service_per_s"]),
        ),
        ("prefix hit ratio", f"{report['prefix_hit_ratio']:.1%}", "preemptions", f"{report['preemptions']:,}"),
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
    if set(report["roles"]) != {"mixed"}:
        table.add_row("on pairs", f"{report['disaggregated']:.1%}")
    return table


def _times(report: dict[str, Any]) -> Table:
    table = Table("seconds", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right")
    for label, key in (
        ("time to first token", "ttft_s"),
        ("time per output token", "tpot_s"),
        ("end to end", "e2e_s"),
        ("wait in the queue", "queue_wait_s"),
    ):
        table.add_row(label, *(_seconds(report[key][name]) for name in ("mean", "p50", "p90", "p99")))
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
            f"{client['requests']:,}",
            f"{client['service']:,}",
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


def _whole(value: float) -> str:
    return f"{value:,.0f}"
