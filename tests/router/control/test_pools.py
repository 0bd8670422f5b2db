import math
from dataclasses import replace
from pathlib import Path

import pytest

from policies.model import Reading, Stage
from router.config.schema import Config
from router.control.pools import Pools, facts
from router.control.scheduler_factory import make_scheduler
from router.port import Reject, RejectKind, Route, RouteTable
from workers.fleet.worker import Scrape, State, Worker, WorkerChanged, WorkerJoined, WorkerLeft, WorkerSpec
from workers.http.tls import TlsFiles


def worker(url="http://a:1", model="tiny", *, served_names=(), rank=0, state=State.UP, **spec):
    names = frozenset({model, *served_names} if model else served_names)
    return Worker(WorkerSpec(url=url, **spec), rank=rank, state=state, model=model, served_names=names)


@pytest.fixture
async def pools():
    rested = []
    made = Pools(
        make_scheduler=lambda: make_scheduler(Config.load(env={})),
        rested=rested.append,
        aliases={"gpt": "tiny", "lost": "nowhere"},
    )
    made.rested = rested
    yield made
    made.close()


def join(pools, *workers):
    for one in workers:
        pools.on_fleet(WorkerJoined(one))


def refused(pools, model):
    found = pools.routes().find(model)
    assert isinstance(found, Reject)
    return found


async def test_before_any_worker_was_reached_nothing_is_known(pools):
    for model in (None, "tiny"):
        assert refused(pools, model).kind is RejectKind.UNAVAILABLE
    join(pools, worker(model=None, state=State.STARTING))
    assert refused(pools, "tiny").kind is RejectKind.UNAVAILABLE


@pytest.mark.parametrize("model", [None, ""])
async def test_no_model_means_the_only_one(pools, model):
    join(pools, worker(served_names=["sql"]))
    assert pools.routes().find(model) == Route("tiny", "tiny")
    join(pools, worker("http://b:1", "other"))
    missing = refused(pools, model)
    assert (missing.kind, missing.param) == (RejectKind.BAD_REQUEST, "model")
    assert "other, tiny" in missing.message


async def test_names_lead_to_their_pool_and_only_our_own_alias_is_rewritten(pools):
    join(pools, worker(served_names=["sql", "tiny-alias"]))
    table = pools.routes()
    for name, served_name, rewrite in (
        ("tiny", "tiny", None),
        ("sql", "sql", None),
        ("tiny-alias", "tiny-alias", None),
        ("gpt", "tiny", "tiny"),
    ):
        assert table.find(name) == Route("tiny", served_name, rewrite)
        assert pools.find(served_name) is pools.by_model["tiny"]
    assert sorted(table.names) == ["gpt", "sql", "tiny", "tiny-alias"]
    for unknown in ("nope", "lost"):
        message = f"The model `{unknown}` does not exist. Valid aliases: gpt, sql, tiny, tiny-alias."
        assert refused(pools, unknown) == Reject(RejectKind.NO_MODEL, message, param="model")


async def test_the_route_table_is_made_anew_only_when_something_in_it_has_changed(pools):
    join(pools, worker())
    table = pools.routes()
    scrape = Scrape(at=5.0, running=3, waiting=2, kv_usage=0.1)
    pools.on_fleet(WorkerChanged(replace(worker(), scrape=scrape)))
    assert pools.routes() is table
    pools.on_fleet(WorkerChanged(worker(state=State.DOWN)))
    assert not pools.routes().workers["http://a:1"].routable
    assert table.workers["http://a:1"].routable
    pools.on_fleet(WorkerChanged(worker(served_names=["sql"])))
    assert "sql" in pools.routes().names
    pools.configure({"new": "sql"}, keys_needed=True)
    assert pools.routes().keys_needed
    assert pools.routes().find("new") == Route("tiny", "sql", "sql")
    pools.on_fleet(WorkerLeft("http://a:1", "removed"))
    assert pools.routes() == RouteTable(keys_needed=True)


async def test_a_worker_is_in_the_pool_of_its_model_as_soon_as_that_is_known(pools):
    unknown = worker(model=None, state=State.STARTING)
    join(pools, unknown)
    assert pools.by_model == {}
    pools.on_fleet(WorkerChanged(worker()))
    assert list(pools.by_model) == ["tiny"]
    assert [member.worker.id for member in pools.usable("tiny")] == ["http://a:1"]


async def test_only_routable_workers_that_have_the_line_are_usable(pools):
    join(
        pools,
        worker(served_names=["sql"]),
        worker("http://b:1"),
        worker("http://c:1", served_names=["sql"], state=State.DOWN),
    )
    assert [member.worker.id for member in pools.usable("sql")] == ["http://a:1"]
    assert [member.worker.id for member in pools.usable("tiny")] == ["http://a:1", "http://b:1"]


