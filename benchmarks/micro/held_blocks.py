"""What it costs to know what workers hold: to take their reports in, to look a prompt up, and in memory.

    python benchmarks/micro/held_blocks.py [--blocks 100000] [--block-size 16] [--prompt 32768] [--seed 1]

Prints its figures as they are and asserts nothing. Times are of the process's own CPU. `apply` is from decoded
events to the index, `decode and apply` from the bytes of a message; `kv_events.py` has the socket before that.
"""

import argparse
import gc
import platform
import random
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

from policies.model import PrefixKey
from policies.prefixes.index import Prefixes
from policies.prefixes.kv_blocks import KvBlocks
from router.control.cache_reports import CacheReports
from workers.kv_events.decode import BlockHash, BlocksRemoved, BlocksStored, decode

VOCABULARY = 128_000
CHAIN = 512
"""Blocks of one prompt, before the next one begins."""


def make_stored(chance: random.Random, blocks: int, per_event: int, size: int) -> list[BlocksStored]:
    """Reports of many prompts, so many blocks at a time."""
    made: list[BlocksStored] = []
    parent: BlockHash | None = None
    for start in range(0, blocks, per_event):
        names = tuple(chance.getrandbits(64) for _ in range(per_event))
        ids = tuple(chance.randrange(VOCABULARY) for _ in range(per_event * size))
        before = None if start % CHAIN == 0 else parent
        made.append(
            BlocksStored(
                names,
                before,
                ids,
                size,
                medium="GPU",
                extra_keys=(None,) * per_event,
                group=0,
                kind="full_attention",
            )
        )
        parent = names[-1]
    return made


def as_message(event: BlocksStored) -> bytes:
    """The payload of a batch that holds this one event."""
    fields = {
        "type": "BlockStored",
        "block_hashes": event.hashes,
        "parent_block_hash": event.parent,
        "token_ids": event.token_ids,
        "block_size": event.block_size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": event.extra_keys,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return msgspec.msgpack.encode([0.0, [fields], 0])


def cpu_s(act: Callable[..., object], *arguments: Iterable[object]) -> float:
    """CPU seconds of all calls, with what each of them is to be given; without, of one call."""
    gc.collect()
    before = time.process_time()
    if arguments:
        for each in zip(*arguments, strict=False):
            act(*each)
    else:
        act()
    return time.process_time() - before


def measure_apply(events: Sequence[BlocksStored], blocks: int) -> tuple[float, float, float]:
    """Blocks per second: stored, stored from bytes, removed one by one."""
    index = KvBlocks()
    index.follow("a")
    stored = cpu_s(index.stored, repeat("a"), events)
    gone = [BlocksRemoved((name,), "GPU", 0) for event in events for name in event.hashes]
    removed = cpu_s(index.removed, repeat("a"), gone)
    messages = [as_message(event) for event in events]
    prefixes = Prefixes()
    reports = CacheReports(lambda _: prefixes)
    reports.on_following("a")
    reports.on_caught_up("a")
    whole = cpu_s(lambda message: reports.on_batch("a", decode(message).events), messages)
    return blocks / stored, blocks / whole, blocks / removed


def measure_memory(events: Sequence[BlocksStored], blocks: int) -> tuple[float, float]:
    """Bytes per block of the first worker that holds it, and of each other one, its reported hash included."""
    index, messages = KvBlocks(), [as_message(event) for event in events]
    used = []
    tracemalloc.start()
    for worker in ("a", "b"):
        before = tracemalloc.get_traced_memory()[0]
        index.follow(worker)
        for message in messages:
            index.stored(worker, decode(message).events[0])  # type: ignore[arg-type]
        used.append((tracemalloc.get_traced_memory()[0] - before) / blocks)
    tracemalloc.stop()
    return used[0], used[1]


def measure_match(chance: random.Random, tokens: int, size: int, workers: int) -> tuple[float, float, float]:
    """Seconds to look up a prompt that all workers hold: the first time, again, and one that nobody holds."""
    ids = [chance.randrange(VOCABULARY) for _ in range(tokens)]
    index = KvBlocks()
    for number in range(workers):
        index.follow(f"w{number}")
        names = tuple(chance.getrandbits(64) for _ in range(tokens // size))
        index.stored(f"w{number}", BlocksStored(names, None, tuple(ids), size))
    key = PrefixKey(array("I", ids).tobytes(), 4, 1.0)
    other = PrefixKey(array("I", ids[::-1]).tobytes(), 4, 1.0)
    repeats = 50

    def best(act: Callable[[], object]) -> float:
        return min(cpu_s(act) for _ in range(repeats))

    remembered: dict[tuple[int, str | None], array[int]] = {}
    first = best(lambda: index.match(key, None, {}))
    index.match(key, None, remembered)
    return first, best(lambda: index.match(key, None, remembered)), best(lambda: index.match(other, None, {}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32_768)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(f"Python {platform.python_version()}, blocks of {options.block_size} tokens, seed {options.seed}\n")
    print("blocks per event        apply   decode and apply   remove one by one   (blocks/s)")
    for per_event in (1, 8, 64):
        blocks = options.blocks // (per_event * CHAIN) * per_event * CHAIN or per_event * CHAIN
        events = make_stored(chance, blocks, per_event, options.block_size)
        apply, whole, remove = measure_apply(events, blocks)
        print(f"{per_event:16}{apply:13,.0f}{whole:19,.0f}{remove:20,.0f}")
    first, more = measure_memory(events, blocks)
    print(f"\nmemory: {first:.0f} bytes per block at its first worker, {more:.0f} at each other one")
    first_s, again_s, miss_s = measure_match(chance, options.prompt, options.block_size, options.workers)
    print(
        f"a prompt of {options.prompt} tokens at {options.workers} workers: {first_s * 1e6:.0f} us at first, "
        f"{again_s * 1e6:.0f} us again; one that nobody holds: {miss_s * 1e6:.0f} us"
    )


if __name__ == "__main__":
    main()
