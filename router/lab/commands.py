"""The commands `fairlead simulate` and `fairlead compare`; `fairlead profile` is in a room of its own.

With `--json` standard output holds the result and nothing else; notes and progress go to standard error.
"""

# ruff: noqa: PLC0415, FBT002, PLR0917  # as in `router/commands/cli.py`: late imports, and what typer makes of parameters
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from router.commands.progress_bar import progress_bar
from router.lab.profiling.command import EXAMPLES as PROFILE_EXAMPLES
from router.lab.profiling.command import profile

if TYPE_CHECKING:
    from router.lab.comparison import CombinationResult
    from router.lab.setup import Setup
    from router.lab.workload import Workload

WORKLOAD_HELP = "A trace file, or a generator with options: tot, judge:clients=4, chat:misbehaving=s1 ..."
_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
SIMULATE_EXAMPLES = """\b
Examples:
  fairlead simulate chat                                   every option has a default
  fairlead simulate trace.jsonl --workers 16 --rate 2      a trace, played twice as fast
  fairlead simulate tot:clients=4,misbehaving=s1 --queue dlpm --set queue.quantum=2048
  fairlead simulate judge --json --out judge.json | jq .ttft_s.p99
  fairlead simulate chat:whole=0.3,sequences=2,adapters=3 --keys text --seeds 3
  fairlead simulate chat --fleet-changes join@10,lose@20:worker-0
"""
COMPARE_EXAMPLES = """\b
Examples:
  fairlead compare chat --placement round_robin,cache_aware --queue fcfs,dlpm
  fairlead compare trace.jsonl --all --sort ttft-p99 --plot pictures
  fairlead compare tot:misbehaving=s1 --all --seeds 3 --json
"""