async def test_a_pool_is_forgotten_with_its_last_worker(pools):
    join(pools, worker(), worker("http://b:1"))
    pools.on_fleet(WorkerLeft("http://a:1", "removed"))
    assert list(pools.by_model) == ["tiny"]
    pools.on_fleet(WorkerLeft("http://b:1", "removed"))
    assert (pools.by_model, pools.members) == ({}, {})
    pools.on_fleet(WorkerLeft("http://b:1", "again"))


async def test_a_workers_key_and_rank_stand_in_the_headers_of_all_that_is_sent_to_it(pools):
    join(pools, worker(rank=1, data_parallel=2, api_key="k"))
    [address] = pools.routes().workers.values()
    assert (address.id, address.url) == ("http://a:1#1", "http://a:1")
    assert dict(address.headers) == {b"authorization": b"Bearer k", b"x-data-parallel-rank": b"1"}


async def test_a_worker_that_drains_is_let_go_when_its_last_request_has_ended(pools):
    join(pools, worker())
    [member] = pools.members.values()
    member.open = 2
    pools.on_fleet(WorkerChanged(worker(state=State.DRAINING)))
    pools.vacate(member)
    assert pools.rested == []
    pools.vacate(member)
    assert pools.rested == ["http://a:1"]


async def test_a_stale_reading_is_no_reading():
    scrape = Scrape(at=5.0, running=3, waiting=2, kv_usage=0.1, kv_tokens=1000)
    spec = WorkerSpec(url="http://a:1", roles=frozenset({"decode"}), max_num_seqs=7)
    fresh = Worker(
        spec, model="tiny", served_names=frozenset({"tiny"}), state=State.SUSPECT, scrape=scrape, stale=False
    )
    seen = facts(fresh)
    assert (seen.reading, seen.kv_tokens, seen.slots) == (Reading(5.0, 3, 2), 1000, 7)
    assert (seen.usable, seen.suspect, seen.stages) == (True, True, frozenset({Stage.DECODE}))
    stale = facts(Worker(spec, model="tiny", served_names=frozenset({"tiny"}), scrape=scrape, stale=True))
    assert (stale.reading, stale.kv_tokens, stale.usable) == (None, 1000, False)


async def test_what_blocks_are_worth_to_whom_is_told_to_the_scheduler():
    scrape = Scrape(at=5.0, running=0, waiting=0, kv_usage=0.0, block_size=32)
    spec = WorkerSpec(url="http://a:1")
    lines = frozenset({"tiny", "sql"})
    seen = facts(Worker(spec, model="tiny", served_names=lines, adapters=frozenset({"sql"}), scrape=scrape))
    assert (seen.adapters, seen.block_size) == (frozenset({"sql"}), 32)
    assert facts(Worker(spec, model="tiny", served_names=lines)).block_size is None


async def test_the_prefix_index_of_a_worker_is_that_of_its_pool(pools):
    join(pools, worker(), worker("http://b:1", model=None, state=State.STARTING))
    assert pools.prefixes("http://a:1") is pools.by_model["tiny"].scheduler.prefixes
    assert pools.prefixes("http://b:1") is None
    assert pools.prefixes("http://c:1") is None


async def test_a_name_that_a_worker_is_to_serve_is_not_ready_and_any_other_does_not_exist(pools):
    loading = replace(
        worker("http://b:1", model=None, state=State.STARTING), expected=frozenset({"large", "nowhere"})
    )
    join(pools, loading)
    assert (refused(pools, "large").kind, refused(pools, "large").retry_after_s) == (RejectKind.UNAVAILABLE, 5)
    join(pools, worker())
    for name in ("large", "lost"):  # `lost` is an alias of `nowhere`
        found = refused(pools, name)
        assert (found.kind, f"`{name}` is not ready" in found.message) == (RejectKind.UNAVAILABLE, True)
    assert refused(pools, "typo").kind is RejectKind.NO_MODEL
    pools.on_fleet(WorkerChanged(replace(loading, expected=frozenset())))
    assert refused(pools, "large").kind is RejectKind.NO_MODEL


async def test_a_rotated_key_and_a_renewed_certificate_are_in_the_next_table(pools):
    join(pools, worker(api_key="old"))
    [before] = pools.routes().workers.values()
    changed = worker(api_key="new", tls=TlsFiles(Path("/ca.pem")), host_name="w.example")
    pools.on_fleet(WorkerChanged(changed))
    [after] = pools.routes().workers.values()
    assert before.headers == ((b"authorization", b"Bearer old"),)
    assert after.headers == ((b"authorization", b"Bearer new"),)
    assert (after.tls, after.host_name) == (TlsFiles(Path("/ca.pem")), "w.example")


async def test_how_long_silence_is_borne_is_in_the_table(pools):
    join(pools, worker())
    [before] = pools.routes().workers.values()
    pools.on_fleet(WorkerChanged(replace(worker(), silence_limit_s=5.0)))
    [after] = pools.routes().workers.values()
    assert (before.silence_limit_s, after.silence_limit_s) == (math.inf, 5.0)
