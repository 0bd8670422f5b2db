"""What no router can exceed, against every possible way of keeping blocks."""

from array import array
from itertools import chain, combinations
from random import Random

import pytest

from router.lab.driver import replay
from router.lab.limits import hits, limit, prefill_s
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload
from router.lab.workloads.open_workload import open_workload
from workers.simulator.profiles import PROFILES

H100 = PROFILES["h100-llama-3.1-8b"]
BLOCK = 4


def request(units, more_tokens=1, reply=(), **rest):
    tokens = len(units) * BLOCK + more_tokens
    keys = (array("Q", part).tobytes() for part in (units, reply))
    key, reply_key = keys
    return Request(0.0, "a", key, tokens, max(1, len(reply) * BLOCK), reply_key, **rest)


def workload(*requests):
    return Workload("hand-made", BLOCK, requests, {"a": 1.0})


def subsets(blocks):
    return chain.from_iterable(combinations(sorted(blocks), size) for size in range(len(blocks) + 1))


def best_by_trying_everything(requests, capacity):
    """The most hits of any cache that keeps, after each request, any subset of what it then has."""
    states = {frozenset(): 0}
    for each in requests:
        names, prompt = each.block_names, len(each.key) // 8
        after = {}
        for held, score in states.items():
            found = 0
            while found < min(prompt, (each.input_tokens - 1) // BLOCK) and names[found] in held:
                found += 1
            for kept in subsets(held | set(names)):
                if len(kept) <= capacity:
                    after[frozenset(kept)] = max(after.get(frozenset(kept), 0), score + found)
        states = after
    return max(states.values())


def forest(chance, prompts):
    """Prompts of up to three blocks from a small tree, some with full last blocks, some with replies."""
    made = []
    for _ in range(prompts):
        path, name = [], 0
        for _ in range(chance.randint(1, 3)):
            name = 3 * name + chance.randint(1, 2)
            path.append(name)
        reply = (3 * name + 1,) if chance.random() < 0.3 else ()
        made.append(request(path, more_tokens=chance.randint(0, 1), reply=reply))
    return made


@pytest.mark.parametrize("seed", range(25))
def test_no_way_of_keeping_blocks_gives_more_hits_nor_does_it_promise_more_than_there_are(seed):
    chance = Random(seed)
    requests = forest(chance, 6)
    for capacity in (0, 1, 2, 3, 5):
        assert sum(hits(workload(*requests), capacity)) == best_by_trying_everything(requests, capacity)


def test_the_block_that_is_used_again_latest_is_evicted():
    a, b, c = request([1]), request([2]), request([3])
    assert hits(workload(a, b, c, a, b), 1) == [0, 0, 0, 1, 0]
    assert hits(workload(a, b, c, b, a), 1) == [0, 0, 0, 1, 0]
    assert hits(workload(a, b, c, a, b), 2) == [0, 0, 0, 1, 1]


def test_a_block_never_outlives_its_ancestors():
    assert hits(workload(request([1, 2, 3]), request([1, 2, 3])), 2) == [0, 2]


def test_the_last_token_of_a_prompt_is_always_computed():
    full = request([1, 2], more_tokens=0)
    assert hits(workload(full, full), 10) == [0, 1]


def test_an_answer_is_in_the_cache_for_the_turn_that_repeats_it():
    assert hits(workload(request([1], reply=[2]), request([1, 2, 3])), 10) == [0, 2]


def test_adapters_share_no_blocks():
    assert hits(workload(request([1]), request([1], served_name="adapter-1"), request([1])), 10) == [0, 0, 1]


def test_times_are_those_of_a_request_alone_on_an_idle_engine():
    setup = make_setup(workers=1)
    units = array("Q", range(1000)).tobytes()
    alone = Workload("one", 16, [Request(0.0, "a", units, 16_000, 50)], {"a": 1.0})
    bounds, (result,) = limit(alone, setup), replay(alone, setup).results
    assert bounds["ttft_s"]["mean"] == pytest.approx(result.first_at)
    assert bounds["e2e_s"]["mean"] == pytest.approx(result.ended, rel=1e-3)
    assert prefill_s(H100, 16_000, 0, 8192) > H100.prefill_s(16_000)


@pytest.mark.parametrize("name", ["tot", "longqa", "chat"])
def test_no_replay_exceeds_the_limit(name):
    traffic = open_workload(f"{name}:requests=150")
    setup = make_setup(workers=2, settings={"engine.kv_tokens": 140_000})
    report, bounds = summarize(replay(traffic, setup), setup), limit(traffic, setup)
    assert report["prefix_hit_ratio"] <= bounds["prefix_hit_ratio"] <= bounds["unlimited_hit_ratio"]
    for times in ("ttft_s", "e2e_s"):
        assert bounds[times]["mean"] <= report[times]["mean"]


def test_without_caching_there_is_nothing_to_find():
    bounds = limit(workload(request([1]), request([1])), make_setup(settings={"engine.prefix_caching": False}))
    assert bounds["prefix_hit_ratio"] == bounds["unlimited_hit_ratio"] == 0.0
