import asyncio

import pytest

from policies.model import Reading, Stage
from router.config.schema import Config
from router.control.pools import Pools, facts
from router.control.scheduler_factory import make_scheduler
from router.edge.errors import BadRequest, NoSuchModel, Unavailable
from workers.fleet.worker import Scrape, State, Worker, WorkerChanged, WorkerJoined, WorkerLeft, WorkerSpec
from workers.http.upstream import Upstream


def worker(url="http://a:1", model="tiny", *, lines=(), rank=0, state=State.UP, **spec):
    names = frozenset({model, *lines} if model else lines)
    return Worker(WorkerSpec(url=url, **spec), rank=rank, state=state, model=model, lines=names)


@pytest.fixture
async def pools():
    rested = []
    made = Pools(
        make_scheduler=lambda: make_scheduler(Config.load(env={})),
        connect=Upstream,
        rested=rested.append,
        aliases={"gpt": "tiny", "lost": "nowhere"},
    )
    made.rested = rested
    yield made
    await made.aclose()


def join(pools, *workers):
    for one in workers:
        pools.on_fleet(WorkerJoined(one))


async def test_before_any_worker_was_reached_nothing_is_known(pools):
    for model in (None, "tiny"):
        with pytest.raises(Unavailable):
            pools.route(model)
    join(pools, worker(model=None, state=State.STARTING))
    with pytest.raises(Unavailable):
        pools.route("tiny")


@pytest.mark.parametrize("model", [None, ""])
async def test_no_model_means_the_only_one(pools, model):
    join(pools, worker(lines=["sql"]))
    assert (pools.route(model).line, pools.route(model).rewrite) == ("tiny", None)
    join(pools, worker("http://b:1", "other"))
    with pytest.raises(BadRequest, match="other, tiny"):
        pools.route(model)


async def test_names_lead_to_their_pool_and_only_our_own_alias_is_rewritten(pools):
    join(pools, worker(lines=["sql", "tiny-alias"]))
    pool = pools.by_model["tiny"]
    for name, line, rewrite in (
        ("tiny", "tiny", None),
        ("sql", "sql", None),
        ("tiny-alias", "tiny-alias", None),
        ("gpt", "tiny", "tiny"),
    ):
        route = pools.route(name)
        assert (route.pool, route.line, route.rewrite) == (pool, line, rewrite)
    assert pools.names() == ["gpt", "sql", "tiny", "tiny-alias"]
    for unknown in ("nope", "lost"):
        with pytest.raises(
            NoSuchModel, match=f"The model `{unknown}` does not exist. Valid aliases: gpt, sql, tiny"
        ):
            pools.route(unknown)


async def test_a_worker_is_in_the_pool_of_its_model_as_soon_as_that_is_known(pools):
    unknown = worker(model=None, state=State.STARTING)
    join(pools, unknown)
    assert pools.by_model == {}
    pools.on_fleet(WorkerChanged(worker()))
    assert list(pools.by_model) == ["tiny"]
    assert [member.worker.id for member in pools.usable("tiny")] == ["http://a:1"]


async def test_only_routable_workers_that_have_the_line_are_usable(pools):
    join(pools, worker(lines=["sql"]), worker("http://b:1"), worker("http://c:1", lines=["sql"], state=State.DOWN))
    assert [member.worker.id for member in pools.usable("sql")] == ["http://a:1"]
    assert [member.worker.id for member in pools.usable("tiny")] == ["http://a:1", "http://b:1"]


async def test_a_pool_is_forgotten_with_its_last_worker(pools):
    join(pools, worker(), worker("http://b:1"))
    pools.on_fleet(WorkerLeft("http://a:1", "removed"))
    assert list(pools.by_model) == ["tiny"]
    pools.on_fleet(WorkerLeft("http://b:1", "removed"))
    assert (pools.by_model, pools.members, pools._upstreams) == ({}, {}, {})
    pools.on_fleet(WorkerLeft("http://b:1", "again"))


async def test_ranks_share_the_connections_to_their_server(pools):
    join(pools, *(worker(rank=rank, data_parallel=2, api_key="k") for rank in (0, 1)))
    first, second = pools.members.values()
    assert first.upstream is second.upstream
    assert dict(second.headers) == {b"authorization": b"Bearer k", b"x-data-parallel-rank": b"1"}
    pools.on_fleet(WorkerLeft(first.worker.id, "restarted"))
    assert list(pools._upstreams) == ["http://a:1"]
    pools.on_fleet(WorkerLeft(second.worker.id, "restarted"))
    await asyncio.sleep(0)
    assert pools._upstreams == {}


async def test_a_worker_that_drains_is_let_go_when_its_last_request_has_ended(pools):
    join(pools, worker())
    [member] = pools.members.values()
    with pools.busy(member):
        pools.on_fleet(WorkerChanged(worker(state=State.DRAINING)))
        assert pools.rested == []
        with pytest.raises(RuntimeError), pools.busy(member):
            raise RuntimeError
        assert pools.rested == []
    assert pools.rested == ["http://a:1"]
    assert member.open == 0


async def test_a_stale_reading_is_no_reading():
    scrape = Scrape(at=5.0, running=3, waiting=2, kv_usage=0.1, kv_tokens=1000)
    spec = WorkerSpec(url="http://a:1", roles=frozenset({"decode"}), max_num_seqs=7)
    fresh = Worker(spec, model="tiny", lines=frozenset({"tiny"}), state=State.SUSPECT, scrape=scrape, stale=False)
    seen = facts(fresh)
    assert (seen.reading, seen.kv_tokens, seen.slots) == (Reading(5.0, 3, 2), 1000, 7)
    assert (seen.usable, seen.suspect, seen.stages) == (True, True, frozenset({Stage.DECODE}))
    stale = facts(Worker(spec, model="tiny", lines=frozenset({"tiny"}), scrape=scrape, stale=True))
    assert (stale.reading, stale.kv_tokens, stale.usable) == (None, 1000, False)


async def test_what_blocks_are_worth_to_whom_is_told_to_the_scheduler():
    scrape = Scrape(at=5.0, running=0, waiting=0, kv_usage=0.0, block_size=32)
    spec = WorkerSpec(url="http://a:1")
    lines = frozenset({"tiny", "sql"})
    seen = facts(Worker(spec, model="tiny", lines=lines, adapters=frozenset({"sql"}), scrape=scrape))
    assert (seen.adapters, seen.block_size) == (frozenset({"sql"}), 32)
    assert facts(Worker(spec, model="tiny", lines=lines)).block_size is None


async def test_the_prefix_index_of_a_worker_is_that_of_its_pool(pools):
    join(pools, worker(), worker("http://b:1", model=None, state=State.STARTING))
    assert pools.prefixes("http://a:1") is pools.by_model["tiny"].scheduler.prefixes
    assert pools.prefixes("http://b:1") is None
    assert pools.prefixes("http://c:1") is None
