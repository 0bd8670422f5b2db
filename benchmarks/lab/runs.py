"""The replays: which combinations of policies meet which workloads, and what of their reports is kept."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.lab.cases import SHARES, Case, misbehaving, workloads
from policies import catalog
from router.lab.comparison import compare
from router.lab.report import Targets
from router.lab.setup import Setup, make_setup

UNFAIR = ("round_robin", "least_loaded", "cache_aware", "lmetric", "kv_cost", "fairlead")
"""Placements that stand with first come first served against a client that misbehaves."""
QUEUES = ("fcfs", "lpm", "vtc", "dlpm", "dlpm+lpm", "dlpm+svf")
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "as shipped": {},
    "no hold": {"hold_ms": 0},
    "hold whenever it is cheaper": {"placement.hold_gain": 0.0},
    "no harm to others": {"placement.harm": 0.0},
    "no decode in the cost": {"placement.decode": 0.0},
    "decode as heavy as prefill": {"placement.decode": 1.0},
    "no warm-up slice": {"placement.warm_up": 0.0},
    "no prefill window": {"prefill_window_tokens": 10_000_000},
    "early binding": {"binding": "early"},
}
Row = dict[str, Any]
Table = dict[str, dict[str, Row]]
"""By combination, then by workload."""
Tell = Callable[[str], None]


class Runner:
    """Replays in up to `jobs` processes; `tell` hears what has been done."""

    def __init__(self, jobs: int, tell: Tell) -> None:
        self._jobs = jobs
        self._tell = tell

    def table(self, title: str, cases: Iterable[Case], named: Mapping[str, Mapping[str, Any]]) -> Table:
        """Every combination on every case; a combination is what `make_setup` takes."""
        table: Table = {name: {} for name in named}
        for case in cases:
            self._tell(f"{title}: {case.name}, {len(named)} combinations")
            setups = [_setup(case, chosen) for chosen in named.values()]
            entries = compare(case.source, setups, targets=Targets(), jobs=self._jobs)
            for name, entry in zip(named, entries, strict=True):
                table[name][case.name] = _row(entry.report, case)
        return table


def everything(runner: Runner, names: list[str], trace: str | None, seed: int) -> dict[str, Any]:
    """All tables, by what they show."""
    found: dict[str, Any] = {"placements": {}, "misbehaving": {}, "ablation": {}}
    placements = list(catalog.placement_policies())
    for share in SHARES:
        cases = workloads(names, trace, share, seed)
        for queue in ("fcfs", catalog.DEFAULT_QUEUE):
            title = f"{share:.0%} {queue}"
            chosen = {name: {"placement": name, "queue": queue} for name in (UNFAIR if share > 1 else placements)}
            found["placements"][title] = runner.table(title, cases, chosen)
    unfair = {f"fcfs / {name}": {"placement": name, "queue": "fcfs"} for name in UNFAIR}
    ours = {f"{queue} / {catalog.DEFAULT_PLACEMENT}": {"queue": queue} for queue in QUEUES if queue != "fcfs"}
    found["misbehaving"] = runner.table("one misbehaving client", misbehaving(names, seed), unfair | ours)
    changed = {name: {"settings": settings} for name, settings in ABLATIONS.items()}
    found["ablation"] = runner.table("ablation", workloads(names, trace, 0.9, seed), changed)
    return found


def _setup(case: Case, chosen: Mapping[str, Any]) -> Setup:
    settings = dict(chosen.get("settings", {}))
    binding = settings.pop("binding", None)
    return make_setup(
        placement=chosen.get("placement"),
        queue=chosen.get("queue"),
        binding=binding,
        workers=case.workers,
        settings=settings,
        lenient=True,
    )


def _row(report: Mapping[str, Any], case: Case) -> Row:
    row = {
        "ttft_mean_s": report["ttft_s"]["mean"],
        "ttft_p99_s": report["ttft_s"]["p99"],
        "e2e_mean_s": report["e2e_s"]["mean"],
        "hits": report["prefix_hit_ratio"],
        "service_per_s": report["service_per_s"],
        "jain": report["jain"],
        "rejected": report["rejected"],
    }
    if case.misbehaving:
        p99 = {name: client["ttft_s"]["p99"] for name, client in report["clients"].items()}
        row["misbehaving_p99_s"] = p99.pop(case.misbehaving)
        row["well_behaved_p99_s"] = max(p99.values())
    return row
