"""What the servers say of themselves while the load runs: who runs, who waits, what was found in the caches."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.fleet.load import Load
from benchmarks.fleet.servers import FleetError, Look, Servers

EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all servers, in their order. `open`: requests sent by the clients and not seen finished."""

    at_s: float
    open: int
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    steps: tuple[int, ...]
    """Of each engine since it started; so with `step_tokens`."""
    step_tokens: tuple[int, ...]


@dataclass(slots=True)
class Watch:
    """Looks every EVERY_S, from the load's beginning until cancelled."""

    servers: Servers
    load: Load
    samples: list[Sample] = field(default_factory=list)
    missed: int = 0
    """Looks at which a server did not answer."""

    async def run(self) -> None:
        """Without end."""
        looks = 0
        while True:
            before = self.load.open
            try:
                looked = await self.servers.looks()
                # Of requests that came or went meanwhile it is not known whether a server counts them yet.
                self.samples.append(_sample(self.load.now_s, min(before, self.load.open), looked))
            except FleetError:
                self.missed += 1
            looks = max(looks + 1, int(self.load.now_s / EVERY_S))
            await asyncio.sleep(max(0.0, looks * EVERY_S - self.load.now_s))


async def watched(servers: Servers, load: Load) -> Watch:
    """Run the load to its end under watch."""
    watch = Watch(servers, load)
    watching = asyncio.create_task(watch.run())
    try:
        await load.run()
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return watch


def _sample(at_s: float, sent: int, looked: list[Look]) -> Sample:
    scrapes = [look.scrape for look in looked]
    return Sample(
        at_s=at_s,
        open=sent,
        running=tuple(scrape.running for scrape in scrapes),
        waiting=tuple(scrape.waiting for scrape in scrapes),
        prefix_queries=sum(scrape.prefix_queries for scrape in scrapes),
        prefix_hits=sum(scrape.prefix_hits for scrape in scrapes),
        preemptions=sum(scrape.preemptions for scrape in scrapes),
        steps=tuple(look.steps for look in looked),
        step_tokens=tuple(look.step_tokens for look in looked),
    )
