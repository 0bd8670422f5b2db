"""What the prefix tree costs: time of match + insert, memory per live byte, and the collector's pauses.

    python benchmarks/micro/prefix_tree.py [--seed 1] [--workers 64] [--prompts 3000] [--clock wall|cpu]

Prints its figures as they are and asserts nothing. On a machine shared with other work, ``--clock cpu`` leaves
out the time in which this process did not run. The mix: chats that begin with one of 24 system prompts of
2 to 32 KB and grow by turns of 0.5 to 8 KB. A chat stays on its worker, and one turn in ten goes to another.
Every prompt that is timed is 128 KB long: the latest turn of a grown chat (60%), a new document below a known
system prompt (20%), the same prompt again (10%), a grown chat on another worker (10%). The tree is filled to
its capacity before, so that each insert evicts.
"""

import argparse
import gc
import os
import platform
import random
import sys
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from policies.prefixes.radix_tree import Pin, PrefixTree, TokenBudget

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
KIB = 1024
PROMPT = 128 * KIB
BYTES_PER_TOKEN = 4
KINDS = ["next turn"] * 6 + ["new document"] * 2 + ["again"] + ["elsewhere"]
Clock = Callable[[], float]


class Chats:
    """Texts made anew from their seed whenever they are needed, so that only the tree keeps memory."""

    def __init__(self, seed: int, workers: int) -> None:
        self.rng = random.Random(seed)
        self.workers = [f"worker-{number:02}" for number in range(workers)]
        self.systems = [self.rng.randbytes(self.rng.randrange(2 * KIB, 32 * KIB)) for _ in range(24)]
        self.seen = 0

    def start(self) -> tuple[int, str]:
        """Number and home of a new chat."""
        self.seen += 1
        return self.seen, self.rng.choice(self.workers)

    def text(self, chat: int, length: int) -> bytes:
        """The first ``length`` bytes of a chat's conversation, as a fresh object."""
        private = random.Random(chat)
        # The first system prompts are the popular ones.
        system = self.systems[min(int(private.expovariate(0.2)), len(self.systems) - 1)]
        return (system + private.randbytes(PROMPT))[:length]

    def turns(self, limit: int) -> Iterator[int]:
        """Lengths of a chat's prompts, turn by turn, up to the limit."""
        length = self.rng.randrange(33 * KIB, 64 * KIB)
        while length < limit:
            yield length
            length += self.rng.randrange(KIB // 2, 8 * KIB)


class Pauses:
    """Longest pause and number of runs of the collector, per generation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.longest: Counter[int] = Counter()
        self.runs: Counter[int] = Counter()
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = self.clock()
            return
        generation, pause = info["generation"], int((self.clock() - self._began) * 1e6)
        self.longest[generation] = max(self.longest[generation], pause)
        self.runs[generation] += 1

    def longest_ms(self) -> float:
        """The longest pause of all."""
        return max(self.longest.values(), default=0) / 1000

    def __str__(self) -> str:
        return ", ".join(
            f"generation {g}: {self.runs[g]} runs, longest {self.longest[g] / 1000:.2f} ms"
            for g in sorted(self.runs)
        )


@contextmanager
def watched_collector(clock: Clock) -> Iterator[Pauses]:
    """Count the collector's pauses inside the block."""
    pauses = Pauses(clock)
    gc.callbacks.append(pauses)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(pauses)


def fill(tree: PrefixTree, chats: Chats) -> list[tuple[int, str]]:
    """Grow chats until the workers are full; returns the newest 1,000, each stopped short of 128 KB."""
    grown: deque[tuple[int, str]] = deque(maxlen=1000)
    capacity = len(chats.workers) * tree.budget.capacity(chats.workers[0])
    now = 0.0
    while sum(map(tree.held, chats.workers)) < 0.97 * capacity:
        for _ in range(50):
            chat, home = chats.start()
            for length in chats.turns(PROMPT - 8 * KIB):
                now += 1
                worker = home if chats.rng.random() < 0.9 else chats.rng.choice(chats.workers)
                tree.release(tree.insert(worker, chats.text(chat, length), now), now)
            grown.append((chat, home))
    return list(grown)


def prompts(tree: PrefixTree, chats: Chats, grown: list[tuple[int, str]]) -> Iterator[tuple[str, str, bytes]]:
    """Kind, worker and text of the prompts that are timed, without end."""
    last = grown[-1]
    while True:
        kind = chats.rng.choice(KINDS)
        if kind == "new document":
            chat, worker = chats.start()
        elif kind == "again":
            chat, worker = last
        else:
            chat, worker = grown[chats.rng.randrange(len(grown))]
            if kind == "elsewhere":
                worker = chats.rng.choice(chats.workers)
            else:
                # The chat has not been at 128 KB before: the turn before this one was shorter.
                length = PROMPT - chats.rng.randrange(KIB // 2, 8 * KIB)
                tree.evict(worker, chats.text(chat, PROMPT), length)
        last = chat, worker
        yield kind, worker, chats.text(chat, PROMPT)


def timed_prompts(
    tree: PrefixTree, chats: Chats, grown: list[tuple[int, str]], count: int, clock: Clock
) -> dict[str, list[tuple[float, float, float]]]:
    """Microseconds of (match, insert, release) per kind of prompt."""
    times: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    running: deque[Pin] = deque()
    now = 1e9
    for kind, worker, key in islice(prompts(tree, chats, grown), count):
        now += 1
        began = clock()
        tree.match(key)
        matched = clock()
        pin = tree.insert(worker, key, now)
        inserted = clock()
        running.append(pin)
        del key
        released = began_release = clock()
        if len(running) > 4 * len(chats.workers):
            tree.release(running.popleft(), now)
            released = clock()
        times[kind].append(((matched - began) * 1e6, (inserted - matched) * 1e6, (released - began_release) * 1e6))
    return times


def percentile(values: list[float], share: float) -> float:
    """The value that the given share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def line(name: str, values: list[float]) -> None:
    """Print one distribution."""
    print(
        f"  {name:34} {len(values):6}  p50 {percentile(values, 0.5):7.1f}  p90 {percentile(values, 0.9):7.1f}  "
        f"p99 {percentile(values, 0.99):7.1f}  max {max(values):7.1f}"
    )


def report_times(seed: int, workers: int, prompts: int, clock: Clock) -> None:
    """Time of one prompt in a full tree, and the collector's pauses with that tree alive."""
    chats = Chats(seed, workers)
    tree = PrefixTree(budget=TokenBudget(1_000_000 * BYTES_PER_TOKEN))
    with watched_collector(clock) as while_filling:
        began = clock()
        grown = fill(tree, chats)
        took = clock() - began
    print(f"tree: {workers} workers x 1,000,000 tokens, {tree.stats()}, filled in {took:.0f} s")
    for frozen in (False, True):
        if frozen:
            gc.collect()
            gc.freeze()
        with watched_collector(clock) as pauses:
            times = timed_prompts(tree, chats, grown, prompts, clock)
        print(f"128 KB prompts, microseconds, {'with' if frozen else 'without'} gc.freeze()")
        everything = [triple for kind in times.values() for triple in kind]
        line("match + insert", [match + insert for match, insert, _ in everything])
        line("match + insert + release", [sum(triple) for triple in everything])
        line("match", [match for match, _, _ in everything])
        for kind, triples in times.items():
            line(f"match + insert, {kind}", [match + insert for match, insert, _ in triples])
        full = collected(clock)
        print(f"  collector meanwhile: {pauses}; a full collection: {full / 1000:.2f} ms")
    gc.unfreeze()
    print(f"collector while filling: {while_filling}")
    print(f"tree afterwards: {tree.stats()}")


def collected(clock: Clock) -> float:
    """Microseconds of the slowest of three full collections."""
    laps = []
    for _ in range(3):
        began = clock()
        gc.collect()
        laps.append((clock() - began) * 1e6)
    return max(laps)


def grown_tree(seed: int, edge: int, width: int, fanout: int) -> tuple[PrefixTree, int]:
    """A tree of equal edges, and the bytes of memory that it takes."""
    rng = random.Random(seed)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tree = PrefixTree(width, budget=TokenBudget(10**9))
    now = 0
    for _ in range(12_000_000 // (edge * (fanout + 1))):
        head = rng.randbytes(edge)
        for _ in range(fanout):
            now += 1
            # Heads have several holders, tails have one.
            worker = f"worker-{rng.randrange(64):02}"
            tree.release(tree.insert(worker, head + rng.randbytes(edge), now))
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return tree, used


def report_memory(seed: int, edge: int, width: int, fanout: int, clock: Clock) -> None:
    """Memory per byte of live prompt (each byte counted once, not per worker)."""
    tree, used = grown_tree(seed, edge, width, fanout)
    stats = tree.stats()
    pause = collected(clock)
    print(
        f"  edges of {stats.bytes // stats.nodes:5} B, fan-out {fanout:2}, width {width}: {stats.nodes:6} nodes, "
        f"{used / stats.bytes:5.2f} B per live byte, {used / stats.nodes - edge:4.0f} B per node beside its edge, "
        f"full collection {pause / 1000:.1f} ms ({pause * 1000 / stats.nodes:.0f} ns per node)"
    )


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    machine = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, seed {options.seed}, {options.clock} clock")
    report_times(options.seed, options.workers, options.prompts, clock)
    print("memory (tracemalloc)")
    for edge, fanout in ((300, 2), (300, 10), (1000, 2), (4000, 10)):
        report_memory(options.seed, edge, 1, fanout, clock)
    report_memory(options.seed, 300, 4, 2, clock)


if __name__ == "__main__":
    main()
