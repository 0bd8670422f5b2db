"""What the tests of this folder have before them."""

import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from workers.launch.devices import Cpu, Gpu


@dataclass(frozen=True, slots=True)
class Home:
    """Where servers run, and what of."""

    device: Gpu | Cpu
    python: str
    model: Path


@dataclass(frozen=True, slots=True)
class Server:
    """One vLLM server."""

    url: str

    def counted(self, metric: str) -> float:
        """The sum of a metric of its own over its series, now."""
        page = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


@dataclass(frozen=True, slots=True)
class Servers:
    """The four that share the device."""

    prefill: Server
    decode: Server
    both: list[Server]
