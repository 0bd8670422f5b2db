"""One published batch of KV events: bytes -> values, and a batch in parts.

A message has three frames: topic, sequence number (8 bytes, big-endian, from 0 in each life of the process) and a
msgpack payload `[ts, [event, ...], data_parallel_rank]` (vLLM, `distributed/kv_events.py`). vLLM up to 0.23 writes
an event as an array that begins with its type, from 0.24 on as a map with the key `type`. Both are read into the
same values by msgspec in one pass; fields that are not declared here are passed over, in arrays when they stand at
the end. A type of event that is not known here is left out and counted.

Only the shape of a message is checked. Whether a block fits what is known of a model and its cache is for the
reader of the events to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace as altered

BlockHash = int | bytes
"""vLLM's name of a block: the last 64 bits of its digest, or all of it. Means nothing outside its worker."""

_SEQ_BYTES = 8
_END_SEQ = b"\xff" * _SEQ_BYTES


class GarbledMessageError(ValueError):
    """The bytes are no batch of KV events. `str()` says what is wrong with them."""


class BlocksStored(
    Struct,
    frozen=True,
    gc=False,
    tag="BlockStored",
    tag_field="type",
    rename={
        "hashes": "block_hashes",
        "parent": "parent_block_hash",
        "group": "group_idx",
        "kind": "kv_cache_spec_kind",
        "window": "kv_cache_spec_sliding_window",
    },
):
    """Full blocks that a later prompt can hit from now on, each the child of the one before it.

    The fields stand in the order of the array format.
    """

    hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    """Hash of the block before the first one; None where a prompt begins."""
    token_ids: tuple[int, ...]
    """Those of all blocks, one after the other."""
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    """Where they lie: GPU, CPU, STORAGE; None: not said, which is the GPU."""
    lora_name: str | None = None
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    """What else entered the hash, per block: the name of a LoRA adapter, media, the salt."""
    group: int | None = None
    """Index of the group of layers whose cache this is; several groups report one prompt each for themselves."""
    kind: str | None = None
    """What the cache of this group is like: `full_attention`, `sliding_window`."""
    window: Any = None

    @property
    def lora(self) -> str | None:
        """Name of the LoRA adapter, or its number where an old version says no name."""
        return self.lora_name if self.lora_name is not None or self.lora_id is None else str(self.lora_id)


class BlocksRemoved(
    Struct,
    frozen=True,
    gc=False,
    tag="BlockRemoved",
    tag_field="type",
    rename={"hashes": "block_hashes", "group": "group_idx"},
):
    """Blocks that were handed out again: as many copies fewer as there are events for a hash."""

    hashes: tuple[BlockHash, ...]
    medium: str | None = None
    group: int | None = None


class AllBlocksCleared(Struct, frozen=True, gc=False, tag="AllBlocksCleared", tag_field="type"):
    """The cache is empty."""


KvEvent = BlocksStored | BlocksRemoved | AllBlocksCleared


class _StoredArray(BlocksStored, frozen=True, array_like=True, tag="BlockStored"):
    pass


class _RemovedArray(BlocksRemoved, frozen=True, array_like=True, tag="BlockRemoved"):
    pass


class _ClearedArray(AllBlocksCleared, frozen=True, array_like=True, tag="AllBlocksCleared"):
    pass


class _Maps(Struct, array_like=True):
    ts: float
    events: list[BlocksStored | BlocksRemoved | AllBlocksCleared]
    rank: int | None = None


class _Arrays(Struct, array_like=True):
    ts: float
    events: list[_StoredArray | _RemovedArray | _ClearedArray]
    rank: int | None = None


