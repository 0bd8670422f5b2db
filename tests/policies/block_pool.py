"""A worker's KV cache as its reports show it: events as values, and a small pool that tells what it does."""

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

from policies.model import PrefixKey, RequestView


@dataclass
class Stored:
    hashes: tuple
    parent: object
    token_ids: tuple
    block_size: int
    lora: str | None = None
    extra_keys: tuple | None = None
    medium: str | None = "GPU"
    group: int | None = 0
    kind: str | None = "full_attention"


@dataclass
class Removed:
    hashes: tuple
    medium: str | None = "GPU"
    group: int | None = 0


def name_of(ids, salt="", lora=None):
    """A block's hash, as bytes of which vLLM would show the last eight as a number."""
    return hashlib.sha256(repr((tuple(ids), salt, lora)).encode()).digest()


def stored(ids, size=4, *, after=0, salt="", lora=None, numbers=True, **fields):
    """The event for the full blocks of a prompt from token `after` on."""
    ids = tuple(ids)
    ends = range(after + size, len(ids) + 1, size)
    names = [name_of(ids[:end], salt, lora) for end in ends]
    parent = name_of(ids[:after], salt, lora) if after else None
    if numbers:
        names = [int.from_bytes(name[-8:], "big") for name in names]
        parent = None if parent is None else int.from_bytes(parent[-8:], "big")
    end = after + len(names) * size
    return Stored(tuple(names), parent, ids[after:end], size, lora, **fields)


def removed(ids, salt="", lora=None, numbers=True, **fields):
    """The event for the one block with which a prefix ends."""
    name = name_of(ids, salt, lora)
    return Removed((int.from_bytes(name[-8:], "big") if numbers else name,), **fields)


def token_key(ids, salt=""):
    return PrefixKey(array("I", ids).tobytes(), 4, 1.0, salt.encode())


def asking(ids, *, served_name="base", salt="", arrived=0.0, name="r", **fields):
    """A request whose prompt is token ids."""
    return RequestView(
        id=name,
        client="anna",
        served_name=served_name,
        key=token_key(ids, salt),
        input_tokens=len(ids),
        expected_output_tokens=1,
        arrived=arrived,
        **fields,
    )


@dataclass
class LruPool:
    """`size` blocks, least recently used first out, copies and all. Each method returns the events it causes."""

    blocks: int
    size: int
    numbers: bool = True
    copies: OrderedDict = field(default_factory=OrderedDict)
    """(serial of the copy) -> prefix that ends with it."""
    serial: int = 0

    def hits(self, ids):
        """Tokens of a prompt that the pool would find: full blocks, never all of it."""
        here = set(self.copies.values())
        found = 0
        while found + self.size < len(ids) and tuple(ids[: found + self.size]) in here:
            found += self.size
        return found

    def run(self, ids):
        """Compute a prompt: touch what is found, make room for the rest, and name it."""
        ids, events = tuple(ids), []
        found, end = self.hits(ids), len(ids) // self.size * self.size
        fresh = (end - found) // self.size
        if fresh > self.blocks - found // self.size:
            return events
        touched = {ids[:upto] for upto in range(self.size, found + 1, self.size)}
        held = [serial for serial, prefix in self.copies.items() if prefix in touched]
        for serial in held:
            self.copies.move_to_end(serial)
        while len(self.copies) + fresh > self.blocks:
            _, prefix = self.copies.popitem(last=False)
            events.append(removed(prefix, numbers=self.numbers))
        if fresh:
            events.append(stored(ids[:end], self.size, after=found, numbers=self.numbers))
        for upto in range(end, found, -self.size):  # the tail is given back first
            self.serial += 1
            self.copies[self.serial] = ids[:upto]
        return events
