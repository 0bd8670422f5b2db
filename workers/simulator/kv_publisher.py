"""vLLM's KV events on real ZMQ sockets: a PUB socket tells the events of each step, a ROUTER repeats them.

After vLLM's ZmqEventPublisher, with its configuration, its frames and both of its formats: maps since 0.24, arrays
before, when the answers to a replay had no topic.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import msgspec
import orjson
import zmq

from workers.kv_events.sockets import LoopSocket, UnreachableError
from workers.simulator.kv_journal import Cleared, KvEntry, Removed, Stored

Wire = Literal["map", "array"]

_END = b"\xff" * 8
_UINT64 = (1 << 64) - 1
_MEDIUM = "GPU"
_GROUP = 0
_KIND = "full_attention"


@dataclass(frozen=True, slots=True)
class KvEventsConfig:
    """What `--kv-events-config` says. Port 0 is a free one, which /kv_event_sources then names."""

    endpoint: str = "tcp://*:0"
    replay_endpoint: str | None = "tcp://*:0"
    topic: str = ""
    buffer_steps: int = 10_000
    """Batches that can be repeated."""
    hwm: int = 100_000
    max_queue_size: int = 100_000
    wire: Wire = "map"
    """`array` is what versions up to 0.23 write."""

    @classmethod
    def from_option(cls, text: str, wire: Wire = "map") -> "KvEventsConfig | None":
        """From vLLM's JSON; None where it turns events off. Raises ValueError that says what is wrong."""
        try:
            told = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"--kv-events-config is not JSON: {error}") from None
        if not isinstance(told, dict):
            raise ValueError("--kv-events-config is not a JSON object")  # noqa: TRY004  # a wrong option
        if not told.pop("enable_kv_cache_events", False) or told.pop("publisher", "zmq") != "zmq":
            return None
        known = {field.name for field in fields(cls)} - {"wire"}
        if unknown := sorted(told.keys() - known):
            raise ValueError(f"--kv-events-config: unknown {', '.join(unknown)}")
        return cls(**{"endpoint": "tcp://*:5557", "replay_endpoint": None, **told}, wire=wire)

    def __post_init__(self) -> None:
        if self.wire not in get_args(Wire):
            raise ValueError(f"wire is {self.wire!r}, not one of {', '.join(get_args(Wire))}")
        for endpoint in (self.endpoint, self.replay_endpoint):
            if endpoint is not None and not (endpoint.startswith("tcp://") and _port(endpoint).isdecimal()):
                raise ValueError(f"{endpoint!r} is not tcp://HOST:PORT")

    def next_to(self, index: int) -> "KvEventsConfig":
        """The same for another worker of this process, `index` ports further; free ports stay free ones."""
        replay = self.replay_endpoint and _further(self.replay_endpoint, index)
        return replace(self, endpoint=_further(self.endpoint, index), replay_endpoint=replay)


class KvPublisher:
    """Publishes the journal of one engine, from `start` to `aclose`."""

    def __init__(self, config: KvEventsConfig, host: str) -> None:
        self._config = config
        self._host = f"[{host}]" if ":" in host else host
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pub: LoopSocket | None = None
        self._repeating: asyncio.Task[None] | None = None
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._next = 0
        self._pack = msgspec.msgpack.Encoder().encode

    def start(self) -> None:
        """Bind. Raises OSError where a port is taken."""
        config, context = self._config, zmq.Context()
        self._context = context
        try:
            self._pub = LoopSocket(context, zmq.PUB, self._bound(config.endpoint), bind=True)
            self._config = replace(config, endpoint=self._told(config.endpoint, self._pub))
            if config.replay_endpoint is not None:
                router = LoopSocket(context, zmq.ROUTER, self._bound(config.replay_endpoint), bind=True)
                told = self._told(config.replay_endpoint, router)
                self._config = replace(self._config, replay_endpoint=told)
                self._repeating = asyncio.get_running_loop().create_task(self._repeat(router))
        except UnreachableError as error:
            raise OSError(0, str(error)) from None

    async def aclose(self) -> None:
        if self._repeating is not None:
            self._repeating.cancel()
            await asyncio.gather(self._repeating, return_exceptions=True)
        if self._pub is not None:
            self._pub.close()
        if self._context is not None:
            self._context.term()

    def sources(self) -> dict[str, Any]:
        """As `GET /kv_event_sources`."""
        config = self._config
        told = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "wire"}
        return {"0": {"enable_kv_cache_events": True, "publisher": "zmq", **told}}

    def publish(self, entries: Sequence[KvEntry]) -> None:
        """Send one batch."""
        if self._pub is None:
            return
        events = [event_fields(entry) for entry in entries]
        if self._config.wire == "array":
            payload = self._pack([time.time(), [_as_array(event) for event in events], 0])
        else:
            payload = self._pack([time.time(), events, 0])
        number, self._next = self._next, self._next + 1
        self._pub.send([self._topic, number.to_bytes(8, "big"), payload])
        self._kept.append((number, payload))

    @property
    def _topic(self) -> bytes:
        return self._config.topic.encode()

    async def _repeat(self, router: LoopSocket) -> None:
        topic = [] if self._config.wire == "array" else [self._topic]
        with router:
            while True:
                frames = await router.receive()
                if len(frames) != 3:
                    continue
                client, start = frames[0], int.from_bytes(frames[2], "big")
                for number, payload in self._kept:
                    if number >= start:
                        router.send([client, b"", *topic, number.to_bytes(8, "big"), payload])
                router.send([client, b"", *([b""] if topic else []), _END, b""])

    def _bound(self, endpoint: str) -> str:
        """Where to bind: a free port only on this worker's own host, as vLLM does."""
        return f"tcp://{self._host}:0" if endpoint == "tcp://*:0" else endpoint

    def _told(self, endpoint: str, socket: LoopSocket) -> str:
        """What is said of it: vLLM names the port that it got, and otherwise what it was told."""
        return socket.endpoint if _port(endpoint) == "0" else endpoint


def event_fields(entry: KvEntry) -> dict[str, Any]:
    """An event as a map, in vLLM's order of keys."""
    if isinstance(entry, Cleared):
        return {"type": "AllBlocksCleared"}
    if isinstance(entry, Removed):
        hashes = [entry.name & _UINT64]
        return {"type": "BlockRemoved", "block_hashes": hashes, "medium": _MEDIUM, "group_idx": _GROUP}
    return _stored(entry)


def _stored(entry: Stored) -> dict[str, Any]:
    parent, sequence = entry.parent(), entry.sequence
    return {
        "type": "BlockStored",
        "block_hashes": [name & _UINT64 for name in entry.names()],
        "parent_block_hash": None if parent is None else parent & _UINT64,
        "token_ids": entry.token_ids(),
        "block_size": entry.block_size,
        "lora_id": None if sequence.lora_key is None else sequence.lora_key & 0x7FFF_FFFF,
        "medium": _MEDIUM,
        "lora_name": sequence.request.lora,
        "extra_keys": entry.extra_keys(),
        "group_idx": _GROUP,
        "kv_cache_spec_kind": _KIND,
    }


def _as_array(event: dict[str, Any]) -> list[Any]:
    values = list(event.values())
    return [*values, None] if values[0] == "BlockStored" else values  # the size of a sliding window


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def _further(endpoint: str, by: int) -> str:
    port = int(_port(endpoint))
    return f"{endpoint.rpartition(':')[0]}:{port + by}" if port else endpoint