class _Raw(Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    rank: int | None = None


_decode_maps = msgspec.msgpack.Decoder(_Maps).decode
_decode_arrays = msgspec.msgpack.Decoder(_Arrays).decode
_decode_raw = msgspec.msgpack.Decoder(_Raw).decode
_decode_map = msgspec.msgpack.Decoder(BlocksStored | BlocksRemoved | AllBlocksCleared).decode
_decode_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray).decode
_TYPES = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of an engine did to its cache."""

    ts: float
    """Unix time at which the engine made it."""
    events: Sequence[KvEvent]
    rank: int | None = None
    unknown: int = 0
    """Events of types that are not known here, left out."""


def read_message(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """Take a published message apart: sequence number and payload. Raises GarbledMessageError."""
    if len(frames) != 3:
        raise GarbledMessageError(f"a message of {len(frames)} frames, where topic, number and payload are three")
    return _seq(frames[1]), frames[2]


def read_reply(frames: Sequence[bytes]) -> tuple[int, bytes] | None:
    """Take an answer to a replay request apart, with or without the topic in it; None: it was the last one.

    Raises GarbledMessageError.
    """
    if len(frames) not in (3, 4) or frames[0]:
        raise GarbledMessageError(f"an answer of {len(frames)} frames, where an empty one and two or three belong")
    seq, payload = frames[-2:]
    return None if seq == _END_SEQ else (_seq(seq), payload)


def replay_request(start: int) -> list[bytes]:
    """The frames that ask for every batch from `start` on."""
    return [b"", start.to_bytes(_SEQ_BYTES, "big")]


def decode(payload: bytes) -> Batch:
    """Read a payload of either format. Raises GarbledMessageError."""
    found: _Maps | _Arrays
    try:
        found = _decode_maps(payload)
    except _UNREADABLE:
        try:
            found = _decode_arrays(payload)
        except _UNREADABLE:
            return _decode_one_by_one(payload)
    return Batch(found.ts, found.events, found.rank)


def _decode_one_by_one(payload: bytes) -> Batch:
    """Read a batch that holds something unknown, or find out what is wrong with it."""
    try:
        raw = _decode_raw(payload)
    except _UNREADABLE as error:
        raise GarbledMessageError(f"the payload is no batch: {error}") from None
    events = [_decode_event(index, bytes(item)) for index, item in enumerate(raw.events)]
    known = [event for event in events if event is not None]
    return Batch(raw.ts, known, raw.rank, len(events) - len(known))


def _decode_event(index: int, item: bytes) -> KvEvent | None:
    try:
        whole = msgspec.msgpack.decode(item)
    except _UNREADABLE as error:
        raise GarbledMessageError(f"event {index} is not msgpack: {error}") from None
    if isinstance(whole, dict):
        kind = whole.get("type")
    else:
        kind = whole[0] if isinstance(whole, list) and whole else None
    if not isinstance(kind, str):
        raise GarbledMessageError(f"event {index} does not say its type")
    if kind not in _TYPES:
        return None
    try:
        event: KvEvent = _decode_map(item) if isinstance(whole, dict) else _decode_array(item)
    except _UNREADABLE as error:
        raise GarbledMessageError(f"event {index}, {kind}: {error}") from None
    return event


def parts(events: Sequence[KvEvent], most: int) -> Iterator[Sequence[KvEvent]]:
    """Cut a batch into parts of at most `most` blocks (see `cost`), in order.

    A longer BlocksStored becomes several: the parent of each is the last block of the one before.
    """
    if cost(events) <= most:
        if events:
            yield events
        return
    part: list[KvEvent] = []
    room = most
    for event in events:
        for piece in _pieces(event, most):
            size = cost((piece,))
            if part and size > room:
                yield part
                part, room = [], most
            part.append(piece)
            room -= size
    if part:
        yield part


def cost(events: Sequence[KvEvent]) -> int:
    """How many blocks the events speak of; one that speaks of none counts as one."""
    return sum(1 if isinstance(event, AllBlocksCleared) else len(event.hashes) or 1 for event in events)


def _pieces(event: KvEvent, most: int) -> Sequence[KvEvent]:
    if isinstance(event, AllBlocksCleared) or len(event.hashes) <= most:
        return (event,)
    starts = range(0, len(event.hashes), most)
    if isinstance(event, BlocksRemoved):
        return [altered(event, hashes=event.hashes[start : start + most]) for start in starts]
    if len(event.token_ids) != len(event.hashes) * event.block_size:
        return (event,)  # which tokens belong to which block cannot be said
    return [_piece(event, start, most) for start in starts]


def _piece(event: BlocksStored, start: int, most: int) -> BlocksStored:
    size, end = event.block_size, start + most
    return altered(
        event,
        hashes=event.hashes[start:end],
        parent=event.hashes[start - 1] if start else event.parent,
        token_ids=event.token_ids[start * size : end * size],
        extra_keys=event.extra_keys[start:end] if event.extra_keys else event.extra_keys,
    )


def _seq(frame: bytes) -> int:
    if len(frame) != _SEQ_BYTES:
        raise GarbledMessageError(f"a sequence number of {len(frame)} bytes, where {_SEQ_BYTES} belong")
    return int.from_bytes(frame, "big")
