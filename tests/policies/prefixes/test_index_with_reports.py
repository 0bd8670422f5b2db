"""The index against the simulated engine, through its events as they go over the wire."""

from random import Random

import msgspec
import pytest
from block_pool import asking

from policies.model import WorkerFacts
from policies.prefixes.index import Prefixes
from workers.kv_events.decode import AllBlocksCleared, BlocksStored, decode
from workers.simulator.engine import Engine
from workers.simulator.kv_publisher import event_fields
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import EngineConfig, EngineRequest

SERVED = frozenset({"base", "sql"})


def an_engine(kv_blocks, block_size=4):
    config = EngineConfig(
        kv_blocks=kv_blocks,
        block_size=block_size,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=80,
        kv_events=True,
    )
    return Engine(config, PROFILES["h100-llama-3.1-8b"])


def an_index(block_size=4):
    known = Prefixes()
    known.update_facts(WorkerFacts("a", SERVED, adapters=frozenset({"sql"}), block_size=block_size))
    known.reports.start("a")
    known.reports.caught_up("a")
    return known


def hear(known, engine):
    """What has happened in the engine's cache, as its publisher puts it into a message."""
    events = [event_fields(entry) for entry in engine.take_kv_events()]
    for event in decode(msgspec.msgpack.encode([0.0, events, 0])).events:
        if isinstance(event, BlocksStored):
            known.stored("a", event)
        elif isinstance(event, AllBlocksCleared):
            known.cleared("a")
        else:
            known.removed("a", event)


def run(known, engine):
    while (at := engine.next_event()) is not None:
        engine.advance(at)
        hear(known, engine)


def an_order(chance, number, chats):
    """A turn of some chat, which goes on with its answer, or an old prompt again."""
    line, salt, history = chance.choice(chats)
    history += [chance.randrange(9) for _ in range(chance.randrange(1, 8))]
    if len(history) > 60:
        del history[chance.randrange(4, 16) :]
    prompt = list(history) if chance.random() < 0.8 else history[: chance.randrange(1, len(history) + 1)]
    answer = [chance.randrange(9) for _ in range(chance.randrange(1, 10))]
    if prompt == history:
        history += answer
    order = EngineRequest(
        f"r{number}",
        prompt,
        max_tokens=len(answer),
        ignore_eos=True,
        cache_salt=salt,
        lora=None if line == "base" else line,
        reply=lambda start, stop: answer[start:stop],
    )
    return order, asking(prompt, served_name=line, salt=salt or "", name=order.id)


@pytest.mark.parametrize(("kv_blocks", "seed"), [(20, 1), (33, 2), (300, 3)])
def test_every_hit_of_an_engine_that_reports_was_foretold(kv_blocks, seed):
    chance, engine, known = Random(seed), an_engine(kv_blocks), an_index()
    chats = [(line, salt, []) for line in sorted(SERVED) for salt in (None, "pepper") for _ in range(2)]
    hits = 0
    for number in range(400):
        order, request = an_order(chance, number, chats)
        foretold = known.match(request).get("a", 0)
        sequence = engine.add(order, engine.next_event() or 0.0)
        run(known, engine)
        assert foretold == sequence.cached
        hits += foretold > 0
        if chance.random() < 0.01:
            assert engine.reset_prefix_cache()
            hear(known, engine)
            assert known.match(request) == {}
    assert hits > 100
    # A full cache may forget the one copy of a block that it knows by name while another is in use. What follows
    # is named behind a parent that is not known any more; no prompt can hit it.
    tally = known.reports.tally("a")
    assert tally.passed_over == 0
    assert tally.unknown_removed <= tally.unknown_parent <= 2
    assert 0 <= engine._scheduler.pool.named - known.reports.blocks.held_blocks("a") <= tally.unknown_parent


def test_with_predictions_every_hit_among_concurrent_requests_is_foretold_too():
    chance, engine, known = Random(4), an_engine(300), an_index()
    head, running = [chance.randrange(9) for _ in range(40)], []
    for number in range(60):
        prompt = head[: chance.randrange(8, 40)] + [chance.randrange(9) for _ in range(chance.randrange(20))]
        request = asking(prompt, arrived=float(number))
        foretold = known.match(request).get("a", 0)
        pin = known.insert("a", request, float(number))
        sequence = engine.add(EngineRequest(f"r{number}", prompt, 3, ignore_eos=True), engine.next_event() or 0.0)
        running.append((sequence, foretold, pin))
        if number % 3 == 2:
            run(known, engine)
            for ended, expected, held in running:
                assert ended.cached == expected
                known.release(held, float(number))
            running.clear()
