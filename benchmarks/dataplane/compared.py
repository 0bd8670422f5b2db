"""Scenarios that compare routers on CPU and latency, round by round.

All of them run at once and are loaded one after the other, round after round, so that whatever else the machine
does meets all alike; a figure is the median over the rounds. The first round only warms up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from benchmarks.dataplane import kernel
from benchmarks.dataplane.client import Question, Tally
from benchmarks.dataplane.load import Load, under_load
from benchmarks.dataplane.outcome import Figure, Options, Outcome, side_by_side
from benchmarks.dataplane.routers import DIRECT, LITELLM, Place, Started
from benchmarks.fleet.figures import percentile

_SETTLE_S = 0.3


async def stream(place: Place, options: Options) -> Outcome:
    """CPU per streamed chunk: 200 streams, chunks 20 ms apart, 2 kB prompts."""
    load = Load(Question(2048, 64, 20), clients=200, ramp_s=1.28, seed=options.seed)
    return await _cpu(place, options, load, "chunk", lambda tally: tally.chunks)


async def plain(place: Place, options: Options) -> Outcome:
    """CPU per request that is not streamed, 2 kB prompts, 16 at once."""
    load = Load(Question(2048, 16, 0, stream=False), clients=16, seed=options.seed)
    return await _cpu(place, options, load, "request, 2 kB", lambda tally: tally.done)


async def plain_128k(place: Place, options: Options) -> Outcome:
    """The same with prompts of 128 kB, 8 at once."""
    load = Load(Question(128 * 1024, 16, 0, stream=False), clients=8, seed=options.seed)
    return await _cpu(place, options, load, "request, 128 kB", lambda tally: tally.done)


async def _cpu(place: Place, options: Options, load: Load, unit: str, units: Callable[[Tally], int]) -> Outcome:
    """CPU per unit of work, and what the client sees meanwhile: a stream's first byte, the end of others."""
    seen = "first token" if load.question.stream else "answer"
    cost, per_s = Figure(f"CPU per {unit}", "µs"), Figure(f"{unit}: that many per s", "/s")
    p50, p99 = Figure(f"{unit}: {seen} at the client, p50", "ms"), Figure("the same, p99", "ms")
    peak = Figure(f"{unit}: peak memory", "MB")
    outcome = Outcome([cost, per_s, p50, p99, peak])
    async with side_by_side(options.routers, place, outcome) as routers:
        for number in range(options.rounds + 1):
            for router in routers:
                # What is slow beyond comparison is measured as long, but not as often.
                if router.name == LITELLM and number > 1:
                    continue
                seconds = options.seconds if number else min(2.0, options.seconds)
                async with _loaded(router, load, number, outcome) as tally:
                    before, cpu = units(tally), kernel.cpu_s(router.pid)
                    await asyncio.sleep(seconds)
                    done, spent = units(tally) - before, kernel.cpu_s(router.pid) - cpu
                    times = sorted(tally.first_s if load.question.stream else tally.whole_s)
                if number and done:
                    cost.add(router.name, 1e6 * spent / done)
                    per_s.add(router.name, done / seconds)
                if number and times:
                    p50.add(router.name, 1000 * percentile(times, 0.5))
                    p99.add(router.name, 1000 * percentile(times, 0.99))
            options.tell(f"{cost.name}: round {number} of {options.rounds}: {cost.so_far()}")
        for router in routers:
            peak.add(router.name, kernel.memory(router.pid).peak_rss / 1e6)
    return outcome


async def first_token(place: Place, options: Options) -> Outcome:
    """Added time to first token: 100 streams, over the backend itself."""
    load = Load(Question(2048, 64, 20), clients=100, ramp_s=1.28, seed=options.seed)
    return await _added(place, options, load, "time to first token", lambda tally: tally.first_s)


async def open_loop(place: Place, options: Options) -> Outcome:
    """Added time of a whole answer at a fixed rate, counted from when a request was due: who stalls pays."""
    load = Load(Question(2048, 16, 0, stream=False), clients=0, rate=options.rate, seed=options.seed)
    name = f"time of an answer, {options.rate:g} requests/s"
    fast = replace(options, routers=tuple(name for name in options.routers if name != LITELLM))
    return await _added(place, fast, load, name, lambda tally: tally.whole_s)


async def _added(
    place: Place, options: Options, load: Load, name: str, times_of: Callable[[Tally], list[float]]
) -> Outcome:
    p50, p99 = Figure(f"added {name}, p50", "ms"), Figure("the same, p99", "ms")
    outcome = Outcome([p50, p99])
    async with side_by_side((DIRECT, *options.routers), place, outcome) as routers:
        for number in range(options.rounds + 1):
            direct = (0.0, 0.0)
            for router in routers:
                async with _loaded(router, load, number, outcome) as tally:
                    await asyncio.sleep(options.seconds)
                    times = sorted(times_of(tally))
                seen = (percentile(times, 0.5), percentile(times, 0.99)) if times else (float("nan"),) * 2
                if router.name == DIRECT:
                    direct = seen
                elif number and times:
                    p50.add(router.name, 1000 * (seen[0] - direct[0]))
                    p99.add(router.name, 1000 * (seen[1] - direct[1]))
            options.tell(f"{p50.name}: round {number} of {options.rounds}: {p50.so_far()}")
    return outcome


@asynccontextmanager
async def _loaded(router: Started, load: Load, number: int, outcome: Outcome) -> AsyncIterator[Tally]:
    """One router under the load of one round, once all clients have begun; only then times are kept."""
    async with under_load(router.url, replace(load, seed=load.seed + number)) as tally:
        await asyncio.sleep(load.ramp_s + _SETTLE_S)
        tally.first_s.clear()
        tally.whole_s.clear()
        yield tally
    outcome.count(router.name, tally)
    await asyncio.sleep(_SETTLE_S)
