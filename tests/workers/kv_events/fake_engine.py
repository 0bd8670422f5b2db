"""An engine that publishes what a test tells it to, on real sockets, and one who listens to a subscription."""

import asyncio
import contextlib
import json
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from workers.kv_events.decode import AllBlocksCleared, BlocksStored
from workers.kv_events.sources import KvSource
from workers.kv_events.subscription import KvEventsSettings
from workers.kv_events.subscriptions import Subscriptions

RECORDED = Path(__file__).parent / "recorded"
QUICK = KvEventsSettings(
    reach_timeout_s=20.0, replay_timeout_s=20.0, retry_first_s=0.05, retry_longest_s=0.2, slice_blocks=128
)
"""Tries again soon, and waits as long as a busy machine may take."""
ID = "http://worker:8000"
END = b"\xff" * 8


def recorded(version):
    """The frames that a real vLLM sent, and what it said of its endpoints."""
    told = json.loads((RECORDED / f"vllm-{version}.json").read_text())
    frames = {kind: [[bytes.fromhex(f) for f in m] for m in told[kind]] for kind in ("published", "replayed")}
    return frames | {"sources": told.get("sources")}


def stored(*hashes, parent=None, size=2, tokens=None, **more):
    ids = list(range(len(hashes) * size)) if tokens is None else tokens
    event = {"type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": parent, "token_ids": ids}
    return event | {"block_size": size, "lora_id": None, "medium": "GPU", "lora_name": None} | more


def removed(*hashes):
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0}


def payload(ts, *events):
    return msgspec.msgpack.encode([ts, list(events), 0])


async def until(condition, what=""):
    """Wait for something that another task brings about; generous, for machines that are busy."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class FakeEngine:
    """Publishes batches and repeats those that it keeps. A new life on the same ports is `restart`."""

    def __init__(self, *, replay=True, topic_in_replies=True, answers=True, topic=b"kv"):
        self.context = zmq.asyncio.Context()
        self.pub = self.context.socket(zmq.XPUB)
        self.pub.linger = 0
        self.port = self.pub.bind_to_random_port("tcp://127.0.0.1")
        self.topic = topic
        self.topic_in_replies = topic_in_replies
        self.answers = answers
        self.router = self.context.socket(zmq.ROUTER) if replay else None
        self.replay_port = None
        if self.router is not None:
            self.router.linger = 0
            self.replay_port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.asked = []
        self.next = 0
        self.ts = 1000.0
        self.kept = {}
        self.when_asked = None
        """Called before an answer to a replay."""
        self.subscribers = 0
        self.tasks = [asyncio.create_task(self._count_subscribers())]
        if replay:
            self.tasks.append(asyncio.create_task(self._repeat()))

    @property
    def source(self):
        replay = f"tcp://127.0.0.1:{self.replay_port}" if self.replay_port else None
        return KvSource(f"tcp://127.0.0.1:{self.port}", replay)

    def make(self, *events):
        """A batch that is kept, and does not reach those who listen."""
        number, self.next = self.next, self.next + 1
        self.ts += 1.0
        self.kept[number] = payload(self.ts, *events)
        return number

    async def publish(self, *events):
        await self.send(self.make(*events))

    async def send(self, number):
        await self.pub.send_multipart([self.topic, number.to_bytes(8, "big"), self.kept[number]])

    async def send_raw(self, *frames):
        await self.pub.send_multipart(list(frames))

    def restart(self):
        self.next, self.kept = 0, {}
        self.ts += 100.0

    async def _count_subscribers(self):
        while True:
            message = await self.pub.recv()
            self.subscribers += 1 if message[:1] == b"\x01" else -1

    async def _repeat(self):
        while True:
            client, empty, start = await self.router.recv_multipart()
            assert empty == b""
            start = int.from_bytes(start, "big")
            self.asked.append(start)
            if self.when_asked is not None:
                await self.when_asked()
            if not self.answers:
                continue
            topic = [self.topic] if self.topic_in_replies else []
            for number, body in sorted(self.kept.items()):
                if number >= start:
                    await self.router.send_multipart([client, b"", *topic, number.to_bytes(8, "big"), body])
            await self.router.send_multipart([client, b"", *([b""] if topic else []), END, b""])

    async def aclose(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.context.destroy(linger=0)


class Told:
    """Writes down what a subscription says."""

    def __init__(self):
        self.calls = []
        self.batches = []
        self.on_call = lambda: None

    def on_following(self, worker_id):
        self.calls.append(("following", worker_id))

    def on_caught_up(self, worker_id):
        self.calls.append(("caught up", worker_id))

    def on_batch(self, worker_id, events):
        self.calls.append(("batch", worker_id))
        self.batches.append((worker_id, list(events)))
        self.on_call()

    def on_lost(self, worker_id, why):
        self.calls.append(("lost", why))

    @property
    def losses(self):
        return [why for kind, why in self.calls if kind == "lost"]

    @property
    def hashes(self):
        """Every hash that was told of, in order; 0 for a cache that was cleared."""
        events = [event for _, batch in self.batches for event in batch]
        return [h for e in events for h in ((0,) if isinstance(e, AllBlocksCleared) else e.hashes)]

    @property
    def stored(self):
        return [event for _, batch in self.batches for event in batch if isinstance(event, BlocksStored)]


@contextlib.asynccontextmanager
async def following(told, settings=QUICK):
    """The subscriptions of one loop."""
    subscriptions = Subscriptions(told, settings)
    try:
        yield subscriptions
    finally:
        await subscriptions.aclose()


@contextlib.asynccontextmanager
async def fake_engine(**how):
    engine = FakeEngine(**how)
    try:
        yield engine
    finally:
        await engine.aclose()


@contextlib.asynccontextmanager
async def followed(told=None, settings=QUICK, before=(), **how):
    """An engine with a listener: (engine, told, counts)."""
    told = told or Told()
    async with fake_engine(**how) as engine:
        for events in before:
            engine.make(*events)
        async with following(told, settings) as subscriptions:
            subscriptions.follow(ID, engine.source)
            await until(lambda: engine.subscribers == 1)
            if engine.answers and engine.router is not None:
                await until(lambda: told.calls and len(told.hashes) >= len(before))
            yield engine, told, lambda: subscriptions.counts()[ID]
