"""The same load in virtual time: chats (and the flood) in the lab, on engines that share cores as the servers do.

    python -m benchmarks.fleet.virtual --routers fairlead,fairlead:placement=cache_aware:queue=fcfs:binding=early

The profile is that of one vLLM server with SmolLM2 that has the machine of `benchmarks/LOG.md`, 2026-11-30, to
itself; `--profile FILE` takes another one of `fairlead profile`. `--cores` is what explains the pace of two busy
servers there, and of three: API processes, router and client take the rest. 0 gives every engine its own hardware.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.fleet.figures import Figures, figures
from benchmarks.fleet.load import CHATS, FLOOD, SCENARIOS, LoadSettings, Record
from benchmarks.fleet.report import number
from benchmarks.fleet.routers import FAIRLEAD, RouterChoice, parse
from router.lab.driver import replay
from router.lab.results import RequestResult
from router.lab.setup import make_setup
from router.lab.workload import Workload
from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import NO_ROW, RequestTable
from workers.simulator.profiles import Profile

BLOCK_TOKENS = 32
OPENING_TOKENS, TURN_TOKENS = 15, 10
"""What SmolLM2's chat template adds to a conversation, and to each turn."""
PROFILE = Path(__file__).with_name("smollm2_alone.json")
ROUTERS = (
    "fairlead,fairlead:placement=cache_aware:queue=fcfs,"
    "fairlead:placement=cache_aware:queue=fcfs:binding=early,fairlead:placement=round_robin:queue=fcfs"
)


def workload(settings: LoadSettings, seconds: float, profile: Profile) -> Workload:
    """The load of `benchmarks.fleet.load`, word for token, with no fewer requests than fit into `seconds`."""
    table = RequestTable(BLOCK_TOKENS)
    fastest_s = {tokens: tokens * profile.step_s(1, 0) for tokens in _answers(settings)}
    for client in CHATS:
        number = table.client(client, 1.0)
        system = table.prompts.grow(NO_PARENT, OPENING_TOKENS + settings.system_words)
        for session in range(settings.sessions):
            chance = Random(f"{settings.seed}/{client}/{session}")
            row, past = NO_ROW, system
            for turn in range(ceil(seconds / fastest_s[settings.chat_output_tokens])):
                if turn % settings.turns == 0:
                    past = system
                prompt = table.prompts.grow(past, TURN_TOKENS + chance.randint(*settings.question_words))
                past = table.prompts.grow(prompt, settings.chat_output_tokens)
                row = table.add(turn * 1e-6, number, prompt, settings.chat_output_tokens, reply=past, after=row)
    for flow in range(settings.flood_open):
        number, row = table.client(FLOOD, 1.0), NO_ROW
        chance = Random(f"{settings.seed}/{FLOOD}/{flow}")
        for turn in range(ceil(seconds / fastest_s[settings.flood_output_tokens])):
            prompt = table.prompts.grow(NO_PARENT, OPENING_TOKENS + chance.randint(*settings.flood_words))
            row = table.add(turn * 1e-6, number, prompt, settings.flood_output_tokens, after=row)
    table.sort(None)
    return Workload("fleet", BLOCK_TOKENS, table, table.weights)


def _answers(settings: LoadSettings) -> tuple[int, int]:
    return settings.chat_output_tokens, settings.flood_output_tokens


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """One router and seed."""

    figures: Figures
    requests: list[int]
    """Of each engine, over the whole run, the fewest first."""


def simulated(choice: RouterChoice, settings: LoadSettings, options: argparse.Namespace) -> VirtualRun:
    """One router in front of simulated engines. Raises SetupError and ConfigError for what it does not have."""
    named: dict[str, Any] = {"placement": None, "queue": None, "binding": None}
    given: dict[str, Any] = {
        "engine.max_num_seqs": options.max_num_seqs,
        "engine.max_model_len": 2048,
        "machine.request_s": options.request_s,
        "machine.reply_s": options.reply_s,
    }
    if options.cores:
        given["machine.cores"] = options.cores
    for key, text in choice.settings:
        (named if key in named else given)[key] = yaml.safe_load(text)
    setup = make_setup(
        **named, workers=options.servers, profile=str(options.profile), seed=settings.seed, settings=given
    )
    end_s = options.warm_up + options.seconds
    done = replay(workload(settings, end_s, setup.profile), setup)
    records = [_record(result) for result in done.results if result.arrived < end_s]
    requests = sorted(worker.requests for worker in done.workers)
    return VirtualRun(figures(records, [], options.warm_up, end_s), requests)


def _record(result: RequestResult) -> Record:
    return Record(
        result.client,
        result.arrived,
        result.first_at,
        result.ended,
        result.input_tokens,
        result.output_tokens,
        result.cached_tokens,
        error=result.rejected or result.failed or "",
    )


def show(runs: Mapping[str, Sequence[VirtualRun]]) -> None:
    """A row per router: the median over the seeds, and the smallest to the largest."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = (
        "chat TTFT p50 s",
        "p99",
        "mean",
        "chat answer mean s",
        "flood p50",
        "service/s",
        "of chats",
        "requests",
    )
    for name in ("router", *names):
        table.add_column(name, justify="left" if name == "router" else "right", overflow="fold")
    for router, repeats in runs.items():
        found = [each.figures for each in repeats]
        table.add_row(
            router,
            number([each.well_behaved_ttft_s.p50 for each in found]),
            number([each.well_behaved_ttft_s.p99 for each in found]),
            number([each.well_behaved_ttft_s.mean for each in found]),
            number([each.e2e_mean_s for each in found]),
            number([each.flood_ttft_s.p50 for each in found]),
            number([each.service_per_s for each in found], ".0f"),
            number([each.chat_hit_ratio for each in found], ".1%", spread=False),
            " ".join(map(str, repeats[0].requests)),
        )
    Console(width=200).print(table)


def main() -> None:
    """Run every router with every seed and print the table."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.fleet.virtual", description=__doc__)
    add = command.add_argument
    add("--scenario", choices=SCENARIOS, default="friendly")
    add("--routers", default=ROUTERS, help="with commas between: fairlead[:key=value...]")
    add("--profile", type=Path, default=PROFILE, help="file of `fairlead profile`")
    add("--servers", type=int, default=3)
    add("--cores", type=float, default=1.25, help="left to the engines; 0: each has its own (%(default)s)")
    add("--request-s", type=float, default=0.05, help="from a dispatch to the engine (%(default)s)")
    add("--reply-s", type=float, default=0.02, help="from a step's end to the router (%(default)s)")
    add("--max-num-seqs", type=int, default=8)
    add("--sessions", type=int, help="chats of each polite client (default: as in the scenario)")
    add("--seconds", type=float, default=60.0)
    add("--warm-up", type=float, default=10.0)
    add("--seeds", type=int, default=3)
    options = command.parse_args()
    choices = [parse(text) for text in options.routers.split(",")]
    if peers := [choice.label for choice in choices if choice.program != FAIRLEAD]:
        command.error(f"the lab has none of {', '.join(peers)}")
    settings = SCENARIOS[options.scenario]
    if options.sessions is not None:
        settings = replace(settings, sessions=options.sessions)
    seeds = [replace(settings, seed=seed) for seed in range(options.seeds)]
    show({choice.label: [simulated(choice, each, options) for each in seeds] for choice in choices})


if __name__ == "__main__":
    main()
