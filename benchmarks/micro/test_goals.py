"""The scheduler's goals of speed and size, measured by pytest-benchmark on one core; nothing is asserted of them.

    pytest benchmarks/micro                                   the table of goals stands at the end
    pytest benchmarks/micro --benchmark-json FILE             every figure, machine and commit

Goals: match + insert of a 128 KB prompt in a full tree of 64 workers x 1M tokens at most 50 us (p99 300); a
placement decision over 64 workers at most 60 us; a scheduler step with 10,000 queued from 10,000 clients at
most 1 ms at p99; at most 3 bytes of tree per byte of live prompt (edges of 300 bytes); the collector's pauses are
told.
"""

from __future__ import annotations

import random
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.conftest import Goals
from benchmarks.micro.prefix_tree import (
    BYTES_PER_TOKEN,
    Chats,
    collected,
    fill,
    grown_tree,
    prompts,
    watched_collector,
)
from benchmarks.micro.scheduler_step import Backlog, Workload, scheduler
from policies import catalog
from policies.knowledge import Knowledge
from policies.model import Question, Ranked
from policies.prefixes.radix_tree import PrefixTree, TokenBudget

pytestmark = pytest.mark.timeout(900)

SEED = 1
WORKERS = 64


def test_match_and_insert_of_a_128_kb_prompt(benchmark: BenchmarkFixture, goals: Goals) -> None:
    chats = Chats(SEED, WORKERS)
    tree = PrefixTree(budget=TokenBudget(1_000_000 * BYTES_PER_TOKEN))
    coming = prompts(tree, chats, fill(tree, chats))
    now = iter(range(10**9, 2 * 10**9))

    def next_prompt() -> tuple[tuple[str, bytes, float], dict[str, object]]:
        _, worker, key = next(coming)
        return (worker, key, float(next(now))), {}

    def match_and_insert(worker: str, key: bytes, at: float) -> None:
        tree.match(key)
        tree.release(tree.insert(worker, key, at), at)

    with watched_collector(time.perf_counter) as pauses:
        benchmark.pedantic(match_and_insert, setup=next_prompt, rounds=3000)
    goals.times("tree: match + insert of 128 KB", benchmark, median_us=50, p99_us=300)
    goals.add("tree: longest collector pause meanwhile", f"{pauses.longest_ms():.1f} ms", "")
    goals.add("tree: a full collection", f"{collected(time.perf_counter) / 1000:.1f} ms", "")


def test_memory_of_the_tree(goals: Goals) -> None:
    tree, used = grown_tree(SEED, edge=300, width=1, fanout=2)
    assert tree.stats().bytes > 10**6
    goals.add("tree: bytes per live byte, edges of 300", f"{used / tree.stats().bytes:.2f}", "<= 3")


@pytest.mark.parametrize("name", list(catalog.placement_policies()))
def test_a_placement_decision_over_64_workers(benchmark: BenchmarkFixture, goals: Goals, name: str) -> None:
    made = scheduler(SEED, WORKERS, "fcfs", "cache_aware")
    workload = Workload(SEED)
    for _ in range(WORKERS * 4):
        ticket = made.submit(workload.request(0.0), 0.0)
        made.decisions(0.0)
        made.first_token(ticket, 0.1)
    placement = catalog.placement_policies()[name].build(
        knowledge=Knowledge(made.prefixes, made.lengths, rng=random.Random(SEED))
    )
    rankings: list[list[Ranked]] = []

    def next_question() -> tuple[tuple[Question], dict[str, object]]:
        request = workload.request(1.0)
        return (Question(request, made.prefixes.match(request), made.able(request), 1.0),), {}

    def rank(question: Question) -> None:
        rankings.append(placement.rank(question))

    benchmark.pedantic(rank, setup=next_question, rounds=2000)
    assert {len(ranking) for ranking in rankings} == {WORKERS}
    goals.times(f"placement over 64 workers: {name}", benchmark, median_us=60)


@pytest.mark.parametrize("queue", ["dlpm", "vtc"])
@pytest.mark.parametrize("placement", [catalog.DEFAULT_PLACEMENT, "lmetric"])
def test_a_scheduler_step_with_10_000_queued(
    benchmark: BenchmarkFixture, goals: Goals, placement: str, queue: str
) -> None:
    made = scheduler(SEED, WORKERS, queue, placement)
    backlog = Backlog(made, Workload(SEED, clients=10_000), 10_000)
    with watched_collector(time.perf_counter) as pauses:
        benchmark.pedantic(backlog.step, setup=lambda: (backlog.coming(), {}), rounds=3000)
    assert made.snapshot().queued >= 9_000
    goals.times(f"step, 10,000 queued: {queue}, {placement}", benchmark, p99_us=1000)
    goals.add(f"step, {queue}, {placement}: longest collector pause", f"{pauses.longest_ms():.1f} ms", "")
