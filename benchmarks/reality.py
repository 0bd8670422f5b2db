"""Does the lab tell the truth? One workload in virtual time and through the gateway, side by side.

    fairlead profile http://127.0.0.1:8001 --out alone.json --max-num-seqs 8
    fairlead profile http://127.0.0.1:8001 http://127.0.0.1:8002 --out busy.json --max-num-seqs 8
    python -m benchmarks.reality alone.json busy.json --workers http://127.0.0.1:8001,http://127.0.0.1:8002
    python -m benchmarks.reality alone.json --simulated 3     no worker at hand: simulated ones, over sockets

The workload (default: 100 requests, Poisson arrivals, lengths as in chats, half of them behind shared prefixes)
runs

1. in virtual time, on as many simulated engines as there are workers, once with each profile, whose time for a
   first token's way to the client (`transport_s`) is added;
2. with `--simulated N` through `fairlead serve` in front of N simulated workers, over real sockets, with the first
   profile;
3. with `--workers` through `fairlead serve` in front of the real workers.

Printed are TTFT, time per token, throughput, hit ratio from the workers' own counters and requests per worker, and
in parentheses how far each column is off the last one: (column - last) / last.

Workers that share a machine are as fast as the first profile says while their neighbours are idle, and as slow as
the second while these are busy: a fleet under load lies between the two columns. Where every worker has a core, or
a GPU, of its own, both say the same.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.fleet.report import commit, machine
from benchmarks.fleet.routers import FAIRLEAD, RouterChoice, Surroundings, parse, started
from router.lab.driver import replay
from router.lab.profiling.stream import Answer, MeasurementError, ask
from router.lab.profiling.sweep import TOKEN_IDS, look
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload
from router.lab.workloads.open_workload import open_workload
from workers.fleet.probe import fetch_metrics, open_client
from workers.fleet.worker import WorkerSpec
from workers.simulator.profiles import PROFILES, Profile
from workers.simulator.server import SimulatorConfig, simulated_worker

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


async def through_gateway(
    traffic: Workload,
    urls: Sequence[str],
    *,
    router: RouterChoice,
    max_num_seqs: int,
    model: str | None = None,
    seed: int = 0,
    roles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the workload through `fairlead serve` in front of these workers. `roles`: what it is for, by URL."""
    facts = await look(urls[0], model, None)
    with tempfile.TemporaryDirectory() as logs:
        around = Surroundings(tuple(urls), facts.model, max_num_seqs, Path(), Path(logs), roles or {})
        async with started(router, around) as gateway:
            before = await counters(urls)
            played = await play(traffic, gateway, facts.model, seed)
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
    traffic: Workload, file: str, workers: int, options: argparse.Namespace, most: int | None
) -> dict[str, Any]:
    """Run the workload in the lab, with the profile of this file."""
    setup = make_setup(
        placement=options.placement,
        queue=options.queue,
        workers=workers,
        profile=file,
        seed=options.seed,
        settings={"engine.max_model_len": most} if most else {},
    )
    run = replay(traffic, setup)
    report = summarize(run, setup) | {"per_worker": sorted(worker.requests for worker in run.workers)}
    # The lab ends at the engine; a client's first token takes longer by what the profile has found beside it.
    for times in (report["ttft_s"], report["e2e_s"]):
        times |= {name: times[name] + transport_s(file) for name in ("mean", "p50", "p99")}
    return report


def transport_s(file: str) -> float:
    """What a first token takes beside the engine's steps, as `fairlead profile` has measured it."""
    return float(json.loads(Path(file).read_text())["conditions"]["transport_s"])


async def in_front_of_simulators(
    traffic: Workload, count: int, profile: Profile, options: argparse.Namespace, most: int | None
) -> dict[str, Any]:
    """Run the workload through the gateway and simulated workers in this process."""
    PROFILES[profile.name] = profile
    config = SimulatorConfig(
        profile=profile.name, block_size=traffic.block_tokens, model="simulated", max_model_len=most
    )
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(simulated_worker(config)) for _ in range(count)]
        return await through_gateway(
            traffic,
            [worker.url for worker in workers],
            router=choice(options),
            max_num_seqs=profile.max_num_seqs,
            seed=options.seed,
        )


def print_table(columns: Mapping[str, dict[str, Any]]) -> None:
    """A column per way to run the workload; in parentheses how far it is off the last one."""
    *_, last = columns.values()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for name, read in ROWS:
        cells = []
        for column in columns.values():
            off = f" ({read(column) / read(last) - 1:+.0%})" if column is not last and read(last) else ""
            cells.append(_figure(read(column)) + off)
        table.add_row(name, *cells)
    table.add_row("requests per worker", *(str(each["per_worker"]) for each in columns.values()))
    Console(width=120).print(table)


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


async def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run everything that was asked for: a report for each way, the one to measure the others by last."""
    traffic = open_workload(options.workload, seed=options.seed, limit=options.requests)
    urls = [url.strip().rstrip("/") for url in options.workers.split(",")] if options.workers else []
    most = (await look(urls[0], options.model, None)).max_model_len if urls else None
    workers = len(urls) or options.simulated
    first = make_setup(profile=options.files[0]).profile
    columns = {
        f"virtual time, {Path(file).name}": in_virtual_time(traffic, file, workers, options, most)
        for file in options.files
    }
    if options.simulated:
        columns["simulated workers"] = await in_front_of_simulators(
            traffic, options.simulated, first, options, most
        )
    if urls:
        columns["real workers"] = await through_gateway(
            traffic,
            urls,
            router=choice(options),
            max_num_seqs=first.max_num_seqs,
            model=options.model,
            seed=options.seed,
        )
    return columns


def describe(options: argparse.Namespace) -> None:
    """Print what is compared."""
    print(f"{options.workload}, seed {options.seed}")
    for file in options.files:
        print(f"{file}: {dataclasses.asdict(make_setup(profile=file).profile)}")
        print(f"    added to TTFT and end to end, for what is beside the engine: {transport_s(file):.4f} s")


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="made by `fairlead profile`")
    parser.add_argument("--workers", help="addresses of real, idle workers, with commas between them")
    parser.add_argument("--simulated", type=int, default=0, help="so many simulated workers, over sockets")
    parser.add_argument("--model", help="as the workers serve it (default: their base model)")
    parser.add_argument("--workload", default=CHATS, help="as for `fairlead simulate`")
    parser.add_argument("--requests", type=int, help="only the first so many")
    parser.add_argument("--placement", help="default: as shipped")
    parser.add_argument("--queue", help="default: as shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every report")
    options = parser.parse_args()
    if not (options.workers or options.simulated) or options.simulated < 0:
        parser.error("--workers URL,URL or --simulated N, or both")
    describe(options)
    columns = asyncio.run(compare(options))
    print_table(columns)
    if options.json:
        setting = {
            "workload": options.workload,
            "seed": options.seed,
            "machine": machine(),
            "commit": commit(),
            "profiles": {file: json.loads(Path(file).read_text()) for file in options.files},
        }
        options.json.write_text(json.dumps({"setting": setting, "columns": columns}, indent=1))


if __name__ == "__main__":
    main()
