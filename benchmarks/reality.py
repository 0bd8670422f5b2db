"""Does the lab tell the truth? One workload in virtual time and through the gateway, side by side.

    fairlead profile http://127.0.0.1:8001 --out mine.json --max-num-seqs 8
    python -m benchmarks.reality mine.json --workers http://127.0.0.1:8001,http://127.0.0.1:8002
    python -m benchmarks.reality mine.json --simulated 3        no worker at hand: simulated ones, over sockets

The workload (default: 100 requests, Poisson arrivals, lengths as in chats, half of them behind shared prefixes)
runs

1. in virtual time, on as many simulated engines as there are workers, with the fitted profile;
2. through `fairlead serve` in front of as many simulated workers, over real sockets, with the same profile;
3. through `fairlead serve` in front of the real workers.

Printed are TTFT, time per token, throughput, hit ratio from the workers' own counters and requests per worker, and
in parentheses how far virtual time is off: (virtual - measured) / measured.

Prompts are token ids made from the units of the workload, so equal units are equal text. A generator whose prompts
repeat earlier answers (chat, agents) finds fewer hits in reality, where answers are the model's own. Generators
count prefixes in blocks of 16 tokens; workers with larger blocks find a little less. The workers must have nothing
else to do, and their caches must not know the prompts: another `--seed` makes other ones.
"""

import argparse
import asyncio
import dataclasses
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.fleet.routers import FAIRLEAD, RouterChoice, Surroundings, parse, started
from router.lab.driver import replay
from router.lab.profiling.stream import Answer, MeasurementError, ask
from router.lab.profiling.sweep import TOKEN_IDS, look
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload
from router.lab.workloads.opening import open_workload
from workers.probe import fetch_metrics, open_client
from workers.simulator.profiles import PROFILES, Profile
from workers.simulator.server import SimulatorConfig, simulated_worker
from workers.worker import WorkerSpec

CHATS = "poisson:requests=100,rate=2,input_tokens=300,output_tokens=40,spread=0.5,prefixes=8,prefix_tokens=128"
_SERVED = re.compile(r"^vllm:request_success_total\{[^\n]*\} (\S+)$", re.MULTILINE)
_CONTROL_S = 10.0
ROWS: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("TTFT mean, s", lambda r: r["ttft_s"]["mean"]),
    ("TTFT p50, s", lambda r: r["ttft_s"]["p50"]),
    ("TTFT p99, s", lambda r: r["ttft_s"]["p99"]),
    ("time per token mean, s", lambda r: r["tpot_s"]["mean"]),
    ("end to end mean, s", lambda r: r["e2e_s"]["mean"]),
    ("tokens per s", lambda r: r["tokens_per_s"]),
    ("hit ratio", lambda r: r["prefix_hit_ratio"]),
    ("completed", lambda r: r["completed"]),
)


