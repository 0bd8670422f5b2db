"""Several workers measured at once: what one does while its neighbours do the same.

Workers that share a machine (cores, a GPU, its memory's bandwidth) slow each other down, and a profile taken of
one of them alone is too fast for a fleet. Here all of them run the same sweep, with prompts of their own, and wait
for each other before each part, so that a prefill is measured among prefills and a batch among equal batches.
A fleet that is not busy everywhere at every moment lies between this profile and the one taken alone.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from router.lab.profiling.points import Point
from router.lab.profiling.stream import MeasurementError
from router.lab.profiling.sweep import Facts, Meter, Sweep


async def open_meters(
    stack: AsyncExitStack, urls: Sequence[str], model: str | None, api_key: str | None
) -> list[Meter]:
    """Ask every worker who it is. Raises MeasurementError, also where they are not alike."""
    meters = [await Meter.open(stack, url, model, api_key) for url in urls]
    about = {m.facts.url: f"{m.facts.model}, {m.facts.max_model_len} / {m.facts.kv_tokens} tokens" for m in meters}
    if len(set(about.values())) > 1:
        differences = "; ".join(f"{url}: {each}" for url, each in about.items())
        raise MeasurementError(f"workers that are measured together have to be alike: {differences}")
    if len(about) < len(meters):
        raise MeasurementError("a worker is named twice")
    return meters


async def measure_together(
    meters: Sequence[Meter], sweep: Sweep, max_num_batched_tokens: int, progress: Callable[[int], None]
) -> list[Point]:
    """The sweep on all of them at once; of each point the median. Raises MeasurementError.

    `progress` is called with the number of requests that have ended on the first worker.
    """
    barrier = asyncio.Barrier(len(meters))

    async def one(number: int, meter: Meter) -> list[Point]:
        own = replace(sweep, seed=sweep.seed + number)
        report = progress if number == 0 else _ignore
        return await meter.measure(own, max_num_batched_tokens, report, barrier.wait)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*each)) for each in enumerate(meters)]
    except ExceptionGroup as failures:  # the first of them says it for all
        raise failures.exceptions[0] from None
    return medians(task.result() for task in tasks)


def medians(measured: Iterable[Sequence[Point]]) -> list[Point]:
    """Each point that every worker has measured, with the median of its times."""
    first, *others = [{(p.kind, p.prompt_tokens, p.batch): p for p in points} for points in measured]
    return [
        replace(
            point, measured_s=statistics.median([point.measured_s, *(each[key].measured_s for each in others)])
        )
        for key, point in first.items()
        if all(key in each for each in others)
    ]


def facts_of(meters: Sequence[Meter]) -> Facts:
    """One for all: they differ in nothing but the address."""
    return replace(meters[0].facts, url=", ".join(meter.facts.url for meter in meters))


def notes_of(meters: Sequence[Meter]) -> list[str]:
    """What any of them left out, each once."""
    return list(dict.fromkeys(note for meter in meters for note in meter.notes))


def _ignore(_: int) -> None:
    """Progress of a worker that is not shown."""
