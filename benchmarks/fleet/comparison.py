"""Routers in turn in front of the same servers: before each run these are at rest, and their caches empty."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from benchmarks.fleet import report, routers
from benchmarks.fleet.chat_client import NoAnswerError, ask
from benchmarks.fleet.figures import figures
from benchmarks.fleet.load import Load, LoadSettings, request_body
from benchmarks.fleet.report import RouterRun
from benchmarks.fleet.routers import FAIRLEAD, RouterChoice, Surroundings
from benchmarks.fleet.servers import FleetError, Servers
from benchmarks.fleet.watch import watched

ROUTERS = {
    "flood": (
        "fairlead,fairlead:placement=round_robin,fairlead:placement=cache_aware,"
        "vllm-router:policy=round_robin,vllm-router:policy=cache_aware,sglang-router:policy=cache_aware,smg"
    ),
    "friendly": (
        "fairlead,fairlead:placement=cache_aware:queue=fcfs:binding=early:tokenizer=text:kv_events=off,"
        "sglang-router:policy=cache_aware,smg"
    ),
}
"""What runs in each scenario, if nothing else is said."""
PEERS = Path("~/.cache/fairlead/peers/venv")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is run in front of the servers."""

    choices: Sequence[RouterChoice]
    load: LoadSettings
    seconds: float
    """Measured, per router."""
    warm_up_s: float
    no_flood: bool = False
    """At the end the first router once more, without the flood."""
    repeats: int = 1
    """All of them in turn, so many times: A B A B."""

    def plan(self) -> list[tuple[RouterChoice, LoadSettings]]:
        """Every run."""
        plan = [(choice, self.load) for choice in self.choices] * self.repeats
        if self.no_flood:
            first = replace(self.choices[0], label=f"{self.choices[0].label}, no flood")
            plan.append((first, replace(self.load, flood_open=0)))
        return plan


def tell(text: str) -> None:
    """Progress goes to standard error; the table alone to standard output."""
    print(text, file=sys.stderr, flush=True)


async def compare(comparison: Comparison, around: Surroundings) -> tuple[list[RouterRun], dict[str, str], str]:
    """A run for each router that works here, why the others do not, and the servers' version.

    Raises FleetError where a server does not answer.
    """
    runs: list[RouterRun] = []
    left_out: dict[str, str] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        seen = Servers(around.workers, http)
        await first_requests(around.workers, around.model)
        for choice, load in comparison.plan():
            try:
                runs.append(await _run_router(choice, load, comparison, around, seen))
            except (routers.NotInstalledError, routers.NotReadyError, FleetError) as error:
                tell(f"left out: {choice.label}: {error}")
                left_out[choice.label] = str(error)
        return runs, left_out, await seen.version()


async def _run_router(
    choice: RouterChoice, settings: LoadSettings, comparison: Comparison, around: Surroundings, seen: Servers
) -> RouterRun:
    """One router from its start to its end. Raises NotInstalledError, NotReadyError, FleetError."""
    begin_s, end_s = comparison.warm_up_s, comparison.warm_up_s + comparison.seconds
    emptied = await seen.empty_caches()
    async with routers.started(choice, around) as url:
        tell(f"{choice.label}: under load for {end_s:g} s")
        load = Load(url, around.model, settings, end_s)
        watch = await watched(seen, load)
    errors = sorted({record.error for record in load.records if record.error})
    for error in errors[:3]:
        tell(f"{choice.label}: {error}")
    return RouterRun(
        router=choice.label,
        version=_version(choice, around.peers),
        caches_emptied=emptied,
        figures=figures(load.records, watch.samples, begin_s, end_s),
        begin_s=begin_s,
        records=load.records,
        samples=watch.samples,
        missed_samples=watch.missed,
    )


def _version(choice: RouterChoice, peers: Path) -> str:
    """The version of what runs, as its package says."""
    if choice.program == FAIRLEAD:
        return report.fairlead_version()
    return report.peer_version(choice.program, routers.peer_command(choice.program, peers))


async def first_requests(urls: Sequence[str], model: str) -> None:
    """A server's very first request is slower than all others: one to each, not measured."""
    body = request_body(model, "warm-up", [{"role": "user", "content": "hello " * 300}], 8)
    try:
        await asyncio.gather(*(ask(url, body) for url in urls))
    except (NoAnswerError, OSError) as error:
        raise FleetError(f"a server does not answer: {error}") from error
