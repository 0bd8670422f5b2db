"""The pages of a large fleet take little of the event loop: each thing is asked for once."""

import asyncio
import json

from router.config.schema import Config
from router.control.pages.admin import worker_rows
from router.control.pages.json_page import json_page
from router.control.pages.status import model_cards
from router.control.pools import Pools
from router.control.scheduler_factory import make_scheduler
from workers.fleet.worker import State, Worker, WorkerJoined, WorkerSpec

WORKERS, ADAPTERS = 60, 50


def fleet():
    """Pools with many workers, which all serve the same adapters."""
    adapters = frozenset(f"adapter-{number}" for number in range(ADAPTERS))
    pools = Pools(lambda: make_scheduler(Config.load(env={})), lambda _: None, {})
    for number in range(WORKERS):
        spec = WorkerSpec(f"http://w{number}:1")
        names = adapters | {"tiny"}
        worker = Worker(spec, state=State.UP, model="tiny", served_names=names, adapters=adapters)
        pools.on_fleet(WorkerJoined(worker))
    return pools


async def test_the_workers_of_a_pool_are_listed_from_one_snapshot_while_the_loop_turns(monkeypatch):
    pools = fleet()
    scheduler = pools.by_model["tiny"].scheduler
    snapshots = turns = 0
    snapshot = scheduler.snapshot

    def counted():
        nonlocal snapshots
        snapshots += 1
        return snapshot()

    monkeypatch.setattr(scheduler, "snapshot", counted)
    listing = asyncio.create_task(worker_rows(pools))
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
    rows = await listing
    assert [row["url"] for row in rows] == [f"http://w{number}:1" for number in range(WORKERS)]
    assert {row["prefill_owed_tokens"] for row in rows} == {0}
    assert snapshots == 1
    assert turns >= 3


async def test_a_model_has_one_card_however_many_workers_serve_it():
    cards = model_cards(fleet(), 0)
    assert len(cards) == 1 + ADAPTERS
    assert {card["parent"] for card in cards} == {None, "tiny"}


def test_a_page_of_json_says_what_it_was_given_whatever_clients_put_into_it():
    content = {"a": [1, 2.5, None, "ü"], "client": "\ud800", "number": 2**70, "why": ValueError("x")}
    assert json.loads(json_page(content).body) == {**content, "why": "x"}
    assert json.loads(json_page({"a": "ü"}).body) == {"a": "ü"}