WorkloadName = Annotated[str, typer.Argument(metavar="WORKLOAD", help=WORKLOAD_HELP)]
Workers = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Simulated workers.", show_default="8, or as --roles says")
]
Roles = Annotated[
    str | None, typer.Option(help="Workers by role, such as 6xmixed,1xprefill,1xdecode; mixed ones do both.")
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        help="What the workers simulate: h100-llama-3.1-8b, a100-llama-3.1-8b, instant, or a file made by "
        "`fairlead profile`.",
    ),
]
FleetChanges = Annotated[
    str,
    typer.Option(
        metavar="CHANGES",
        help="Workers that come and go: join@30, join@30:prefill, drain@60:worker-2 (with notice), "
        "lose@90:worker-1 (without), with commas between.",
        show_default="none",
    ),
]
Keys = Annotated[
    Literal["tokens", "text"],
    typer.Option(help="What the router sees of prompts: tokens, or text as without a tokenizer."),
]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Number of seeds, from --seed up: means and spreads.")]
Rate = Annotated[float, typer.Option(help="2 plays the workload twice as fast.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal results.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of a policy, the scheduler or the engines."),
]
RequestLimit = Annotated[
    int | None, typer.Option("--requests", min=1, help="Only this number of requests, the first ones.")
]
Ttft = Annotated[float, typer.Option("--slo-ttft-s", min=0, help="Target for the first token.")]
Tpot = Annotated[float, typer.Option("--slo-tpot-s", min=0, help="Target for each further token.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
OutFile = Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Write the JSON to this file, too.")]


def register(cli: typer.Typer) -> None:
    """Add the lab's commands to the command line."""
    cli.command("simulate", epilog=SIMULATE_EXAMPLES)(simulate)
    cli.command("compare", epilog=COMPARE_EXAMPLES)(compare)
    cli.command("profile", epilog=PROFILE_EXAMPLES)(profile)


def simulate(
    workload: WorkloadName,
    workers: Workers = None,
    roles: Roles = None,
    fleet_changes: FleetChanges = "",
    profile: ProfileName = "h100-llama-3.1-8b",
    placement: Annotated[str | None, typer.Option(help="Where a request runs.", show_default="as shipped")] = None,
    queue: Annotated[
        str | None,
        typer.Option(help="Which request is next; dlpm+svf names an order too.", show_default="as shipped"),
    ] = None,
    binding: Annotated[
        Literal["late", "early"] | None,
        typer.Option(help="When a worker gets a request.", show_default="as shipped"),
    ] = None,
    keys: Keys = "tokens",
    rate: Rate = 1.0,
    seed: Seed = 0,
    seeds: Seeds = 1,
    settings: Settings = None,
    requests: RequestLimit = None,
    slo_ttft_s: Ttft = 2.0,
    slo_tpot_s: Tpot = 0.1,
    as_json: AsJson = False,
    out: OutFile = None,
) -> None:
    """Replay a workload in virtual time.

    The scheduler that serves, over simulated workers: hours of traffic in seconds.
    """
    from router.lab.comparison import Source, load
    from router.lab.driver import replay
    from router.lab.limits import limit
    from router.lab.report import rejections, summarize
    from router.lab.seeds import merged
    from router.lab.setup import make_setup, parse_settings
    from router.lab.workload import Targets

    reports, numbers = [], range(seed, seed + seeds)
    with _refusals():
        for number in numbers:
            setup = make_setup(
                placement=placement,
                queue=queue,
                binding=binding,
                workers=workers,
                roles=roles,
                changes=fleet_changes,
                profile=profile,
                seed=number,
                keys=keys,
                settings=parse_settings(settings or ()),
            )
            traffic = load(Source(workload, number, rate, requests))
            if number == seed:
                _print_shortfall(setup)
                _print_warnings(traffic)
            with progress_bar(traffic.name, len(traffic.requests)) as progress:
                run = replay(traffic, setup, progress)
            report = summarize(run, setup, Targets(slo_ttft_s, slo_tpot_s))
            reports.append({**report, "limit": limit(traffic, setup)})
            _print_rejections(rejections(run))
            _print_fault(run.fault)
    report = merged(reports)
    _write(report, out)
    if as_json:
        typer.echo(_json(report), nl=False)
    else:
        from router.lab.tables import print_report

        print_report(report, traffic)


def compare(
    workload: WorkloadName,
    placement: Annotated[
        str | None, typer.Option(help="Names with commas between.", show_default="as shipped")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(help="Names with commas between.", show_default="as shipped")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All placements and queues not named.")] = False,
    binding: Annotated[
        str, typer.Option(help="late, early, or both: a rule is judged by the better one.")
    ] = "late,early",
    workers: Workers = None,
    roles: Roles = None,
    fleet_changes: FleetChanges = "",
    profile: ProfileName = "h100-llama-3.1-8b",
    keys: Keys = "tokens",
    rate: Rate = 1.0,
    seed: Seed = 0,
    seeds: Seeds = 1,
    settings: Settings = None,
    requests: RequestLimit = None,
    slo_ttft_s: Ttft = 2.0,
    slo_tpot_s: Tpot = 0.1,
    sort: Annotated[
        str, typer.Option(help="ttft, ttft-p99, e2e, e2e-p99, service, jain, hit-ratio or slo.")
    ] = "ttft",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.", show_default="2, on one core 1")] = min(
        2, os.cpu_count() or 1
    ),
    plot: Annotated[Path | None, typer.Option(metavar="DIR", file_okay=False, help="Draw PNGs there.")] = None,
    as_json: AsJson = False,
    out: OutFile = None,
) -> None:
    """Which policy is best for my traffic?

    One workload under every combination of the named policies, as a sorted table. Ctrl-C prints what is finished.
    """
    from router.config import policy_catalog
    from router.lab.comparison import Source, combinations, load, ordered
    from router.lab.comparison import compare as run_all
    from router.lab.limits import limit
    from router.lab.seeds import merged
    from router.lab.setup import parse_settings
    from router.lab.workload import Targets

    numbers = range(seed, seed + seeds)
    with _refusals():
        setups = combinations(
            _names(placement, policy_catalog.everything("placement")[0] if everything else None),
            _names(queue, policy_catalog.everything("queue")[0] if everything else None),
            _bindings(binding),
            settings=parse_settings(settings or ()),
            workers=workers,
            roles=roles,
            changes=fleet_changes,
            profile=profile,
            keys=keys,
            seed=seed,
        )
        for setup in setups:
            _print_shortfall(setup)
        ordered((), sort)
        draw = None if plot is None else _draw()
        sources = [Source(workload, number, rate, requests) for number in numbers]
        bounds = merged([{"seed": each.seed, **limit(load(each), setups[0])} for each in sources])
        traffic = load(sources[0])
        _print_warnings(traffic)
        with progress_bar(traffic.name, len(setups) * seeds) as progress:
            comparison = run_all(
                sources[0],
                setups,
                targets=Targets(slo_ttft_s, slo_tpot_s),
                seeds=numbers,
                jobs=jobs,
                progress=progress,
            )
    results = ordered(comparison.results, sort)
    for result in results:
        _print_rejections(result.rejected, result.name)
        _print_fault(result.fault, result.name)
    if comparison.interrupted:
        typer.echo(
            f"note: interrupted; {comparison.finished} of {comparison.total} replays were finished", err=True
        )
    reports = [{**result.report, "limit": bounds} for result in results]
    _write(reports, out)
    if draw is not None and plot is not None and results:
        for file in draw(plot, results, traffic.name, rate, bounds):
            typer.echo(f"wrote {file}", err=True)
    if as_json:
        typer.echo(_json(reports), nl=False)
    elif reports:
        from router.lab.tables import print_comparison

        print_comparison(reports, traffic, bounds)
    if comparison.interrupted:
        raise typer.Exit(_INTERRUPTED)


# -- options


def _names(text: str | None, everything: Sequence[str] | dict[str, Any] | None) -> list[str | None]:
    if text is not None:
        return list(dict.fromkeys(name.strip() for name in text.split(",")))
    return [None] if everything is None else list(everything)


def _bindings(text: str | None) -> list[str | None]:
    from router.lab.setup import SetupError

    names = _names(text, None)
    for name in names:
        if name not in ("late", "early", None):
            raise SetupError(f"there is no binding `{name}`; known are late, early")
    return names


def _draw() -> "Callable[[Path, Sequence[CombinationResult], str, float, dict[str, Any]], list[Path]]":
    try:
        from router.lab.plots import draw
    except ImportError:
        _refuse("--plot needs matplotlib: pip install 'fairlead-router[plots]'")
    return draw


# -- input and output


def _print_warnings(traffic: "Workload") -> None:
    for warning in traffic.warnings:
        typer.echo(f"note: {warning}", err=True)


def _print_shortfall(setup: "Setup") -> None:
    from policies.model import WorkerFacts
    from router.control.scheduler_factory import roles_shortfall

    facts = [WorkerFacts(str(number), frozenset(), stages) for number, stages in enumerate(setup.stages)]
    if lacking := roles_shortfall(setup.config, facts):
        typer.echo(f"note: {setup.placement}: {lacking}", err=True)


def _print_rejections(reasons: dict[str, int], where: str = "") -> None:
    for reason, number in list(reasons.items())[:5]:
        typer.echo(f"note: {f'{where}: ' if where else ''}{number} rejected: {reason}", err=True)
    if len(reasons) > 5:
        typer.echo(f"note: {len(reasons) - 5} more reasons", err=True)


def _print_fault(fault: str | None, where: str = "") -> None:
    if fault is not None:
        typer.echo(f"note: {f'{where}: ' if where else ''}{fault}; the least loaded worker took over", err=True)


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _write(value: Any, out: Path | None) -> None:
    if out is not None:
        try:
            out.write_text(_json(value))
        except OSError as error:
            _refuse(f"cannot write {out}: {error.strerror}")


@contextmanager
def _refusals() -> Iterator[None]:
    """A wrong request becomes one message and status 2; a run that never ends becomes one and status 1."""
    from router.config.yaml_lines import ConfigError
    from router.lab.driver import NeverEndsError
    from router.lab.setup import SetupError
    from router.lab.workload import WorkloadError

    try:
        yield
    except (SetupError, WorkloadError, ConfigError) as error:
        _refuse(str(error))
    except NeverEndsError as error:
        typer.echo(f"fairlead: {error}", err=True)
        raise typer.Exit(1) from None


def _refuse(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(2)
