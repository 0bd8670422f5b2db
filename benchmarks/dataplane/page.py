"""What fairlead says of itself on /metrics: sizes of its tables, and what it still holds when nothing is asked."""

import asyncio
import re
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_AT_REST = (
    "fairlead_open_requests",
    "fairlead_open_streams",
    "fairlead_queue_depth",
    "fairlead_client_queued",
    "fairlead_worker_requests",
    "fairlead_worker_sequences",
    "fairlead_worker_prefill_owed_tokens",
    "fairlead_worker_kv_reserved_tokens",
)
"""What requests take and have to give back."""
_SETTLED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Page:
    """One reading."""

    series: tuple[tuple[str, str, float], ...]
    """Name, labels as they are written, value."""

    def total(self, name: str, label: str = "") -> float:
        """The sum over all label sets that have this text in them."""
        return sum(value for found, labels, value in self.series if found == name and label in labels)

    def held(self) -> dict[str, float]:
        """What should be zero and is not, while nothing is asked."""
        held = {name: self.total(name) for name in _AT_REST}
        held["fairlead_worker_connections, busy"] = self.total("fairlead_worker_connections", 'state="busy"')
        return {name: value for name, value in held.items() if value}


def parsed(text: str) -> Page:
    """A page in Prometheus' text format."""
    return Page(tuple((name, labels or "", float(value)) for name, labels, value in _LINE.findall(text)))


async def read(url: str) -> Page:
    """The page of the router at this address."""
    return parsed(await asyncio.to_thread(_fetch, f"{url}/metrics"))


async def left_behind(url: str) -> dict[str, float]:
    """What is still held once it has had time to be given back; nothing, if all is well."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLED_WITHIN_S
    while (held := (await read(url)).held()) and loop.time() < deadline:  # noqa: ASYNC110 - it is in another process
        await asyncio.sleep(0.2)
    return held


def told(held: dict[str, float]) -> str:
    """The same in words."""
    return ", ".join(_words(held.items())) or "every counter is back at zero"


def _words(held: Iterable[tuple[str, float]]) -> Iterable[str]:
    return (f"{name.removeprefix('fairlead_')} {value:g}" for name, value in held)


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())