@dataclass(slots=True)
class Played:
    """One request that went through the gateway. Moments on the clock of `time.perf_counter`."""

    due: float
    request: Request
    answer: Answer | None = None
    error: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def tokens_of(request: Request, block_tokens: int, seed: int, number: int) -> list[int]:
    """The prompt: each unit stands for the same tokens wherever it occurs, what follows is the request's own."""
    ids = range(*TOKEN_IDS)
    prompt: list[int] = []
    for unit in request.block_names[: request.input_tokens // block_tokens]:
        prompt += Random(f"{seed}/{unit}").choices(ids, k=block_tokens)
    rest = request.input_tokens - len(prompt)
    return prompt + Random(f"{seed}/own/{number}").choices(ids, k=rest)


async def play(traffic: Workload, url: str, model: str, seed: int) -> list[Played]:
    """Send every request at its moment, and wait for the last answer."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=httpx.Timeout(600.0), limits=limits, trust_env=False
    ) as http:
        prompts = [tokens_of(one, traffic.block_tokens, seed, n) for n, one in enumerate(traffic.requests)]
        begin = time.perf_counter() + 0.1
        played = [Played(begin + request.at, request) for request in traffic.requests]

        async def send(one: Played, prompt: list[int]) -> None:
            if one.request.after is not None:
                earlier, delay = one.request.after
                await played[earlier].ended.wait()
                one.due = time.perf_counter() + delay
            await asyncio.sleep(max(0.0, one.due - time.perf_counter()))
            try:
                one.answer = await ask(http, model, prompt, one.request.output_tokens, one.request.client)
            except MeasurementError as error:
                one.error = str(error)
            finally:
                one.ended.set()

        async with asyncio.TaskGroup() as group:
            for one, prompt in zip(played, prompts, strict=True):
                group.create_task(send(one, prompt))
    return played


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean and percentiles, under the names of the lab's report."""
    some = sorted(values)
    if len(some) < 2:
        return dict.fromkeys(("mean", "p50", "p99"), some[0] if some else float("nan"))
    cuts = statistics.quantiles(some, n=100, method="inclusive")
    return {"mean": statistics.fmean(some), "p50": cuts[49], "p99": cuts[98]}


def summary(played: Sequence[Played], hits: int, queries: int) -> dict[str, Any]:
    """What was measured, under the names of the lab's report."""
    done = [(one, one.answer) for one in played if one.answer is not None]
    begin = min(one.due for one in played)
    duration = max((answer.last_at for _, answer in done), default=begin) - begin
    tokens = sum(one.request.input_tokens + one.request.output_tokens for one, _ in done)
    return {
        "completed": len(done),
        "ttft_s": spread(answer.first_at - one.due for one, answer in done),
        "tpot_s": spread(
            (answer.last_at - answer.first_at) / (one.request.output_tokens - 1)
            for one, answer in done
            if one.request.output_tokens > 1
        ),
        "e2e_s": spread(answer.last_at - one.due for one, answer in done),
        "tokens_per_s": tokens / duration if duration else float("nan"),
        "prefix_hit_ratio": hits / queries if queries else 0.0,
    }


async def counters(urls: Sequence[str]) -> list[tuple[int, int, int]]:
    """Of each worker: prompt tokens found in the prefix cache, looked up, and requests served."""
    found = []
    async with open_client() as client:
        for url in urls:
            scrapes = (await fetch_metrics(client, WorkerSpec(url), _CONTROL_S, 0.0)).values()
            page = (await client.get(f"{url}/metrics")).text
            served = round(sum(float(number) for number in _SERVED.findall(page)))
            found.append((sum(s.prefix_hits for s in scrapes), sum(s.prefix_queries for s in scrapes), served))
    return found


async def through_gateway(traffic: Workload, urls: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run the workload through `fairlead serve` in front of these workers."""
    facts = await look(urls[0], options.model, None)
    with tempfile.TemporaryDirectory() as logs:
        around = Surroundings(tuple(urls), facts.model, options.profile.max_num_seqs, Path(), Path(logs))
        async with started(choice(options), around) as gateway:
            before = await counters(urls)
            played = await play(traffic, gateway, facts.model, options.seed)
            after = await counters(urls)
    changes = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
    report = summary(played, sum(c[0] for c in changes), sum(c[1] for c in changes))
    errors = {one.error for one in played if one.error}
    for error in sorted(errors)[:3]:
        print(f"note: {sum(one.error == error for one in played)} failed: {error}")
    return report | {"per_worker": sorted(c[2] for c in changes)}


def choice(options: argparse.Namespace) -> RouterChoice:
    """The gateway's policies, as the fleet benchmark names them."""
    words = [FAIRLEAD]
    words += [f"placement={options.placement}"] if options.placement else []
    words += [f"queue={options.queue}"] if options.queue else []
    return parse(":".join(words))


def in_virtual_time(
    traffic: Workload, workers: int, options: argparse.Namespace, most: int | None
) -> dict[str, Any]:
    """Run the workload in the lab."""
    setup = make_setup(
        placement=options.placement,
        queue=options.queue,
        workers=workers,
        profile=options.file,
        seed=options.seed,
        settings={"engine.max_model_len": most} if most else {},
    )
    run = replay(traffic, setup)
    return summarize(run, setup) | {"per_worker": sorted(worker.requests for worker in run.workers)}


async def in_front_of_simulators(
    traffic: Workload, count: int, options: argparse.Namespace, most: int | None
) -> dict[str, Any]:
    """Run the workload through the gateway and simulated workers in this process."""
    profile: Profile = options.profile
    PROFILES[profile.name] = profile
    config = SimulatorConfig(
        profile=profile.name, block_size=traffic.block_tokens, model="simulated", max_model_len=most
    )
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(simulated_worker(config)) for _ in range(count)]
        model, options.model = options.model, None
        try:
            return await through_gateway(traffic, [worker.url for worker in workers], options)
        finally:
            options.model = model


def print_table(lab: dict[str, Any], measured: dict[str, dict[str, Any]]) -> None:
    """A column per way to run the workload; the error is that of virtual time."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "virtual time", *measured):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, read in ROWS:
        cells = [_figure(read(lab))]
        for report in measured.values():
            value = read(report)
            cells.append(f"{_figure(value)} ({read(lab) / value - 1:+.0%})" if value else _figure(value))
        table.add_row(name, *cells)
    table.add_row("requests per worker", *(str(one["per_worker"]) for one in (lab, *measured.values())))
    Console(width=120).print(table)


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


async def compare(options: argparse.Namespace) -> None:
    """Run everything that was asked for and print it."""
    traffic = open_workload(options.workload, seed=options.seed, limit=options.requests)
    urls = [url.strip().rstrip("/") for url in options.workers.split(",")] if options.workers else []
    most = (await look(urls[0], options.model, None)).max_model_len if urls else None
    workers = len(urls) or options.simulated
    lab = in_virtual_time(traffic, workers, options, most)
    print(f"{options.workload}, seed {options.seed}; profile {dataclasses.asdict(options.profile)}")
    print(f"virtual time leaves out what a first token takes beside the engine: {options.transport_s:.4f} s")
    measured: dict[str, dict[str, Any]] = {}
    measured["simulated workers"] = await in_front_of_simulators(traffic, workers, options, most)
    if urls:
        measured["real workers"] = await through_gateway(traffic, urls, options)
    print_table(lab, measured)


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="made by `fairlead profile`")
    parser.add_argument("--workers", help="addresses of real, idle workers, with commas between them")
    parser.add_argument(
        "--simulated", type=int, default=0, help="simulated workers (default: as many as real ones)"
    )
    parser.add_argument("--model", help="as the workers serve it (default: their base model)")
    parser.add_argument("--workload", default=CHATS, help="as for `fairlead simulate`")
    parser.add_argument("--requests", type=int, help="only the first so many")
    parser.add_argument("--placement", help="default: as shipped")
    parser.add_argument("--queue", help="default: as shipped")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if bool(options.workers) == bool(options.simulated) or options.simulated < 0:
        parser.error("--workers URL,URL or --simulated N")
    options.profile = make_setup(profile=options.file).profile
    options.transport_s = json.loads(Path(options.file).read_text())["conditions"]["transport_s"]
    asyncio.run(compare(options))


if __name__ == "__main__":
    main()
