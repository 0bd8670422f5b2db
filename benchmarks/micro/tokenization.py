"""What it costs to know a prompt's token ids: microseconds on the event loop, and from asking to having them.

    python -m benchmarks.micro.tokenization MODEL_FOLDER [--json FILE]

Rows: a chat as it grows (its first request, each next turn, the same once more), single prompts of 2 kB and
128 kB, and what 1 MB does to a loop that has to wake up every millisecond. "on_loop" is processor time of the
loop's thread; "until_there" is time on the clock, with the thread's hop where there is one.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from router.edge.api.parsed_request import ParsedRequest, Surface, parse
from router.tokenization.desk import INLINE_CHARS, Desk
from router.tokenization.lanes import Lanes
from router.tokenization.local import load

WORDS = [word for word in Path(__file__).read_text().split() if word.isalpha()]
CACHE_BYTES = 64 << 20
TURNS = 40
TURN_BYTES = 500


def text(size: int, seed: int) -> str:
    """So many characters of words, no two texts alike."""
    return " ".join(random.Random(seed).choices(WORDS, k=size))[:size]


def chat(turns: int, seed: int) -> ParsedRequest:
    """A chat that has come to its so many-th question."""
    messages = [
        {"role": "assistant" if turn % 2 else "user", "content": text(TURN_BYTES, seed * 1000 + turn)}
        for turn in range(2 * turns - 1)
    ]
    return parse(Surface.CHAT, json.dumps({"messages": messages}).encode())


def prompt(size: int, seed: int) -> ParsedRequest:
    """A completion of a text."""
    return parse(Surface.COMPLETIONS, json.dumps({"prompt": text(size, seed)}).encode())


async def cost(desk: Desk, asks: list[ParsedRequest]) -> dict[str, float]:
    """Median microseconds per request, one after the other."""
    on_loop, until_there = [], []
    for ask in asks:
        cpu, start = time.thread_time(), time.perf_counter()
        ids = await desk.ids(ask)
        until_there.append(time.perf_counter() - start)
        on_loop.append(time.thread_time() - cpu)
        if ids is None:
            raise SystemExit(f"{desk.model}: not tokenized: {dict(desk.as_text)}")
    return {
        "on_loop_us": round(statistics.median(on_loop) * 1e6, 1),
        "until_there_us": round(statistics.median(until_there) * 1e6, 1),
    }


async def growing(make: Callable[[], Desk]) -> dict[str, dict[str, float]]:
    """Chats of `TURNS` turns, each told turn by turn."""
    firsts, nexts, again = [], [], []
    for seed in range(5):
        desk = make()
        firsts.append(await cost(desk, [chat(1, seed)]))
        nexts.append(await cost(desk, [chat(turns, seed) for turns in range(2, TURNS)]))
        again.append(await cost(desk, [chat(TURNS - 1, seed)] * 20))
    rows = {"chat: first turn": firsts, "chat: each next turn": nexts, f"chat: {TURNS - 1} turns, known": again}
    return {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in rows.items()
    }


async def held_up(desk: Desk, ask: ParsedRequest) -> dict[str, float]:
    """The longest that a loop with a tick each millisecond stands still while this prompt is tokenized."""
    longest = 0.0

    async def ticks() -> None:
        nonlocal longest
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - due)

    ticking = asyncio.create_task(ticks())
    await asyncio.sleep(0.2)
    idle, longest = longest, 0.0
    start = time.perf_counter()
    await desk.ids(ask)
    took = time.perf_counter() - start
    ticking.cancel()
    return {
        "took_ms": round(took * 1e3, 1),
        "loop_late_ms": round(longest * 1e3, 2),
        "idle_late_ms": round(idle * 1e3, 2),
    }


async def measure(folder: str) -> dict[str, object]:
    """All rows, each with nothing known before it."""
    lanes = Lanes()

    def fresh(inline_chars: int = INLINE_CHARS) -> Desk:
        return Desk(
            "model",
            load(folder, CACHE_BYTES),
            lanes,
            wait_s=60.0,
            distrusted=lambda: None,
            inline_chars=inline_chars,
        )

    rows: dict[str, object] = dict(await growing(fresh))
    for size, count in ((200, 200), (500, 200), (2_000, 100)):
        asks = [prompt(size, seed) for seed in range(count)]
        rows[f"prompt of {size} B, inline"] = await cost(fresh(1 << 30), asks)
        rows[f"prompt of {size} B, thread"] = await cost(fresh(-1), asks)
    rows["prompt of 128 kB, thread"] = await cost(fresh(), [prompt(128_000, seed) for seed in range(10)])
    rows["prompt of 1 MB, thread"] = await held_up(fresh(), prompt(1_000_000, 1))
    turns = [{"role": "user", "content": text(10_000, seed)} for seed in range(100)]
    long_chat = parse(Surface.CHAT, json.dumps({"messages": turns}).encode())
    rows["chat of 1 MB, thread"] = await held_up(fresh(), long_chat)
    lanes.close()
    return {"model": Path(folder).name, "machine": platform.processor() or platform.machine(), "rows": rows}


def main() -> None:
    """Print the table; with --json write it, too."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", help="a model's folder: tokenizer.json, tokenizer_config.json, chat template")
    arguments.add_argument("--json", type=Path, help="where to write the result")
    options = arguments.parse_args()
    result = asyncio.run(measure(options.folder))
    rows = result["rows"]
    for name, row in rows.items():  # type: ignore[attr-defined]
        print(f"{name:28}", "  ".join(f"{key} {value:>10}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
