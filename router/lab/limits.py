"""What no router can exceed: how far a fleet is from what its caches and engines make possible.

Take the KV caches of all workers as one, which every worker reads at no cost, and let it evict with knowledge
of the future: a block leaves the cache when it is the one used again latest (Belady's MIN, IBM Systems Journal
5(2), 1966). A block's ancestors are used whenever it is, so they never leave before it, and MIN is optimal
among caches of prefixes as it is among caches of independent blocks. The requests come in the order of the
workload, all KV in use costs no room, and of two requests at the same moment the second finds what the first
one computes.

From those hits follow the shortest possible times: every request alone on an idle engine, its uncached tokens
prefilled at once, its answer decoded in a batch of its own.
"""

from array import array
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from router.lab.distribution import spread
from router.lab.setup import Setup
from router.lab.workload import Request, Workload
from workers.simulator.profiles import Profile, pairs

Numbers = npt.NDArray[np.int_ | np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Uses:
    """Every use of a block, in the order of the workload."""

    request: Numbers
    """Number of the request, rising."""
    depth: Numbers
    """Place of the block in its prompt."""
    countable: Flags
    """Whether the request would be spared its computation, if it were cached."""
    follower: Numbers
    """The next use of the same block; -1 where there is none."""

    @property
    def worth_keeping(self) -> Flags:
        """Uses after which the block has something to be kept for."""
        follower = self.follower
        return (follower >= 0) & self.countable[follower] & (self.request[follower] > self.request)


def limit(workload: Workload, setup: Setup) -> dict[str, Any]:
    """The bounds for one workload on one fleet, as a report shows them.

    - `prefix_hit_ratio`: share of prompt tokens that one pooled cache of the fleet's size finds under MIN;
    - `unlimited_hit_ratio`: the same of a cache without bound;
    - `ttft_s`, `e2e_s`: mean and percentiles in seconds, with the hits of the former and no waiting.
    """
    engine = setup.engine_config(workload.block_tokens)
    workers = setup.workers + sum(change.kind == "join" for change in setup.changes)
    capacity = workers * engine.kv_blocks if engine.prefix_caching else 0
    uses, requests = _uses(workload), len(workload.requests)
    found = cached_blocks(uses, capacity, requests)
    unlimited = _leading_hits(uses, uses.worth_keeping, requests) if engine.prefix_caching else found
    prompts, ttft, e2e = 0, array("d"), array("d")
    for request, blocks in zip(workload.requests, found.tolist(), strict=True):
        prompts += request.input_tokens
        first = prefill_s(
            setup.profile, request.input_tokens, blocks * workload.block_tokens, engine.max_num_batched_tokens
        )
        if request.streams:
            ttft.append(first)
        e2e.append(first + _decode_s(setup.profile, request))
    return {
        "prefix_hit_ratio": int(found.sum()) * workload.block_tokens / prompts if prompts else 0.0,
        "unlimited_hit_ratio": int(unlimited.sum()) * workload.block_tokens / prompts if prompts else 0.0,
        "ttft_s": spread(ttft),
        "e2e_s": spread(e2e),
    }


def hits(workload: Workload, capacity: int) -> list[int]:
    """Blocks that each request finds in a pooled cache of `capacity` blocks under MIN."""
    found: list[int] = cached_blocks(_uses(workload), capacity, len(workload.requests)).tolist()
    return found


def prefill_s(profile: Profile, tokens: int, cached: int, max_batched_tokens: int) -> float:
    """Seconds to the first token of a prompt alone on an engine that holds its first `cached` tokens."""
    seconds = 0.0
    for start in range(cached, tokens, max_batched_tokens):
        chunk = min(max_batched_tokens, tokens - start)
        seconds += profile.step_s(0, 0, chunk, pairs(start, chunk), int(start + chunk == tokens))
    return seconds


def _decode_s(profile: Profile, request: Request) -> float:
    steps, answers = request.output_tokens - 1, request.sequences
    first = profile.step_s(answers, answers * request.input_tokens)
    return steps * first + profile.decode_growth_s(answers) * steps * (steps - 1) / 2


def _uses(workload: Workload) -> _Uses:
    names, rows, depths, countable = [], [], [], []
    for row, request in enumerate(workload.requests):
        blocks = np.array(request.block_names, dtype=np.uint64)
        prompt = len(request.key) // 8
        depth = np.arange(len(blocks), dtype=np.int32)
        names.append(blocks)
        rows.append(np.full(len(blocks), row, dtype=np.int32))
        depths.append(depth)
        # An engine computes at least one token of each prompt, so a full last block is never a hit.
        countable.append((depth < prompt) & (depth < (request.input_tokens - 1) // workload.block_tokens))
    name = np.concatenate(names)
    order = np.argsort(name, kind="stable")
    follower = np.full(len(name), -1)
    same = name[order[1:]] == name[order[:-1]]
    follower[order[:-1][same]] = order[1:][same]
    return _Uses(np.concatenate(rows), np.concatenate(depths), np.concatenate(countable), follower)


def cached_blocks(uses: _Uses, capacity: int, requests: int) -> Numbers:
    """Leading blocks of each request that are cached when it comes."""
    kept = uses.worth_keeping
    starts, ends = uses.request[kept], uses.request[uses.follower[kept]]
    held = np.cumsum(np.bincount(starts, minlength=requests) - np.bincount(ends, minlength=requests))
    if len(held) and held.max() > capacity:
        kept = _kept_by_min(uses, kept, capacity)
    return _leading_hits(uses, kept, requests)


def _kept_by_min(uses: _Uses, wanted: Flags, capacity: int) -> Flags:
    """Which blocks stay until their next use, of those that have one, if at most `capacity` do at any time."""
    kept = wanted.copy()
    places = np.flatnonzero(wanted)
    starts, ends = uses.request[places].tolist(), uses.request[uses.follower[places]].tolist()
    depths = uses.depth[places].tolist()
    leaving = sorted(ends)
    held, gone, latest_first = 0, 0, list[tuple[int, int, int]]()
    dropped_ends: dict[int, int] = {}
    number = 0
    while number < len(places):
        now = starts[number]
        while gone < len(leaving) and leaving[gone] <= now:  # used again: no longer held for that
            end = leaving[gone]
            gone += 1
            if dropped_ends.get(end):
                dropped_ends[end] -= 1
            else:
                held -= 1
        while number < len(places) and starts[number] == now:
            heappush(latest_first, (-ends[number], -depths[number], number))
            held += 1
            number += 1
        while held > capacity:
            end, _, dropped = heappop(latest_first)
            kept[places[dropped]] = False
            dropped_ends[-end] = dropped_ends.get(-end, 0) + 1
            held -= 1
    return kept


def _leading_hits(uses: _Uses, kept: Flags, requests: int) -> Numbers:
    """Blocks at the beginning of each prompt that were kept for it."""
    hit = np.zeros(len(uses.request), dtype=bool)
    hit[uses.follower[kept]] = True
    hit &= uses.countable
    # The first block of each request that is not a hit ends what it finds.
    missing = np.flatnonzero(~hit)
    found = np.bincount(uses.request, minlength=requests)
    first_missing = np.full(requests, np.iinfo(np.int32).max)
    np.minimum.at(first_missing, uses.request[missing], uses.depth[missing])
    leading: Numbers = np.minimum(found, first_missing)
    return leading
