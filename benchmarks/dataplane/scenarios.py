"""The scenarios: which load, what is counted, and how often.

Where routers are compared on CPU or latency, all of them run at once and are loaded one after the other, round
after round, so that whatever else the machine does meets all alike; a figure is the median over the rounds. Memory
is that of a fresh process.
"""

import asyncio
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks.dataplane import kernel, stops
from benchmarks.dataplane.client import Question, Tally
from benchmarks.dataplane.load import Load, under_load
from benchmarks.dataplane.routers import DIRECT, FAIRLEAD, LITELLM, Place, Started, started
from benchmarks.fleet.figures import percentile
from benchmarks.fleet.routers import NotInstalledError, NotReadyError

_SETTLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for every scenario."""

    routers: tuple[str, ...]
    seconds: float
    """Measured per router and round."""
    rounds: int
    streams: int
    """Of the scenario `memory`."""
    requests: int
    """Of the scenario `soak`."""
    seed: int
    tell: Callable[[str], None]


@dataclass(slots=True)
class Figure:
    """One line of the table: a value per router and round."""

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, router: str, value: float) -> None:
        self.values.setdefault(router, []).append(value)

    def median(self, router: str) -> float | None:
        values = self.values.get(router)
        return median(values) if values else None


@dataclass(slots=True)
class Outcome:
    """What a scenario has found."""

    figures: list[Figure]
    failed: dict[str, int] = field(default_factory=dict)
    """Answers that were not whole, per router."""
    faults: dict[str, str] = field(default_factory=dict)
    """The first of them."""
    left_out: dict[str, str] = field(default_factory=dict)

    def count(self, router: str, tally: Tally) -> None:
        if tally.failed:
            self.failed[router] = self.failed.get(router, 0) + tally.failed
            self.faults.setdefault(router, next(iter(tally.faults), ""))


@asynccontextmanager
async def side_by_side(names: Sequence[str], place: Place, outcome: Outcome) -> AsyncIterator[list[Started]]:
    """All routers that work here; the others are named in `left_out`."""
    async with AsyncExitStack() as stack:
        up = []
        for name in names:
            try:
                up.append(await stack.enter_async_context(started(name, place)))
            except (NotInstalledError, NotReadyError) as error:
                outcome.left_out[name] = str(error)
        yield up


# -- compared round by round


async def stream(place: Place, options: Options) -> Outcome:
    """CPU per streamed chunk: 200 streams, chunks 20 ms apart, 2 kB prompts."""
    load = Load(Question(2048, 64, 20), clients=200, ramp_s=1.28, seed=options.seed)
    return await _cpu(place, options, load, "CPU per chunk", lambda tally: tally.chunks)


async def plain(place: Place, options: Options) -> Outcome:
    """CPU per request that is not streamed, 2 kB prompts, 16 at once."""
    load = Load(Question(2048, 16, 0, stream=False), clients=16, seed=options.seed)
    return await _cpu(place, options, load, "CPU per request, 2 kB", lambda tally: tally.done)


async def plain_128k(place: Place, options: Options) -> Outcome:
    """The same with prompts of 128 kB, 8 at once."""
    load = Load(Question(128 * 1024, 16, 0, stream=False), clients=8, seed=options.seed)
    return await _cpu(place, options, load, "CPU per request, 128 kB", lambda tally: tally.done)


async def _cpu(place: Place, options: Options, load: Load, name: str, units: Callable[[Tally], int]) -> Outcome:
    figure, per_s = Figure(name, "µs"), Figure(f"{name}: that many per s", "/s")
    outcome = Outcome([figure, per_s])
    async with side_by_side(options.routers, place, outcome) as routers:
        for number in range(options.rounds + 1):
            for router in routers:
                # What is slow beyond comparison is measured as long, but not as often.
                if router.name == LITELLM and number > 1:
                    continue
                seconds = options.seconds if number else min(2.0, options.seconds)
                async with under_load(router.url, replace(load, seed=load.seed + number)) as tally:
                    await asyncio.sleep(load.ramp_s + _SETTLE_S)
                    before, cpu = units(tally), kernel.cpu_s(router.pid)
                    await asyncio.sleep(seconds)
                    done, spent = units(tally) - before, kernel.cpu_s(router.pid) - cpu
                outcome.count(router.name, tally)
                if number and done:  # the first round warms up
                    figure.add(router.name, 1e6 * spent / done)
                    per_s.add(router.name, done / seconds)
                await asyncio.sleep(_SETTLE_S)
            options.tell(f"{name}: round {number} of {options.rounds}: {_so_far(figure)}")
    return outcome


async def first_token(place: Place, options: Options) -> Outcome:
    """Added time to first token: 100 streams, against the backend itself."""
    load = Load(Question(2048, 64, 20), clients=100, ramp_s=1.28, seed=options.seed)
    p50, p99 = Figure("added time to first token, p50", "ms"), Figure("the same, p99", "ms")
    outcome = Outcome([p50, p99])
    async with side_by_side((DIRECT, *options.routers), place, outcome) as routers:
        for number in range(options.rounds + 1):
            direct = (0.0, 0.0)
            for router in routers:
                async with under_load(router.url, replace(load, seed=load.seed + number)) as tally:
                    await asyncio.sleep(load.ramp_s + _SETTLE_S)
                    tally.first_s.clear()
                    await asyncio.sleep(options.seconds)
                    times = sorted(tally.first_s)
                outcome.count(router.name, tally)
                seen = (percentile(times, 0.5), percentile(times, 0.99)) if times else (float("nan"),) * 2
                if router.name == DIRECT:
                    direct = seen
                elif number:
                    p50.add(router.name, 1000 * (seen[0] - direct[0]))
                    p99.add(router.name, 1000 * (seen[1] - direct[1]))
                await asyncio.sleep(_SETTLE_S)
            options.tell(f"first token: round {number} of {options.rounds}: {_so_far(p50)}")
    return outcome


# -- one fresh process after the other


async def memory(place: Place, options: Options) -> Outcome:
    """Memory per open stream: so many at once, a chunk every 2 s."""
    load = Load(Question(2048, 8, 2000), clients=options.streams, ramp_s=options.streams / 500, seed=options.seed)
    each, peak = Figure("memory per open stream", "kB"), Figure("peak memory then", "MB")
    outcome = Outcome([each, peak])
    for name in options.routers:
        if name == LITELLM:
            continue
        async with side_by_side((name,), place, outcome) as routers:
            for router in routers:
                async with under_load(router.url, Load(Question(2048, 16, 5), clients=20)):
                    await asyncio.sleep(2)
                before = kernel.memory(router.pid).pss
                async with under_load(router.url, load) as tally:
                    await asyncio.sleep(load.ramp_s + 3)
                    seen = kernel.memory(router.pid)
                    if tally.open:
                        each.add(name, (seen.pss - before) / tally.open / 1000)
                    peak.add(name, seen.peak_rss / 1e6)
                outcome.count(name, tally)
                options.tell(f"memory: {name}: {_so_far(each)} with {tally.done + tally.failed} streams")
    return outcome


async def soak(place: Place, options: Options) -> Outcome:
    """For fairlead alone: so many requests with churning prompts and users; what grows?"""
    names = ("resident MB", "tree kB", "tree nodes", "connections", "series", "open")
    figures = [Figure(f"soak: {name}", "") for name in names]
    outcome = Outcome(figures)
    load = Load(Question(2048, 16, 0, stream=False), clients=16, users=0, seed=options.seed)
    async with side_by_side((FAIRLEAD,), place, outcome) as routers:
        for router in routers:
            step = max(1, options.requests // 10)
            async with under_load(router.url, load) as tally:
                for number in range(1, 11):
                    while tally.done + tally.failed < number * step:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                    seen = await _parts(router)
                    for figure, value in zip(figures, seen, strict=True):
                        figure.add(FAIRLEAD, value)
                    parts = ", ".join(f"{name} {value:g}" for name, value in zip(names, seen, strict=True))
                    options.tell(f"soak: after {tally.done} requests: {parts}")
            outcome.count(FAIRLEAD, tally)
    for figure in figures:
        values = figure.values.get(FAIRLEAD, [])
        if len(values) == 10:
            figure.note = f"from {values[3]:g} after 40% to {values[-1]:g} at the end"
    return outcome


async def _parts(router: Started) -> tuple[float, ...]:
    page = await asyncio.to_thread(_page, f"{router.url}/metrics")

    def total(name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if re.match(rf"{name}[{{ ]", line))

    series = sum(not line.startswith("#") for line in page.splitlines())
    return (
        kernel.memory(router.pid).pss / 1e6,
        total("fairlead_prefix_tree_bytes") / 1000,
        total("fairlead_prefix_tree_nodes"),
        total("fairlead_worker_connections"),
        series,
        total("fairlead_open_requests"),
    )


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


async def loop_stops(place: Place, options: Options) -> Outcome:
    """For fairlead alone: the longest stop of its loop, with long prompts and its configuration read anew."""
    figures = [Figure(f"longest stop, {name}", "ms") for name in ("CPU", "by the clock", "collector")]
    outcome = Outcome(figures)
    file = place.log_dir / "stops.jsonl"
    program = (sys.executable, "-m", "benchmarks.dataplane.stops", str(file))
    streams = Load(Question(2048, 64, 20), clients=100, ramp_s=1.0, seed=options.seed)
    long = Load(Question(128 * 1024, 16, 20), clients=8, users=0, seed=options.seed)
    huge = Load(Question(1 << 20, 4, 20), clients=1, seed=options.seed)
    async with started(FAIRLEAD, place, program) as router:
        async with (
            under_load(router.url, streams) as a,
            under_load(router.url, long) as b,
            under_load(router.url, huge) as c,
        ):
            await asyncio.sleep(3)
            since = len(file.read_text().splitlines())
            for _ in range(options.rounds):
                await asyncio.sleep(options.seconds)
                _reload(router)
            await asyncio.sleep(1.5)
        seen = stops.longest(file, since)
        for figure, value in zip(figures, (seen.cpu_ms, seen.late_ms, seen.collector_ms), strict=True):
            figure.add(FAIRLEAD, value)
        for tally in (a, b, c):
            outcome.count(FAIRLEAD, tally)
    return outcome


def _reload(router: Started) -> None:
    """SIGHUP to the process that serves."""
    for pid in kernel.processes(router.pid)[1:]:
        if "--config" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGHUP)


async def storm(place: Place, options: Options) -> Outcome:
    """For fairlead alone: slow readers, and half of the clients leaving at random times; what stays behind?"""
    left, open_ = Figure("storm: clients that left", ""), Figure("storm: open afterwards", "")
    resident = Figure("storm: resident", "MB")
    outcome = Outcome([left, open_, resident])
    load = Load(Question(2048, 64, 20), clients=400, ramp_s=1.0, leaving=0.5, slow=0.2, seed=options.seed)
    async with side_by_side((FAIRLEAD,), place, outcome) as routers:
        for router in routers:
            for _ in range(options.rounds):
                async with under_load(router.url, load) as tally:
                    await asyncio.sleep(options.seconds)
                await asyncio.sleep(1.0)
                outcome.count(FAIRLEAD, tally)
                seen = await _parts(router)
                left.add(FAIRLEAD, tally.left)
                open_.add(FAIRLEAD, seen[-1])
                resident.add(FAIRLEAD, seen[0])
    return outcome


def _so_far(figure: Figure) -> str:
    return ", ".join(f"{name} {figure.median(name):.2f} {figure.unit}" for name in figure.values)


SCENARIOS = {
    "stream": stream,
    "plain": plain,
    "plain-128k": plain_128k,
    "first-token": first_token,
    "memory": memory,
    "stops": loop_stops,
    "soak": soak,
    "storm": storm,
}
