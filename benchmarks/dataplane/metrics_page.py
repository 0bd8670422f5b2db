"""How long does a scrape of /metrics stop the event loop, and how large is the page?

    python -m benchmarks.dataplane.metrics_page --clients 100 --adapters 100 [--peers fairlead@DIR] [--json OUT]

The real process with many clients with keys, in front of fast backends that list many adapters. Each client
asks each adapter once (`--pairs` limits that), so everything that can have a series has one. Then the page is read
`--scrapes` times while nothing else is asked. The loop's stops are measured inside the process, by a timer of a
millisecond (`stops`): CPU is what the loop's own thread computes between two turns, the clock adds what it waited
for the interpreter or the machine. `at rest` is the same without a scrape: what remains is the scrape's.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.dataplane import stops
from benchmarks.dataplane.__main__ import backends, tell
from benchmarks.dataplane.backend import MODEL, adapter
from benchmarks.dataplane.client import Client, Question, Tally
from benchmarks.dataplane.routers import FAIRLEAD, Place, Started, started
from benchmarks.fleet.report import commit, machine

_ASKED = Question(prompt_bytes=16, tokens=1, spacing_ms=0, stream=False)
_CONNECTIONS = 8
_EVERY_S = 0.25
"""Between two scrapes: the watch writes a line per second."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is to show."""

    clients: int
    adapters: int
    workers: int
    pairs: int
    """Requests, each of another client and adapter."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One router's pages."""

    lines: int
    kilobytes: float
    page_ms: float
    """From asking for the page to having it, the median."""
    longest_page_ms: float
    stop_cpu_ms: float
    """Longest stop of the loop, CPU of its own thread."""
    stop_ms: float
    """The same by the clock."""
    collector_ms: float
    """Longest run of the garbage collector, which is part of either."""
    rest_cpu_ms: float
    """Both while nothing asks for the page."""
    rest_ms: float
    failed: int
    """Requests without a whole answer before that."""


def question(url: str, key: str, model: str) -> bytes:
    """One request."""
    body = {"model": model, "messages": [{"role": "user", "content": f"{key} asks {model}"}], "max_tokens": 1}
    payload = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer {key}\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


async def ask_all(router: Started, keys: Sequence[str], shape: Shape) -> Tally:
    """Each client asks each model once, up to the number of pairs, adapters in turn."""
    tally, host = Tally(), router.url.removeprefix("http://")
    models = [MODEL, *map(adapter, range(shape.adapters))]
    pairs = [(keys[(n + n // len(models)) % len(keys)], models[n % len(models)]) for n in range(shape.pairs)]
    left = iter(pairs)

    async def some() -> None:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(tally), "127.0.0.1", int(host.rpartition(":")[2])
        )
        for key, model in left:
            await client.ask(_ASKED, question(host, key, model))
        client.leave()

    await asyncio.gather(*(some() for _ in range(_CONNECTIONS)))
    return tally


@asynccontextmanager
async def _watched(file: Path) -> AsyncIterator[stops.Stops]:
    """The stops of the whole seconds within the block; the object is filled in at its end."""
    found = stops.Stops()
    since = stops.lines(file) + 1  # the second that is under way is no part of it
    await asyncio.sleep(1.5)
    yield found
    await asyncio.sleep(1.5)
    seen = stops.longest(file, since)
    found.cpu_ms, found.late_ms, found.collector_ms = seen.cpu_ms, seen.late_ms, seen.collector_ms


async def measure(name: str, place: Place, shape: Shape, scrapes: int) -> Measured:
    """Start a router, fill it, read its page."""
    file = place.log_dir / f"{name.replace('/', '_')}.jsonl"
    program = (sys.executable, "-P", "-m", "benchmarks.dataplane.stops", str(file))
    async with started(name, place, program) as router:
        tally = await ask_all(router, place.keys, shape)
        await asyncio.sleep(1)
        async with _watched(file) as at_rest:
            await asyncio.sleep(scrapes * _EVERY_S)
        times, page = [], b""
        async with _watched(file) as scraped:
            for _ in range(scrapes):
                began = time.perf_counter()
                page = await asyncio.to_thread(_fetch, f"{router.url}/metrics")
                times.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(_EVERY_S)
    return Measured(
        page.count(b"\n"),
        len(page) / 1000,
        statistics.median(times),
        max(times),
        scraped.cpu_ms,
        scraped.late_ms,
        scraped.collector_ms,
        at_rest.cpu_ms,
        at_rest.late_ms,
        tally.failed,
    )


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def show(measured: dict[str, Measured], shape: Shape) -> None:
    """The table."""
    words = f"{shape.clients} clients, {shape.adapters} adapters, {shape.workers} workers, {shape.pairs} requests"
    table = Table(title=words)
    stop = ("stop ms (CPU)", "(clock)", "collector", "at rest (CPU)", "(clock)")
    for title in ("", "lines", "kB", "page ms", "longest", *stop):
        table.add_column(title, justify="right" if title else "left")
    for name, one in measured.items():
        figures = [one.page_ms, one.longest_page_ms, one.stop_cpu_ms, one.stop_ms, one.collector_ms]
        figures += [one.rest_cpu_ms, one.rest_ms]
        table.add_row(name, str(one.lines), f"{one.kilobytes:.0f}", *(f"{figure:.1f}" for figure in figures))
    Console(width=130).print(table)


async def run(names: Sequence[str], shape: Shape, scrapes: int) -> dict[str, Measured]:
    """Each router in turn."""
    log_dir = Path(tempfile.mkdtemp(prefix="fairlead-metrics-page-"))
    keys = tuple(f"bench-key-{number:04}" for number in range(shape.clients))
    measured = {}
    async with backends(shape.workers, shape.adapters) as workers:
        place = Place(workers, Path(), log_dir, keys)
        for name in names:
            measured[name] = await measure(name, place, shape, scrapes)
            tell(f"{name}: {measured[name]}")
    return measured


def main() -> None:
    """Measure, print the table, write what was asked for."""
    about = (__doc__ or "").partition("\n")
    command = argparse.ArgumentParser(prog="python -m benchmarks.dataplane.metrics_page", description=about[0])
    add = command.add_argument
    add("--clients", type=int, default=100, help="clients with a key (%(default)s)")
    add("--adapters", type=int, default=100, help="LoRA adapters that each worker lists (%(default)s)")
    add("--workers", type=int, default=4, help="backends behind the gateway (%(default)s)")
    add("--pairs", type=int, help="requests, each of another client and model; all pairs by default")
    add("--scrapes", type=int, default=20, help="how often the page is read (%(default)s)")
    add("--peers", default="", help=f"other checkouts to compare with, as {FAIRLEAD}@DIR, with commas between")
    add("--json", type=Path, metavar="OUT", help="write every figure")
    given = command.parse_args()
    pairs = given.clients * (1 + given.adapters) if given.pairs is None else given.pairs
    shape = Shape(given.clients, given.adapters, given.workers, pairs)
    names = (FAIRLEAD, *(name for name in given.peers.split(",") if name))
    for name in names[1:]:
        if not name.startswith(f"{FAIRLEAD}@"):
            command.error(f"there is no checkout {name!r}; name one as {FAIRLEAD}@DIR")
    setting = {"machine": machine(), "commit": commit(), "shape": asdict(shape), "scrapes": given.scrapes}
    measured = uvloop.run(run(names, shape, given.scrapes))
    show(measured, shape)
    if given.json:
        routers = {name: asdict(one) for name, one in measured.items()}
        given.json.write_text(json.dumps({**setting, "routers": routers}, indent=1))


if __name__ == "__main__":
    main()
