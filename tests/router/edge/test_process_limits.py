"""Memory that is free goes back to the system."""

import asyncio
from pathlib import Path

from router.edge import process_limits
from router.edge.held_bytes import HeldBytes, Holding

_MIB = 1 << 20


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / _MIB


async def test_what_bodies_have_taken_is_given_back_once_they_are_dropped(monkeypatch):
    monkeypatch.setattr(process_limits, "_LOOK_EVERY_S", 0.01)
    held = HeldBytes(1 << 30)
    task = asyncio.create_task(process_limits.return_memory(held))
    before = resident_mib()
    holding = Holding(held)
    bodies, between = [], []
    for number in range(1600):
        holding.add_request(64 << 10)
        bodies.append(b"x" * (64 << 10))
        between.append(
            b"y" * (1000 + number % 2)
        )  # stays behind each of them, as the objects of a request that goes on would
    assert resident_mib() > before + 90
    bodies.clear()
    holding.drop_request()
    async with asyncio.timeout(20):
        while resident_mib() > before + 20:  # noqa: ASYNC110 - nothing tells when a process has less
            await asyncio.sleep(0.02)
    assert len(between) == 1600
    task.cancel()
