"""What the simulated engine says of its cache: what it does with it, in the words of a real one."""

import asyncio
import contextlib
import random

import httpx
import msgspec
import pytest

from tests.workers.kv_events.fake_engine import QUICK, Told, following, recorded, until
from workers.kv_events.decode import AllBlocksCleared, BlocksRemoved, BlocksStored
from workers.kv_events.sources import read_sources
from workers.simulator.__main__ import parser, read_config
from workers.simulator.engine import Engine
from workers.simulator.kv_journal import Cleared, Removed, Stored
from workers.simulator.kv_publisher import KvEventsConfig, event_fields
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest
from workers.simulator.server import SimulatorConfig, simulated_worker

ID = "sim"
UINT64 = 1 << 64


def engine(**changes):
    limits = {
        "kv_blocks": 24,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 64,
    }
    return Engine(EngineConfig(**{**limits, "kv_events": True, **changes}), PROFILES["instant"])


def request(number, prompt, tokens=3, **more):
    def reply(start, stop):
        return [1000 + number * 100 + at for at in range(start, stop)]

    return EngineRequest(str(number), prompt, tokens, ignore_eos=True, **{"reply": reply, **more})


def run(one, *requests):
    """Everything to its end; what was told on the way."""
    for each in requests:
        one.add(each, 0.0)
    entries = one.take_kv_events()
    while (at := one.next_event()) is not None:
        one.advance(at)
        entries += one.take_kv_events()
    return entries


def known(one):
    return set(one._scheduler.pool._block_of)


def test_what_is_told_is_what_the_cache_holds_while_it_is_far_too_small():
    one, rng, told, chain = engine(), random.Random(1), set(), {}
    removals = 0
    for number in range(120):
        # Many prompts begin alike, and some of those run at the same time.
        prompt = [rng.randrange(2)] * rng.randrange(24) + [rng.randrange(3) for _ in range(rng.randrange(1, 16))]
        one.add(request(number, prompt, rng.randrange(1, 20)), 0.0)
        for _ in range(rng.randrange(4)):
            if (at := one.next_event()) is not None:
                one.advance(at)
        if rng.random() < 0.1:
            one.abort(str(number), one.next_event() or 0.0)
        for entry in one.take_kv_events():
            if isinstance(entry, Removed):
                removals += 1
                told.remove(entry.name)
            else:
                names = entry.names()
                assert not told & set(names)
                assert len(entry.token_ids()) == 4 * len(names)
                parent = entry.parent()
                assert parent is None or parent in chain
                for index, name in enumerate(names):
                    ids = tuple(entry.token_ids()[4 * index : 4 * index + 4])
                    before = () if parent is None else chain[parent]
                    assert chain.setdefault(name, (*before, *ids)) == (*before, *ids)
                    parent = name
                told.update(names)
        assert told == known(one)
    assert removals > 50


def test_blocks_that_the_output_fills_are_told_with_their_tokens():
    entries = run(engine(), request(1, [7, 7, 7, 7, 7, 7], 9))
    ids = [token for entry in entries for token in entry.token_ids()]
    assert ids == [7] * 6 + [1100 + at for at in range(6)]
    assert entries[0].parent() is None
    assert entries[1].parent() == entries[0].names()[-1]


def test_a_prompt_that_hits_tells_its_new_blocks_only():
    one = engine()
    first = run(one, request(1, [7] * 12, 1))
    again = run(one, request(2, [7] * 12 + [8] * 8, 1))
    assert [len(entry.names()) for entry in first] == [3]
    assert [len(entry.names()) for entry in again] == [2]
    assert again[0].parent() == first[0].names()[-1]
    assert again[0].token_ids() == [8] * 8


def test_a_second_copy_of_a_block_is_not_told():
    one = engine()
    [first] = run(one, request(1, [7] * 12, 1))
    assert len(first.names()) == 3
    # The last block is computed again, as the last token of a prompt always is.
    assert run(one, request(2, [7] * 12, 1)) == []


def test_salt_and_adapter_are_told_as_a_real_engine_tells_them():
    [entry] = run(engine(), request(1, [7] * 8, 1, cache_salt="tenant-a", lora="sql"))
    told = event_fields(entry)
    assert told["extra_keys"] == [("sql", "tenant-a"), ("sql",)]
    assert told["lora_name"] == "sql"
    assert isinstance(told["lora_id"], int)


def test_a_trace_without_tokens_tells_nothing():
    assert run(engine(), request(1, Blocks((1, 2), 8), 1)) == []


def test_without_events_no_journal_is_kept():
    assert run(engine(kv_events=False), request(1, [7] * 8)) == []


def test_the_cache_is_cleared_while_nobody_uses_it_and_the_next_step_tells():
    one = engine()
    run(one, request(1, [7] * 8, 1))
    one.add(request(2, [7] * 8), 0.0)
    one.next_event()
    assert not one.reset_prefix_cache()
    run(one)
    assert one.reset_prefix_cache()
    assert known(one) == set()
    entries = run(one, request(3, [7] * 8, 1))
    assert [type(entry) for entry in entries] == [Cleared, Stored]


def recorded_event(version, kind):
    payloads = [msgspec.msgpack.decode(frames[2]) for frames in recorded(version)["published"]]
    events = [event for payload in payloads for event in payload[1]]
    return next(event for event in events if (event["type"] if version == "0.32.0" else event[0]) == kind)


def shape(event):
    """Names, order and kinds of the values of a map."""
    return [(name, type(value).__name__) for name, value in event.items()]


