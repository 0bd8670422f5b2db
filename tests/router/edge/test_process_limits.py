"""Memory that is free goes back to the system.

It is looked at in a process of its own: one that has run other tests may have free memory to begin with.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from router.edge import process_limits
from router.edge.held_bytes import HeldBytes, Holding

_MIB = 1 << 20


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / _MIB


async def take_and_give_back(*, counted):
    """Writes the MiB resident above the beginning: with 1600 bodies of 64 KiB, and once they are dropped.

    `counted`: they are held for a request; else they are anything else, as what is unpacked and thrown away.
    """
    process_limits._LOOK_EVERY_S = 0.01
    held = HeldBytes(1 << 30)
    task = asyncio.create_task(process_limits.return_memory(held))
    await asyncio.sleep(0.05)
    before = resident_mib()
    holding = Holding(held)
    bodies, between = [], []
    for number in range(1600):
        if counted:
            holding.add_request(64 << 10)
        bodies.append(b"x" * (64 << 10))
        between.append(b"y" * (1000 + number % 2))  # stays behind each of them, as objects of other requests do
    taken = resident_mib() - before
    bodies.clear()
    holding.drop_request()
    for _ in range(1000):
        if resident_mib() <= before + 20:
            break
        await asyncio.sleep(0.02)
    assert len(between) == 1600
    task.cancel()
    sys.stdout.write(f"{taken} {resident_mib() - before}\n")


@pytest.mark.parametrize("counted", [True, False])
def test_what_is_free_again_is_given_back(counted):
    command = [sys.executable, __file__, *(["counted"] if counted else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    taken, left = map(float, done.stdout.split())
    assert taken > 90
    assert left <= 20


if __name__ == "__main__":
    asyncio.run(take_and_give_back(counted=sys.argv[1:] == ["counted"]))
