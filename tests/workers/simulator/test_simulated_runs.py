"""Runs of decode steps that are planned as one: how they are cut and looked at changes nothing."""

from random import Random

import pytest

from workers.simulator.engine import Engine
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest

PROFILE = PROFILES["h100-llama-3.1-8b"]


def traffic(chance, block_size, requests=60):
    at, arrivals = 0.0, []
    for number in range(requests):
        at += chance.expovariate(25)
        family, tokens = chance.randrange(5), chance.randrange(1, 600)
        shared = 200 // block_size
        names = [hash((family if k < shared else -number, k)) for k in range(tokens // block_size)]
        output = chance.randrange(1, 300)
        arrivals.append((at, EngineRequest(str(number), Blocks(names, tokens), output, output)))
    return arrivals


def run(config, arrivals, look_every_s=None):
    """Times of every sequence; `look_every_s`: the engine is advanced in between, too."""
    engine, sequences = Engine(config, PROFILE), []
    arrivals, look = list(arrivals), look_every_s or float("inf")
    while True:
        due = engine.next_event()
        arrives = arrivals[0][0] if arrivals else float("inf")
        if due is None and not arrivals:
            return engine, [(round(s.first_at, 9), round(s.finished_at, 9)) for s in sequences]
        now = min(due if due is not None else float("inf"), arrives, look)
        if now == look:
            engine.advance(now)
            look += look_every_s
        elif now == due:
            engine.advance(now)
        else:
            at, request = arrivals.pop(0)
            sequences.append(engine.add(request, at))


@pytest.mark.parametrize("seed", range(12))
def test_looking_at_an_engine_in_the_middle_of_a_run_changes_nothing(seed):
    chance = Random(seed)
    block_size = chance.choice([4, 16, 64])
    config = EngineConfig(
        kv_blocks=chance.choice([1200, 4000, 20_000]) // block_size * 4,
        block_size=block_size,
        max_num_seqs=chance.choice([4, 32, 256]),
        max_num_batched_tokens=2048,
        max_model_len=1024,
    )
    arrivals = traffic(chance, block_size)
    undisturbed, times = run(config, arrivals)
    disturbed, same_times = run(config, arrivals, look_every_s=0.003)
    assert times == same_times
    assert undisturbed.counters == disturbed.counters
    assert undisturbed.kv_blocks_used == disturbed.kv_blocks_used == 0


def test_a_run_goes_on_past_the_ends_of_blocks():
    engine = Engine(EngineConfig(), PROFILE)
    engine.add(EngineRequest("a", Blocks([], 100), 200, 200), 0.0)
    steps = [result.steps for _ in range(2) for result in engine.advance(engine.next_event())]
    assert steps == [1, 199]
    assert engine.counters.generation_tokens == 200


def test_what_is_ahead_is_what_an_advance_would_show():
    config = EngineConfig()
    one, other = Engine(config, PROFILE), Engine(config, PROFILE)
    request = EngineRequest("a", Blocks([], 100), 500, 500)
    mine, twin = one.add(request, 0.0), other.add(request, 0.0)
    for engine in (one, other):
        engine.advance(engine.next_event())
        engine.next_event()
    for now in (0.05, 0.1, 0.5, 1.0):
        other.advance(now)
        assert one.generated(mine, one.ahead(now)) == other.generated(twin) > 0
    assert one.counters.steps == 1
