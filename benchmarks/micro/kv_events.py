"""What it costs to follow KV events: to read them, and to hear them on a socket, in blocks per second of one core.

    python benchmarks/micro/kv_events.py [--seconds 0.5] [--block-size 16]

Prints its figures as they are and asserts nothing. `decode`: bytes to values and handed on in slices to a callable
that does nothing. `socket`: the same with a PUB socket of another thread in front, and the event loop turning
between the slices; beside it pyzmq's own asyncio socket, which only receives. `cpu` is the time of the thread that
carries the event loop, which is what token streams share with it.

Mixes: events of 8 blocks and of 1 block, one to a batch (an engine that decodes) and 16 to a batch (one that
prefills), in both wire formats.
"""

import argparse
import asyncio
import itertools
import logging
import platform
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import uvloop
import zmq
import zmq.asyncio

sys.path.insert(0, str(Path(__file__).parents[2]))

from workers.kv_events.decode import KvEvent, cost, decode
from workers.kv_events.sources import KvSource
from workers.kv_events.subscription import KvEventsSettings
from workers.kv_events.subscriptions import Subscriptions
from workers.kv_events.work_slices import WorkSlices

MIXES = [(8, 1), (8, 16), (1, 1), (1, 16)]
"""Blocks per event, events per batch."""
BATCHES = 512
"""Different ones, sent round and round."""


def make_batches(blocks: int, events: int, block_size: int, *, arrays: bool) -> list[bytes]:
    """Payloads as an engine writes them."""
    names, tokens = itertools.count(1 << 60, 7), itertools.count(1)
    made = []
    for _ in range(BATCHES):
        batch = []
        for _ in range(events):
            event = {
                "type": "BlockStored",
                "block_hashes": [next(names) for _ in range(blocks)],
                "parent_block_hash": None,
                "token_ids": [next(tokens) % 128_000 for _ in range(blocks * block_size)],
                "block_size": block_size,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None] * blocks,
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
            batch.append(list(event.values()) if arrays else event)
        made.append(msgspec.msgpack.encode([1e9, batch, 0]))
    return made


class Nobody:
    """Counts the blocks, and does nothing else with them."""

    def __init__(self) -> None:
        self.blocks = 0

    def on_following(self, worker_id: str) -> None:
        pass

    def on_caught_up(self, worker_id: str) -> None:
        pass

    def on_batch(self, _worker_id: str, events: Sequence[KvEvent]) -> None:
        self.blocks += cost(events)

    def on_lost(self, _worker_id: str, why: str) -> None:
        print(f"lost: {why}")


async def time_decode(payloads: list[bytes], seconds: float) -> tuple[int, float, float]:
    """Blocks, wall seconds and CPU seconds of reading and handing on."""
    slices, nobody = WorkSlices(KvEventsSettings().slice_blocks), Nobody()
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.perf_counter() - wall < seconds:
        for payload in payloads:
            await slices.apply(decode(payload).events, lambda events: nobody.on_batch("", events))
    return nobody.blocks, time.perf_counter() - wall, time.thread_time() - cpu


class Publisher:
    """Sends batches as fast as they are taken: never more than a few thousand ahead of the listener."""

    def __init__(self, payloads: list[bytes], seen: Callable[[], int]) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.set_hwm(0)
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.sent = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(payloads, seen))
        self.thread.start()

    def run(self, payloads: list[bytes], seen: Callable[[], int]) -> None:
        while not self.socket.poll(100) and not self.stop.is_set():
            pass
        for payload in itertools.cycle(payloads):
            while self.sent - seen() > 2000 and not self.stop.is_set():
                time.sleep(0.001)
            if self.stop.is_set():
                break
            self.socket.send_multipart([b"kv", self.sent.to_bytes(8, "big"), payload])
            self.sent += 1
        self.socket.close(linger=0)
        self.context.term()


async def measure(publisher: Publisher, count: Callable[[], int], seconds: float) -> tuple[int, float, float]:
    """What was counted while somebody listens, and the time that it took."""
    while not count():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    blocks, wall, cpu = count(), time.perf_counter(), time.thread_time()
    await asyncio.sleep(seconds)
    figures = (count() - blocks, time.perf_counter() - wall, time.thread_time() - cpu)
    publisher.stop.set()
    return figures


async def time_subscription(payloads: list[bytes], seconds: float) -> tuple[int, float, float]:
    """Followed over a socket, as the router does."""
    nobody, in_batch = Nobody(), cost(decode(payloads[0]).events)
    following = Subscriptions(nobody, KvEventsSettings())
    publisher = Publisher(payloads, lambda: nobody.blocks // in_batch)
    following.follow("w", KvSource(publisher.endpoint))
    try:
        return await measure(publisher, lambda: nobody.blocks, seconds)
    finally:
        publisher.stop.set()
        await following.aclose()
        await asyncio.to_thread(publisher.thread.join)


async def time_asyncio_socket(payloads: list[bytes], seconds: float) -> tuple[int, float, float]:
    """Received by pyzmq's own asyncio socket, and read."""
    seen = blocks = 0
    publisher = Publisher(payloads, lambda: seen)
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.connect(publisher.endpoint)
    socket.subscribe(b"")

    async def listen() -> None:
        nonlocal seen, blocks
        while True:
            frames = await socket.recv_multipart()
            blocks += cost(decode(frames[2]).events)
            seen += 1

    task = asyncio.create_task(listen())
    try:
        return await measure(publisher, lambda: blocks, seconds)
    finally:
        publisher.stop.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        context.destroy(linger=0)
        await asyncio.to_thread(publisher.thread.join)


WAYS: dict[str, Callable[[list[bytes], float], Awaitable[tuple[int, float, float]]]] = {
    "decode": time_decode,
    "socket": time_subscription,
    "zmq.asyncio": time_asyncio_socket,
}


async def run(seconds: float, block_size: int) -> None:
    """Every way over every mix."""
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, uvloop")
    print(
        f"{'way':<12}{'format':<8}{'blocks x events':<17}{'blocks/s':>12}{'blocks/s of cpu':>17}{'us/batch':>10}"
    )
    for way, take in WAYS.items():
        for arrays, (blocks, events) in itertools.product((False, True), MIXES):
            payloads = make_batches(blocks, events, block_size, arrays=arrays)
            done, wall, cpu = await take(payloads, seconds)
            per_batch = cpu / (done / (blocks * events)) * 1e6
            mix = f"{blocks} x {events}"
            form = "array" if arrays else "map"
            print(f"{way:<12}{form:<8}{mix:<17}{done / wall:>12,.0f}{done / cpu:>17,.0f}{per_batch:>10.1f}")


def main() -> None:
    """Run the command."""
    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("--seconds", type=float, default=0.5, help="per line")
    command.add_argument("--block-size", type=int, default=16)
    options = command.parse_args()
    logging.disable(logging.WARNING)
    uvloop.run(run(options.seconds, options.block_size))


if __name__ == "__main__":
    main()
