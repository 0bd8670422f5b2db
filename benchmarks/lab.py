"""The shipped policies against the others in the lab, on every generated workload and, if given, on a trace.

    python -m benchmarks.lab [--trace mooncake_conversation_trace.jsonl] [--only judge,longqa] [--seed 0]

Three tables: placements under one queue order at about 60% and 90% of what four workers can take; queue orders
with one misbehaving client; the shipped placement with its parts switched off one at a time. Rates were found by
raising them until requests wait for more than a second on average (`CAPACITY`, requests per second of well-behaved
clients; the trace by its rate factor on eight workers).
"""

import argparse
import platform
import subprocess
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from router.lab.compare import Source, load
from router.lab.driver import replay
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Workload

CAPACITY = {"judge": 50.0, "longqa": 7.0, "tot": 270.0, "agents": 180.0}
DURATION_S = {"judge": 60, "longqa": 120, "tot": 30, "agents": 40}
WORKERS = 4
TRACE_CAPACITY = 3.3
TRACE_WORKERS = 8
PLACEMENTS = (
    "round_robin",
    "random",
    "power_of_two",
    "least_loaded",
    "kv_cost",
    "cache_aware",
    "lmetric",
    "fairlead",
)
QUEUES = ("fcfs", "lpm", "dlpm", "dlpm+lpm", "dlpm+svf")
MISBEHAVING = (("judge", "s1", 40), ("longqa", "s1", 5), ("longqa", "s2", 5), ("tot", "s1", 200))
ABLATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as shipped", {}),
    ("no hold", {"hold_ms": 0}),
    ("no harm to others", {"placement.harm": 0.0}),
    ("no decode in the cost", {"placement.decode": 0.0}),
    ("decode as heavy as prefill", {"placement.decode": 1.0}),
    ("no warm-up slice", {"placement.warm_up": 0.0}),
    ("no prefill window", {"prefill_window_tokens": 10_000_000}),
    ("early binding", {"binding": "early"}),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a trace with prefixes, in Mooncake's format")
    parser.add_argument("--only", default=",".join(CAPACITY), help="workloads, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    console = Console()
    console.print(f"commit {commit()}, {platform.processor() or platform.machine()}, seed {chosen.seed}")
    names = [name for name in chosen.only.split(",") if name]
    for share in (0.6, 0.9):
        console.print(placements(sources(names, chosen.trace, share, chosen.seed), share))
    console.print(misbehaviour(names, chosen.seed))
    console.print(ablation(sources(names, chosen.trace, 0.9, chosen.seed)))


def sources(names: Iterable[str], trace: str | None, share: float, seed: int) -> list[tuple[str, Source, int]]:
    """Name, workload and number of workers at this share of capacity."""
    found = [
        (
            name,
            Source(f"{name}:clients=8,duration_s={DURATION_S[name]},rate={share * CAPACITY[name]:g}", seed=seed),
            WORKERS,
        )
        for name in names
    ]
    if trace:
        found.append(("trace", Source(trace, seed=seed, rate=share * TRACE_CAPACITY, limit=4000), TRACE_WORKERS))
    return found


def run(workload: Workload, workers: int, placement: str, queue: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One replay's report."""
    given = dict(settings)
    binding = given.pop("binding", None)
    setup = make_setup(
        placement=placement, queue=queue, binding=binding, workers=workers, settings=given, lenient=True
    )
    return summarize(replay(workload, setup), setup)


def placements(workloads: list[tuple[str, Source, int]], share: float) -> Table:
    """TTFT mean / p99 in seconds and hit ratio, under first come first served."""
    table = Table("placement", *(name for name, _, _ in workloads))
    table.title = f"{share:.0%} of capacity, queue fcfs: TTFT mean / p99 in s, prefix hits"
    cells = {name: [figures(run(load(s), n, name, "fcfs", {})) for _, s, n in workloads] for name in PLACEMENTS}
    for name, row in cells.items():
        table.add_row(name, *row)
    return table


def misbehaviour(names: list[str], seed: int) -> Table:
    """The worst TTFT p99 among well-behaved clients, the misbehaving one's, and service per second."""
    cases = [case for case in MISBEHAVING if case[0] in names]
    table = Table("placement", "queue", *(f"{name} {kind}" for name, kind, _ in cases))
    table.title = "one misbehaving client: TTFT p99 of the well-behaved / of the other in s, service per second"
    for placement, queue in [(p, "fcfs") for p in ("cache_aware", "lmetric")] + [("fairlead", q) for q in QUEUES]:
        row = []
        for name, kind, rate in cases:
            wanted = f"{name}:clients=8,duration_s={DURATION_S[name]},rate={rate},misbehaving={kind}"
            workload = load(Source(wanted, seed=seed))
            report = run(workload, WORKERS, placement, queue, {})
            p99 = {client: figures_["ttft_s"]["p99"] for client, figures_ in report["clients"].items()}
            good = max(worst for client, worst in p99.items() if client not in workload.misbehaving)
            bad = max(p99[client] for client in workload.misbehaving)
            row.append(f"{good:.2f} / {bad:.2f}, {report['service_per_s']:,.0f}")
        table.add_row(placement, queue, *row)
    return table


def ablation(workloads: list[tuple[str, Source, int]]) -> Table:
    """The shipped placement and queue, one part changed at a time."""
    table = Table("fairlead, dlpm", *(name for name, _, _ in workloads))
    table.title = "90% of capacity, one part off at a time: TTFT mean / p99 in s, prefix hits"
    for name, settings in ABLATIONS:
        table.add_row(name, *(figures(run(load(s), n, "fairlead", "dlpm", settings)) for _, s, n in workloads))
    return table


def figures(report: dict[str, Any]) -> str:
    """A table's cell."""
    ttft = report["ttft_s"]
    return f"{ttft['mean']:.3f} / {ttft['p99']:.2f}, {report['prefix_hit_ratio']:.0%}"


def commit() -> str:
    """The commit that runs, marked if the tree has changed since."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