def test_events_have_the_names_the_order_and_the_kinds_of_a_real_engine():
    one = engine(kv_blocks=16)
    entries = [*run(one, request(1, [7] * 40, 1)), *run(one, request(2, [8] * 60, 1))]
    one.reset_prefix_cache()
    entries += one.take_kv_events()
    for kind, entry in ((("BlockStored", Stored)), ("BlockRemoved", Removed), ("AllBlocksCleared", Cleared)):
        mine = event_fields(next(one for one in entries if isinstance(one, entry)))
        assert shape(mine) == shape(recorded_event("0.32.0", kind))


@contextlib.asynccontextmanager
async def listened_to(**how):
    config = SimulatorConfig(
        profile="instant", max_model_len=256, kv_blocks=24, kv_events=KvEventsConfig(**how), loras=("sql",)
    )
    async with simulated_worker(config) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        told = Told()
        async with following(told, QUICK) as subscriptions:
            sources = read_sources((await client.get("/kv_event_sources")).json(), worker.url)
            subscriptions.follow(ID, sources[0])
            await until(lambda: told.calls)
            yield worker, client, told


async def complete(client, prompt, **more):
    answer = await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2, **more})
    answer.raise_for_status()
    return answer.json()


@pytest.mark.parametrize("wire", ["map", "array"])
async def test_a_subscriber_sees_the_cache_as_it_is(wire):
    async with listened_to(wire=wire, topic="kv-events") as (worker, client, told):
        for start in range(0, 900, 100):
            prompt = list(range(start, start + 100))
            await complete(client, prompt)
            await complete(client, prompt, cache_salt="tenant-a", model="sql")
        held = {name % UINT64 for name in known(worker.engine)}

        def mirror():
            mine = set()
            for _, batch in told.batches:
                for event in batch:
                    (mine.update if isinstance(event, BlocksStored) else mine.difference_update)(event.hashes)
            return mine

        await until(lambda: mirror() == held)
        assert told.losses == []
        assert any(isinstance(event, BlocksRemoved) for _, batch in told.batches for event in batch)
        first = told.stored[0]
        assert first.token_ids == tuple(range(96))
        assert (first.block_size, first.medium, first.group, first.kind) == (16, "GPU", 0, "full_attention")
        assert told.stored[1].extra_keys[0] == ("sql", "tenant-a")
        assert told.stored[1].lora == "sql"


async def test_a_reset_over_http_is_told_with_the_next_step():
    async with listened_to() as (worker, client, told):
        await complete(client, list(range(40)))
        await until(lambda: told.hashes)
        assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
        await asyncio.sleep(0.05)
        assert not any(isinstance(event, AllBlocksCleared) for _, batch in told.batches for event in batch)
        await complete(client, list(range(40)))
        await until(lambda: 0 in told.hashes)
        after = told.hashes[told.hashes.index(0) + 1 :]
        assert set(after) == {name % UINT64 for name in known(worker.engine)}


@pytest.mark.parametrize("wire", ["map", "array"])
async def test_who_subscribes_late_has_everything_repeated(wire):
    async with listened_to(wire=wire, topic="kv-events") as (worker, client, _):
        await complete(client, list(range(40)))
        await complete(client, list(range(80)))
        [source] = read_sources(worker.publisher.sources(), worker.url).values()
        async with following(told := Told(), QUICK) as late:
            late.follow(ID, source)
            await until(lambda: len(told.hashes) == len(known(worker.engine)))
            assert told.losses == []


async def test_where_it_publishes_is_said_as_a_real_server_says_it():
    async with listened_to(topic="kv-events") as (worker, client, _):
        mine = (await client.get("/kv_event_sources")).json()
        assert mine["0"].keys() == recorded("0.32.0")["sources"]["0"].keys()
        assert mine["0"]["endpoint"] != mine["0"]["replay_endpoint"]
    async with (
        simulated_worker(SimulatorConfig(profile="instant")) as worker,
        httpx.AsyncClient(base_url=worker.url, verify=False) as client,
    ):
        assert (await client.get("/kv_event_sources")).json() == {}


async def test_a_worker_whose_event_port_is_taken_does_not_start():
    async with listened_to() as (worker, _, _told):
        taken = worker.publisher.sources()["0"]["endpoint"]
        config = SimulatorConfig(profile="instant", kv_events=KvEventsConfig(endpoint=taken))
        with pytest.raises(OSError, match="Address already in use"):
            async with simulated_worker(config):
                pass


def options(*given):
    return read_config(parser().parse_args(given))


def test_events_are_published_where_the_command_line_says_so():
    assert options().kv_events is None
    assert options("--kv-events").kv_events == KvEventsConfig()
    assert options("--kv-events", "--kv-events-wire", "array").kv_events == KvEventsConfig(wire="array")
    told = '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:7000","topic":"kv"}'
    wanted = KvEventsConfig("tcp://*:7000", None, "kv", wire="array")
    assert options("--kv-events-config", told, "--kv-events-wire", "array").kv_events == wanted
    assert options("--kv-events-config", '{"enable_kv_cache_events":false}').kv_events is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "--kv-events-config is not JSON"),
        ("[]", "--kv-events-config is not a JSON object"),
        ('{"enable_kv_cache_events":true,"end_point":"x"}', "unknown end_point"),
        ('{"enable_kv_cache_events":true,"endpoint":"udp://x:1"}', "'udp://x:1' is not tcp://HOST:PORT"),
    ],
)
def test_what_is_wrong_with_the_option_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        options("--kv-events-config", given)


def test_each_worker_of_a_process_has_ports_of_its_own():
    config = KvEventsConfig("tcp://*:7000", "tcp://*:7100")
    assert config.next_to(0) == config
    assert config.next_to(2) == KvEventsConfig("tcp://*:7002", "tcp://*:7102")
    assert KvEventsConfig().next_to(2) == KvEventsConfig()
