"""The fleet follows the caches of its workers: found, left, learned anew with each epoch, and never in the way."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

import httpx
import pytest

from tests.workers.kv_events.fake_engine import QUICK, Told, fake_engine, until
from workers.fleet.fleet import Fleet, FleetSettings
from workers.fleet.poller import PollerSettings
from workers.fleet.worker import WorkerLeft, WorkerSpec
from workers.simulator.kv_publisher import KvEventsConfig
from workers.simulator.server import SimulatedWorker, SimulatorConfig, simulated_worker

SETTINGS = FleetSettings(
    poller=PollerSettings(probe_every_s=0.1, retry_first_s=0.05, scrape_every_s=0.1, models_every_s=0.2),
    kv_events=QUICK,
)


def config(**changes):
    given = {"profile": "instant", "max_model_len": 1024, "block_size": 16}
    return SimulatorConfig(**{**given, "kv_events": KvEventsConfig(), **changes})


@contextlib.asynccontextmanager
async def fleet_of(*specs, settings=SETTINGS):
    told, left = Told(), []

    def on_event(event):
        if isinstance(event, WorkerLeft):
            left.append(event.id)

    fleet = Fleet(settings, time.monotonic, on_event, kv_listener=told)
    for spec in specs:
        fleet.add(spec)
    await fleet.start()
    try:
        yield fleet, told, left
    finally:
        await fleet.aclose()


async def ask(url, words, **more):
    body = {"prompt": " ".join(str(word) for word in words), "max_tokens": 2, **more}
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        answer = await client.post(f"{url}/v1/completions", json=body)
        answer.raise_for_status()
        return answer.json()


async def test_a_worker_that_publishes_is_followed_by_itself():
    async with simulated_worker(config()) as worker, fleet_of(WorkerSpec(worker.url)) as (fleet, told, _):
        await until(lambda: len(told.calls) == 2)
        assert told.calls == [("following", worker.url), ("caught up", worker.url)]
        await ask(worker.url, range(100))
        await until(lambda: told.hashes)
        assert {worker_id for worker_id, _ in told.batches} == {worker.url}
        assert fleet.kv_counts()[worker.url].blocks == len(told.hashes)
        assert told.losses == []


async def test_a_fleet_that_comes_late_knows_what_is_there():
    async with simulated_worker(config()) as worker:
        for start in (0, 500, 1000):
            await ask(worker.url, range(start, start + 100))
        async with fleet_of(WorkerSpec(worker.url)) as (_, told, _left):
            known = worker.engine._scheduler.pool._block_of
            await until(lambda: len(told.hashes) == len(known))
            assert set(told.hashes) == {name % (1 << 64) for name in known}
            assert told.losses == []


async def test_a_worker_that_is_removed_is_left():
    async with simulated_worker(config()) as worker, fleet_of(WorkerSpec(worker.url)) as (fleet, told, left):
        await until(lambda: told.calls)
        fleet.remove(worker.url)
        fleet.release(worker.url)
        await until(lambda: left)
        assert dict(fleet.kv_counts()) == {}
        before = list(told.calls)
        await ask(worker.url, range(100))
        await asyncio.sleep(0.1)
        assert told.calls == before


async def test_a_process_that_restarted_is_another_worker_and_learned_from_its_beginning():
    first = SimulatedWorker(config())
    await first.start()
    async with fleet_of(WorkerSpec(first.url)) as (fleet, told, left):
        await until(lambda: told.calls)
        await ask(first.url, range(100))
        await until(lambda: told.hashes)
        url, old = first.url, set(told.hashes)
        await first.stop()
        second = SimulatedWorker(config(port=first.port, seed=1))
        await second.start()
        try:
            await ask(second.url, range(900, 1000))
            await until(lambda: ("following", f"{url}@1") in told.calls)
            await until(lambda: [w for w, _ in told.batches if w == f"{url}@1"])
            assert left == [url]
            new = {h for w, batch in told.batches if w == f"{url}@1" for event in batch for h in event.hashes}
            assert new
            assert not new & old
            assert list(fleet.kv_counts()) == [f"{url}@1"]
        finally:
            await second.stop()


async def test_endpoints_that_an_operator_gives_win_over_those_that_the_server_names():
    async with fake_engine() as engine, simulated_worker(config()) as worker:
        engine.make({"type": "AllBlocksCleared"})
        spec = WorkerSpec(worker.url, kv_events=(engine.source,))
        async with fleet_of(spec) as (_, told, _left):
            await until(lambda: told.hashes == [0])
            assert "/kv_event_sources" not in {request.path for request in worker.app.received}


async def test_an_operator_may_say_that_a_worker_is_not_followed_and_say_so_later():
    async with simulated_worker(config()) as worker:
        async with fleet_of(WorkerSpec(worker.url, kv_events=())) as (fleet, told, _):
            await until(lambda: fleet.workers()[0].version)
            await asyncio.sleep(0.05)
            assert dict(fleet.kv_counts()) == {}
        async with fleet_of() as (fleet, told, _):
            fleet.apply([WorkerSpec(worker.url)])
            await until(lambda: told.calls)
            fleet.apply([WorkerSpec(worker.url, kv_events=())])
            await until(lambda: told.losses)
            assert dict(fleet.kv_counts()) == {}


async def test_a_server_that_publishes_nothing_or_is_too_old_to_say_is_served_without(caplog):
    silent = config(kv_events=None)
    async with simulated_worker(silent) as worker, fleet_of(WorkerSpec(worker.url)) as (fleet, told, _):
        await until(lambda: fleet.workers()[0].routable and fleet.workers()[0].version)
        await until(lambda: "/kv_event_sources" in {request.path for request in worker.app.received})
        del worker.app._routes["GET"]["/kv_event_sources"]
        worker.app.received.clear()
        await until(lambda: "/kv_event_sources" in {request.path for request in worker.app.received})
        assert told.calls == []
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_nobody_asks_where_nobody_listens():
    async with simulated_worker(config()) as worker:
        fleet = Fleet(SETTINGS, time.monotonic, lambda _: None)
        fleet.add(WorkerSpec(worker.url))
        await fleet.start()
        await until(lambda: fleet.workers()[0].version)
        assert dict(fleet.kv_counts()) == {}
        await fleet.aclose()
        assert "/kv_event_sources" not in {request.path for request in worker.app.received}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"0": {"endpoint": "tcp://*:1"}, "1": {"endpoint": "tcp://*:2"}}, "2 engines with a cache each"),
        ({"0": {"endpoint": "tcp://*:*"}}, "names no port"),
        (["?"], "no JSON object"),
    ],
)
async def test_a_server_whose_caches_cannot_be_followed_is_served_with_a_warning(answer, reason, caplog):
    async with simulated_worker(config(kv_events=None)) as worker:

        async def say(exchange):
            await exchange.json(200, answer)

        worker.app._routes["GET"]["/kv_event_sources"] = say
        async with fleet_of(WorkerSpec(worker.url)) as (fleet, told, _):
            await until(lambda: caplog.records and any(reason in r.getMessage() for r in caplog.records))
            await until(lambda: fleet.workers()[0].routable)
            await ask(worker.url, range(10))
            assert told.calls == []
            assert [r.levelno for r in caplog.records if reason in r.getMessage()] == [logging.WARNING]


async def test_a_server_that_does_not_say_where_is_asked_again_and_warned_of_once(caplog):
    async with simulated_worker(config()) as worker:
        say, refusals = worker.app._routes["GET"]["/kv_event_sources"], []

        async def refuse(exchange):
            refusals.append(exchange)
            worker.app._routes["GET"]["/kv_event_sources"] = refuse if len(refusals) < 3 else say
            await exchange.json(500, {})

        worker.app._routes["GET"]["/kv_event_sources"] = refuse
        seldom = replace(SETTINGS, poller=replace(SETTINGS.poller, models_every_s=600.0))
        async with fleet_of(WorkerSpec(worker.url), settings=seldom) as (_, told, _left):
            await until(lambda: told.calls)
            said = [r.getMessage() for r in caplog.records if "are not followed: HTTP 500" in r.getMessage()]
            assert len(said) == 1


async def test_each_engine_of_a_server_is_followed_as_a_worker_of_its_own():
    async with fake_engine() as one, fake_engine() as other, simulated_worker(config()) as worker:
        one.make({"type": "AllBlocksCleared"})
        other.make({"type": "AllBlocksCleared"})
        spec = WorkerSpec(worker.url, data_parallel=2, kv_events=(one.source, other.source))
        async with fleet_of(spec) as (_, told, _left):
            await until(lambda: len(told.batches) == 2)
            assert {worker_id for worker_id, _ in told.batches} == {f"{worker.url}#0", f"{worker.url}#1"}


async def test_an_endpoint_that_is_dead_does_not_touch_the_worker(caplog):
    async with fake_engine() as gone:
        source = gone.source
    async with (
        simulated_worker(config()) as worker,
        fleet_of(WorkerSpec(worker.url, kv_events=(source,))) as (fleet, told, _),
    ):
        await until(lambda: any("cannot listen to" in r.getMessage() for r in caplog.records))
        await until(lambda: fleet.workers()[0].routable)
        assert (await ask(worker.url, range(10)))["usage"]["completion_tokens"]
        assert told.calls == []
