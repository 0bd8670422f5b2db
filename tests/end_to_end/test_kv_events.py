"""Workers that publish KV events: what they will hit is known before it is sent, and nothing depends on it."""

import asyncio
import logging
from contextlib import asynccontextmanager
from random import Random

import httpx
import pytest
import zmq
import zmq.asyncio
from gateway_under_test import MODEL, running_fleet, running_gateway, until

from workers.simulator.kv_publisher import KvEventsConfig
from workers.simulator.server import SimulatorConfig, simulated_worker

TEXT = "/v1/completions"
REPORTING = {"kv_events": KvEventsConfig()}
SMALL = {**REPORTING, "kv_blocks": 64, "max_model_len": 800}
CHANCE = Random(3)
UINT64 = (1 << 64) - 1
KEY = "admin-key-0123456789"


def ids(count, seed=None):
    chance = CHANCE if seed is None else Random(seed)
    return [chance.randrange(1000, 30_000) for _ in range(count)]


async def ask(http, prompt, tokens=2, **fields):
    answer = await http.post(
        TEXT, json={"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **fields}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def index_of(gateway, url):
    """How the cache of the worker behind a URL is known."""
    [worker] = [m.worker.id for m in gateway.gateway.pools.members.values() if m.worker.spec.url == url]
    rows = gateway.series("fairlead_worker_prefix_index")
    [index] = [labels["index"] for labels, value in rows if labels["worker"] == worker and value == 1]
    return index


async def known(gateway, *workers, index="exact"):
    """Wait until the caches of these workers are known so."""
    for worker in workers:
        await until(lambda url=worker.url: index_of(gateway, url) == index, lambda: index)


async def heard(gateway, worker):
    """Wait until the index holds the same blocks as the worker's cache."""
    blocks = gateway.gateway.pools.by_model[MODEL].scheduler.prefixes.reports.blocks
    names = worker.engine._scheduler.pool._block_of

    def agree():
        return blocks._caches[worker.url].blocks.keys() == {name & UINT64 for name in names}

    await until(agree)


def foretold(gateway):
    """For each finished request: tokens expected in the worker's cache, and tokens found there."""
    return [(line["matched_tokens"], line["cached_tokens"]) for line in gateway.lines()]


def kinds(gateway, name):
    counted = {}
    for labels, value in gateway.series(name):
        counted[labels["kind"]] = counted.get(labels["kind"], 0) + value
    return counted


async def test_what_chats_that_grow_and_are_evicted_will_hit_is_foretold_to_the_token():
    async with running_fleet(2, SMALL) as fleet:
        await known(fleet.gateway, *fleet.workers)
        chance, chats = Random(1), [ids(40) for _ in range(6)]
        for _ in range(90):
            chat = chance.choice(chats)
            await ask(fleet.http, chat, tokens=chance.randrange(1, 20))
            chat += ids(chance.randrange(1, 60))
            del chat[500:]
            for worker in fleet.workers:
                await heard(fleet.gateway, worker)
        pairs = foretold(fleet.gateway)
        assert [expected for expected, _ in pairs] == [found for _, found in pairs]
        assert sum(found > 0 for _, found in pairs) > 30
        counts = kinds(fleet.gateway, "fairlead_kv_event_blocks_total")
        assert counts["stored"] > 200
        assert counts["removed"] > 20
        assert counts["unknown_parent"] == counts["passed_over"] == 0
        right = [
            (labels["index"], labels["result"], value)
            for labels, value in fleet.gateway.series("fairlead_cache_predictions_total")
            if value
        ]
        assert right == [("exact", "right", 90)]


@pytest.mark.parametrize("wire", ["map", "array"])
async def test_what_others_have_brought_to_a_worker_is_hit_through_the_gateway(wire):
    config = SimulatorConfig(model=MODEL, profile="instant", kv_events=KvEventsConfig(wire=wire))
    async with simulated_worker(config) as first, simulated_worker(config) as second:
        prompt = ids(200)
        async with httpx.AsyncClient(base_url=second.url) as direct:
            await ask(direct, prompt)
        workers = [{"url": one.url} for one in (first, second)]
        async with running_gateway(workers) as gateway:  # it starts late, and has it all repeated
            await known(gateway, first, second)
            await heard(gateway, second)
            await ask(gateway.http, [*prompt, 7])
            assert gateway.placements() == [second.url]
            assert foretold(gateway) == [(192, 192)]


async def test_a_salt_and_an_adapter_have_caches_of_their_own():
    async with running_fleet(1, {**REPORTING, "loras": ("sql",)}) as fleet:
        [worker] = fleet.workers
        await known(fleet.gateway, worker)
        prompt = ids(100)
        for fields in ({}, {"cache_salt": "pepper"}, {"model": "sql"}, {"cache_salt": "pepper"}, {"model": "sql"}):
            await ask(fleet.http, prompt, **fields)
            await heard(fleet.gateway, worker)
        assert foretold(fleet.gateway) == [(0, 0), (0, 0), (0, 0), (96, 96), (96, 96)]


async def test_a_cache_that_was_emptied_is_known_to_be_empty():
    async with running_fleet(1, REPORTING) as fleet:
        [worker] = fleet.workers
        await known(fleet.gateway, worker)
        prompt = ids(100)
        await ask(fleet.http, prompt)
        async with httpx.AsyncClient(base_url=worker.url) as direct:
            assert (await direct.post("/reset_prefix_cache")).json()["success"]
        await ask(fleet.http, ids(50))  # it tells of the past with its next step
        await heard(fleet.gateway, worker)
        await ask(fleet.http, prompt)
        assert foretold(fleet.gateway)[-1] == (0, 0)
        assert index_of(fleet.gateway, worker.url) == "exact"


async def test_who_begins_too_late_to_know_everything_knows_a_part():
    events = KvEventsConfig(buffer_steps=2)
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant", kv_events=events)) as worker:
        old = ids(100)
        async with httpx.AsyncClient(base_url=worker.url) as direct:
            for prompt in (old, ids(40), ids(40), ids(40)):
                await ask(direct, prompt)
        async with running_gateway([{"url": worker.url}]) as gateway:
            await known(gateway, worker, index="partial")
            new = ids(100)
            for prompt in (old, old, new, new):
                await ask(gateway.http, prompt)
            assert foretold(gateway) == [(0, 96), (96, 96), (0, 0), (96, 96)]
            assert kinds(gateway, "fairlead_kv_event_trouble_total")["lost"] == 1


async def test_without_events_all_is_predicted_as_ever():
    off = {"health": {"probe_every_s": 0.2, "scrape_every_s": 0.5, "stale_after_s": 5, "kv_events": "off"}}
    async with (
        running_fleet(1, REPORTING, **off) as fleet,
        running_fleet(1) as silent,
        running_fleet(1, REPORTING, {"kv_events": "off"}) as deaf,
    ):
        for one in (fleet, silent, deaf):
            prompt = ids(100)
            for _ in range(2):
                await ask(one.http, prompt)
            assert index_of(one.gateway, one.workers[0].url) == "predicted"
            assert foretold(one.gateway) == [(0, 0), (96, 96)]
            assert one.gateway.series("fairlead_kv_event_batches_total") == []


async def test_a_new_process_at_the_same_place_begins_with_an_empty_cache():
    config = SimulatorConfig(model=MODEL, profile="instant", kv_events=KvEventsConfig())
    async with simulated_worker(config) as first:
        port, prompt = int(first.url.rpartition(":")[2]), ids(100)
        async with running_gateway([{"url": first.url}]) as gateway:
            await known(gateway, first)
            await ask(gateway.http, prompt)
            await heard(gateway, first)
            await first.stop()
            again = SimulatorConfig(model=MODEL, profile="instant", kv_events=KvEventsConfig(), port=port)
            async with simulated_worker(again) as second:
                await until(lambda: any("@1" in m for m in gateway.gateway.pools.members))
                await known(gateway, second)
                for _ in range(2):
                    await ask(gateway.http, prompt)
                    await asyncio.sleep(0.05)
                assert foretold(gateway)[-2:] == [(0, 0), (96, 96)]


# -- what is wrong with events is said, and requests go on


async def test_an_endpoint_that_answers_nothing_leaves_predictions(caplog):
    caplog.set_level(logging.INFO)
    no_engine = {"endpoint": "tcp://127.0.0.1:9", "replay_endpoint": "tcp://127.0.0.1:9"}
    async with running_fleet(1, REPORTING, {"kv_events": no_engine}) as fleet:
        prompt = ids(100)
        for _ in range(2):
            await ask(fleet.http, prompt)
        assert foretold(fleet.gateway) == [(0, 0), (96, 96)]
        await until(lambda: "cannot listen to tcp://127.0.0.1:9" in caplog.text)
        assert index_of(fleet.gateway, fleet.workers[0].url) == "predicted"


@asynccontextmanager
async def told_of_another(other, **own):
    """A gateway that takes the events of one worker for those of another one."""
    async with simulated_worker(SimulatorConfig(model=MODEL, profile="instant", **other)) as elsewhere:
        sources = elsewhere.publisher.sources()["0"]
        events = {name: sources[name] for name in ("endpoint", "replay_endpoint")}
        async with running_fleet(1, own, {"kv_events": events}) as fleet:
            await known(fleet.gateway, fleet.workers[0])
            async with httpx.AsyncClient(base_url=elsewhere.url) as direct:
                yield fleet, direct


async def test_blocks_of_another_size_are_not_believed(caplog):
    caplog.set_level(logging.INFO)
    async with told_of_another({**REPORTING, "block_size": 32}) as (fleet, direct):
        [worker] = fleet.workers
        await ask(direct, ids(100))
        await known(fleet.gateway, worker, index="predicted")
        prompt = ids(100)
        for _ in range(2):
            await ask(fleet.http, prompt)
        assert foretold(fleet.gateway) == [(0, 0), (96, 96)]
        why = "its events have blocks of 32 tokens, its metrics say 16"
        await until(lambda: f"its KV events are not believed: {why}; its cache is predicted" in caplog.text)


async def test_the_events_of_another_model_are_not_believed_for_long(caplog):
    caplog.set_level(logging.INFO)
    async with told_of_another(REPORTING) as (fleet, direct):
        [worker] = fleet.workers
        prompts = [ids(100) for _ in range(26)]
        for prompt in prompts:
            await ask(direct, prompt)
        for prompt in prompts:
            await ask(fleet.http, prompt)  # what is foretold here lies elsewhere
        await known(fleet.gateway, worker, index="predicted")
        await ask(fleet.http, prompts[0])
        await ask(fleet.http, prompts[-1])
        assert foretold(fleet.gateway)[:24] == [(96, 0)] * 24
        assert foretold(fleet.gateway)[-1] == (96, 96)
        await until(lambda: "answers had other hits than reported; its cache is predicted" in caplog.text)
        assert caplog.text.count("not believed") == 1


async def test_messages_that_cannot_be_read_or_be_true_change_nothing_for_requests(caplog):
    caplog.set_level(logging.INFO)
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.PUB)
    socket.linger = 0
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    try:
        async with running_fleet(1, worker={"kv_events": f"tcp://127.0.0.1:{port}"}) as fleet:
            [worker] = fleet.workers

            async def send_until_known(index, *frames):
                async with asyncio.timeout(20):
                    while index_of(fleet.gateway, worker.url) != index:
                        await socket.send_multipart(frames)
                        await asyncio.sleep(0.05)

            await send_until_known("partial", b"", bytes(8), b"\xc1 this is no msgpack")
            prompt = ids(100)
            for _ in range(2):
                await ask(fleet.http, prompt)
            assert foretold(fleet.gateway) == [(0, 0), (96, 96)]
            assert "cannot be read" in caplog.text
    finally:
        socket.close()
        context.term()


async def test_the_operator_sees_how_each_cache_is_known():
    async with running_fleet(2, REPORTING, admin={"key": KEY}) as fleet:
        await known(fleet.gateway, *fleet.workers)
        for worker in fleet.workers:
            async with httpx.AsyncClient(base_url=worker.url) as direct:
                await ask(direct, ids(100))
            await heard(fleet.gateway, worker)
        answer = await fleet.http.get("/admin/workers", headers={"authorization": f"Bearer {KEY}"})
        seen = [
            (row["prefix_index"], row["prefix_index_why"], row["prefix_held_tokens"])
            for row in answer.json()["workers"]
        ]
        assert seen == [("exact", None, 96)] * 2
        blocks = [value for _, value in fleet.gateway.series("fairlead_worker_kv_blocks")]
        assert blocks == [6, 6]
