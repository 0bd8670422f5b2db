"""Scenarios that take a fresh process: memory per stream, slow readers, stops of the loop, clients that leave."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.dataplane import kernel, page, stops
from benchmarks.dataplane.client import Question, Tally
from benchmarks.dataplane.load import Load, under_load
from benchmarks.dataplane.outcome import Figure, Options, Outcome, side_by_side
from benchmarks.dataplane.routers import FAIRLEAD, LITELLM, Place, Started, started

_BEGINNING = 50
"""Streams that are being opened at once, until all are open: more would be a test of the kernel's queues."""
_ALL_OPEN_WITHIN_S = 100.0
_LONG = Question(2048, 64, 2000)
"""An answer that takes longer than it takes to open all streams."""
_SLOW_READERS = 100
_READS_NOTHING_S = 8.0
_SLOW_TOKENS = 8000
"""Of an answer to a slow reader: 1.8 MB."""
STORM_CLIENTS = 400


async def memory(place: Place, options: Options) -> Outcome:
    """Memory per open stream: many at once, a chunk every 2 s; then all leave, and what is left of them?"""
    count = options.streams
    load = Load(_LONG, clients=count, beginning=_BEGINNING, hang_up=True, seed=options.seed)
    each, peak = Figure("memory per open stream", "kB"), Figure("peak memory then", "MB")
    streaming, after = Figure("streams open then", ""), Figure("counters not back at zero", "")
    outcome = Outcome([each, peak, streaming, after])
    async for router in _one_by_one(place, options, outcome):
        name, before = router.name, kernel.memory(router.pid).pss
        async with under_load(router.url, load) as tally:
            await _all_open(tally, count)
            seen, at_once = kernel.memory(router.pid), tally.streaming
            if at_once:
                each.add(name, (seen.pss - before) / at_once / 1000)
            peak.add(name, seen.peak_rss / 1e6)
            streaming.add(name, at_once)
            if at_once < count and router.config is not None:
                queued = (await page.read(router.url)).total("fairlead_queue_depth")
                streaming.notes[name] = f"not all of them in time; {queued:g} wait in its queue"
        outcome.count(name, tally)
        await _note_what_is_left(router, after)
        options.tell(f"memory: {name}: {each.so_far()} with {at_once} streams; {after.notes.get(name, '')}")
    return outcome


async def _all_open(tally: Tally, count: int) -> None:
    """Wait until every stream has had its first chunk, and a moment longer: what beginnings took is given back."""
    deadline = time.monotonic() + _ALL_OPEN_WITHIN_S
    while tally.streaming < count and time.monotonic() < deadline:  # noqa: ASYNC110 - a count, kept elsewhere
        await asyncio.sleep(0.2)
    await asyncio.sleep(2)


async def slow_readers(place: Place, options: Options) -> Outcome:
    """Memory per client that reads nothing for a while of a long answer that comes at once; then all of it."""
    load = Load(
        Question(2048, _SLOW_TOKENS, 0),
        clients=_SLOW_READERS,
        slow=1.0,
        pause_s=_READS_NOTHING_S,
        receive_buffer=16_384,
        seed=options.seed,
    )
    each, after = Figure("memory per slow reader", "kB"), Figure("counters not back at zero", "")
    outcome = Outcome([each, after])
    async for router in _one_by_one(place, options, outcome):
        name, before = router.name, kernel.memory(router.pid).pss
        async with under_load(router.url, load) as tally:
            await asyncio.sleep(_READS_NOTHING_S * 0.75)
            each.add(name, (kernel.memory(router.pid).pss - before) / _SLOW_READERS / 1000)
        outcome.count(name, tally)
        await _note_what_is_left(router, after)
        options.tell(f"slow readers: {name}: {each.so_far()}; {tally.done} answers whole, {tally.failed} not")
    return outcome


async def _one_by_one(place: Place, options: Options, outcome: Outcome) -> AsyncIterator[Started]:
    """Each router alone, warm."""
    for name in options.routers:
        if name == LITELLM:
            continue  # it would take minutes for nothing
        async with side_by_side((name,), place, outcome) as routers:
            for router in routers:
                async with under_load(router.url, Load(Question(2048, 16, 5), clients=20)):
                    await asyncio.sleep(2)
                yield router


async def _note_what_is_left(router: Started, figure: Figure) -> None:
    """Only fairlead's counters are known."""
    if router.config is not None:
        held = await page.left_behind(router.url)
        figure.add(router.name, len(held))
        figure.notes[router.name] = page.told(held)


@asynccontextmanager
async def fairlead(place: Place, *program: str) -> AsyncIterator[Started]:
    """The gateway by one of the programs beside this module, which watch it from inside."""
    async with started(FAIRLEAD, place, (sys.executable, "-m", *program)) as router:
        yield router


async def loop_stops(place: Place, options: Options) -> Outcome:
    """For fairlead alone: the longest stop of its loop, with long prompts and its configuration read anew."""
    figures = [Figure(f"longest stop, {name}", "ms") for name in ("CPU", "by the clock", "collector")]
    outcome = Outcome(figures)
    file = place.log_dir / "stops.jsonl"
    streams = Load(Question(2048, 64, 20), clients=100, ramp_s=1.0, seed=options.seed)
    long = Load(Question(128 * 1024, 16, 20), clients=8, users=0, seed=options.seed)
    huge = Load(Question(1 << 20, 4, 20), clients=1, seed=options.seed)
    async with fairlead(place, "benchmarks.dataplane.stops", str(file)) as router:
        async with (
            under_load(router.url, streams) as a,
            under_load(router.url, long) as b,
            under_load(router.url, huge) as c,
        ):
            await asyncio.sleep(3)
            since = len(file.read_text().splitlines())
            for _ in range(options.rounds):
                await asyncio.sleep(options.seconds)
                os.kill(router.serving(), signal.SIGHUP)
            await asyncio.sleep(1.5)
        seen = stops.longest(file, since)
        for figure, value in zip(figures, (seen.cpu_ms, seen.late_ms, seen.collector_ms), strict=True):
            figure.add(FAIRLEAD, value)
        for tally in (a, b, c):
            outcome.count(FAIRLEAD, tally)
    return outcome


async def storm(place: Place, options: Options) -> Outcome:
    """For fairlead alone: a fifth reads slowly, half of the clients leave at random times; what stays behind?"""
    left, after = Figure("storm: clients that left", ""), Figure("storm: counters not back at zero", "")
    resident = Figure("storm: memory", "MB")
    outcome = Outcome([left, after, resident])
    load = Load(
        Question(2048, 64, 20), clients=STORM_CLIENTS, ramp_s=1.0, leaving=0.5, slow=0.2, seed=options.seed
    )
    async with side_by_side((FAIRLEAD,), place, outcome) as routers:
        for router in routers:
            for number in range(options.rounds):
                async with under_load(router.url, load) as tally:
                    await asyncio.sleep(options.seconds)
                outcome.count(FAIRLEAD, tally)
                left.add(FAIRLEAD, tally.left)
                await _note_what_is_left(router, after)
                resident.add(FAIRLEAD, kernel.memory(router.pid).pss / 1e6)
                options.tell(f"storm: {number + 1} of {options.rounds}: {after.notes[FAIRLEAD]}")
    return outcome
