import asyncio
import re
import time

import pytest
from prometheus_client import CollectorRegistry

from policies.model import (
    AttemptFailure,
    Outcome,
    PrefixKey,
    Reason,
    RequestView,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from router.config.schema import Config
from router.control.dispatcher import Pool
from router.control.scheduler_factory import make_scheduler
from router.observability.gauges import Gauges
from router.observability.loop_delay import LoopDelay
from router.observability.metrics import Metrics
from router.port import Dispatch, Route, RouteTable
from workers.fleet.worker import Exclusion, State, Worker, WorkerChanged, WorkerJoined, WorkerLeft, WorkerSpec


@pytest.fixture
def metrics():
    made = Metrics("1.2.3", max_clients=3, clients={"team": 2.0})
    made.follow_routes(serving("tiny"))
    made.follow(WorkerJoined(worker()))
    return made


def serving(*models, adapters=(), expected=()):
    """A route table with these base models, and adapters of the first one."""
    names = {name: Route(name, name) for name in models} | {name: Route(models[0], name) for name in adapters}
    return RouteTable(models, names, expected=frozenset(expected))


def view(name="r", client="team", **more):
    fields = {"served_name": "tiny", "key": PrefixKey(b"x" * 40), "input_tokens": 11, "expected_output_tokens": 1}
    return RequestView(name, client, **{**fields, "arrived": 0.0, **more})


def dispatched(worker="http://a:1", reason=Reason.HIT, matched=3, waited_s=0.0):
    return Dispatch("tiny", worker, reason=reason, matched_tokens=matched, input_tokens=11, waited_s=waited_s)


def finish(metrics, **more):
    fields = {
        "served_name": "tiny",
        "client": "team",
        "weight": 2.0,
        "outcome": Outcome.COMPLETED,
        "streamed": True,
        "dispatch": dispatched(),
        "ttft_s": 0.1,
        "e2e_s": 1.1,
        "usage": Usage(10, 11, 4),
    }
    metrics.finished(**{**fields, **more})


def value(metrics, name, **labels):
    for found, text in re.findall(
        rf"^fairlead_{name}(?:{{(.*)}})? (\S+)$", metrics.page.now().decode(), re.MULTILINE
    ):
        if all(f'{key}="{wanted}"' in found for key, wanted in labels.items()):
            return float(text)
    return None


def test_every_known_label_set_starts_at_zero(metrics):
    for outcome in Outcome:
        assert value(metrics, "requests_total", model="tiny", outcome=outcome.value) == 0
        assert value(metrics, "client_requests_total", client="team", outcome=outcome.value) == 0
    for reason in Reason:
        assert value(metrics, "decisions_total", model="tiny", reason=reason.value) == 0
    for failure in AttemptFailure:
        assert value(metrics, "attempt_failures_total", worker="http://a:1", reason=failure.value) == 0
    for direction in ("over", "under"):
        assert value(metrics, "mispredicted_cached_tokens_total", model="tiny", direction=direction) == 0
    for result in ("accepted", "refused"):
        assert value(metrics, "config_reloads_total", result=result) == 0
    assert value(metrics, "worker_placements_total", worker="http://a:1") == 0
    for kind in ("input", "output", "cached"):
        assert value(metrics, "tokens_total", model="tiny", kind=kind) == 0
        assert value(metrics, "client_tokens_total", client="team", kind=kind) == 0
    assert value(metrics, "client_service_total", client="team") == 0
    assert value(metrics, "client_queue_wait_seconds_count", client="team") == 0
    assert value(metrics, "client_weight", client="team") == 2
    assert value(metrics, "time_to_first_token_seconds_count", model="tiny") == 0
    assert value(metrics, "cancellations_total", model="tiny") == 0
    assert value(metrics, "build_info", version="1.2.3") == 1


def test_without_configured_clients_the_anonymous_one_starts_at_zero():
    metrics = Metrics("1")
    assert value(metrics, "client_requests_total", client="anonymous", outcome="completed") == 0


def test_a_finished_request_counts_once_everywhere(metrics):
    finish(metrics)
    kinds = ("input", "output", "cached")
    for whose in ("", "client_"):
        assert value(metrics, f"{whose}requests_total", outcome="completed") == 1
        assert [value(metrics, f"{whose}tokens_total", kind=kind) for kind in kinds] == [10, 11, 4]
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "time_per_output_token_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "request_duration_seconds_sum") == pytest.approx(1.1)
    assert value(metrics, "queue_wait_seconds_count") == 1
    assert value(metrics, "client_queue_wait_seconds_count", client="team") == 1
    assert value(metrics, "decisions_total", reason="hit") == 1
    assert value(metrics, "worker_placements_total", worker="http://a:1") == 1
    assert value(metrics, "predicted_cached_tokens_total") == 3
    assert value(metrics, "matched_share_sum", model="tiny") == pytest.approx(0.3)


def test_what_a_request_never_came_to_is_not_observed(metrics):
    nothing = {"dispatch": None, "ttft_s": None, "usage": None}
    finish(metrics, outcome=Outcome.CANCELLED, **nothing)
    finish(metrics, streamed=False)
    assert value(metrics, "cancellations_total") == 1
    assert value(metrics, "time_to_first_token_seconds_count") == 0
    assert value(metrics, "queue_wait_seconds_count") == 1


def test_service_is_the_weighted_sum_of_computed_and_output_tokens():
    metrics = Metrics("1", service_weights=(0.5, 3.0))
    finish(metrics, usage=Usage(10, 11, 4))
    finish(metrics, usage=Usage(10, 0, None))
    assert value(metrics, "client_service_total", client="team") == 0.5 * 6 + 3 * 11 + 0.5 * 10


def test_a_wrong_prediction_counts_by_its_direction_and_only_where_the_worker_tells_the_truth(metrics):
    finish(metrics, dispatch=dispatched(matched=9), usage=Usage(10, 1, 4))
    finish(metrics, dispatch=dispatched(matched=1), usage=Usage(10, 1, 4))
    finish(metrics, dispatch=dispatched(matched=9), usage=Usage(10, 1, None))
    assert value(metrics, "mispredicted_cached_tokens_total", direction="over") == 5
    assert value(metrics, "mispredicted_cached_tokens_total", direction="under") == 3
    assert value(metrics, "checked_prompt_tokens_total", model="tiny") == 20


def clients_of(metrics):
    return set(re.findall(r'fairlead_client_requests_total{client="([^"]*)"', metrics.page.now().decode()))


def models_of(metrics):
    return set(re.findall(r'fairlead_requests_total{model="([^"]*)"', metrics.page.now().decode()))


def test_clients_beyond_the_bound_share_one_label(metrics):
    for number in range(50):
        finish(metrics, client=f"user-{number}", weight=1.0)
    assert clients_of(metrics) == {"team", "user-0", "user-1", "user-2", "other"}
    assert value(metrics, "client_requests_total", client="other", outcome="completed") == 47
    assert value(metrics, "client_queue_wait_seconds_count", client="other") == 47
    assert value(metrics, "client_weight", client="other") is None
    assert value(metrics, "client_weight", client="user-0") == 1
    assert value(metrics, "client_weight", client="team") == 2


def test_a_client_added_while_running_has_its_label_at_once_however_many_others_came_before(metrics):
    for number in range(50):
        finish(metrics, client=f"user-{number}")
    metrics.reconfigure({"team": 2.0, "vip": 5.0}, max_clients=3)
    assert value(metrics, "client_requests_total", client="vip", outcome="completed") == 0
    assert value(metrics, "client_weight", client="vip") == 5
    finish(metrics, client="vip", weight=5.0)
    assert value(metrics, "client_requests_total", client="vip", outcome="completed") == 1
    assert value(metrics, "client_requests_total", client="team", outcome="completed") == 0


def test_a_client_that_was_removed_leaves_no_series_and_its_last_requests_bring_none_back(metrics):
    finish(metrics)
    metrics.reconfigure({"vip": 1.0}, max_clients=3)
    assert clients_of(metrics) == {"vip"}
    finish(metrics)
    assert clients_of(metrics) == {"vip", "other"}
    assert 'client="team"' not in metrics.page.now().decode()
    metrics.reconfigure({"vip": 1.0, "team": 3.0}, max_clients=3)
    assert value(metrics, "client_weight", client="team") == 3
    assert value(metrics, "client_requests_total", client="team", outcome="completed") == 0
    finish(metrics)
    assert value(metrics, "client_requests_total", client="team", outcome="completed") == 1


def test_the_same_clients_keep_their_counts_when_the_configuration_is_read_again(metrics):
    finish(metrics)
    finish(metrics, client="user")
    metrics.reconfigure({"team": 2.0}, max_clients=3)
    assert value(metrics, "client_requests_total", client="user", outcome="completed") == 1
    metrics.reconfigure({"team": 4.0}, max_clients=3)
    assert value(metrics, "client_requests_total", client="team", outcome="completed") == 1
    assert value(metrics, "client_weight", client="team") == 4


def test_a_client_may_be_called_like_the_label_that_the_others_share():
    metrics = Metrics("1", max_clients=1, clients={"other": 2.0})
    for client in ("other", "a", "b"):
        finish(metrics, client=client)
    page = metrics.page.now().decode()
    assert page.count('fairlead_client_service_total{client="other"}') == 1
    assert value(metrics, "client_requests_total", client="other", outcome="completed") == 2


def test_a_hundred_clients_of_a_hundred_adapters_have_a_series_each_and_not_one_per_pair():
    """Nor does an adapter that nothing has asked for have any."""
    adapters = [f"adapter-{number}" for number in range(100)]
    names = {f"team-{number}": 1.0 for number in range(100)}
    metrics = Metrics("1", clients=names)
    metrics.follow_routes(serving("tiny"))
    alone = metrics.page.now().count(b"\n")
    metrics.follow_routes(serving("tiny", adapters=adapters))
    assert metrics.page.now().count(b"\n") == alone
    for number, name in enumerate(names):
        for adapter in adapters:
            if number % 10 == 0 or adapter == adapters[number]:
                finish(metrics, client=name, served_name=adapter)
    lines = metrics.page.now().count(b"\n")
    assert (lines - alone) / len(adapters) < 150
    metrics.follow_routes(serving("tiny"))
    assert metrics.page.now().count(b"\n") == alone


def test_an_adapter_that_was_unloaded_leaves_no_series_and_its_last_requests_bring_none_back(metrics):
    metrics.follow_routes(serving("tiny", adapters=["sql"]))
    finish(metrics, served_name="sql")
    assert models_of(metrics) == {"tiny", "sql"}
    metrics.follow_routes(serving("tiny"))
    finish(metrics, served_name="sql")
    assert models_of(metrics) == {"tiny", ""}
    assert '"sql"' not in metrics.page.now().decode()


def test_a_model_whose_worker_restarts_keeps_its_series(metrics):
    finish(metrics)
    metrics.follow_routes(serving(expected=["tiny"]))
    assert value(metrics, "requests_total", model="tiny", outcome="completed") == 1
    metrics.follow_routes(serving())
    assert models_of(metrics) == set()


def test_a_worker_that_has_left_leaves_no_series_and_its_last_attempts_bring_none_back(metrics):
    metrics.attempt_failed("http://a:1", AttemptFailure.LOST)
    metrics.follow(WorkerLeft("http://a:1", "removed"))
    metrics.attempt_failed("http://a:1", AttemptFailure.LOST)
    finish(metrics, dispatch=dispatched("http://a:1"))
    assert "http://a:1" not in metrics.page.now().decode()


def test_a_name_that_was_not_chosen_for_metrics_does_not_break_the_page(metrics):
    finish(metrics, client='a"b\\c\nd')
    assert value(metrics, "client_requests_total", outcome="completed", client="team") == 0
    assert 'client="a\\"b\\\\c\\nd"' in metrics.page.now().decode()


def test_a_refused_configuration_shows_until_one_is_accepted(metrics):
    began = value(metrics, "config_timestamp_seconds")
    assert value(metrics, "config_last_reload_successful") == 1
    metrics.config_read(accepted=False)
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_timestamp_seconds") == began == pytest.approx(time.time(), abs=60)
    metrics.config_read(accepted=True)
    assert value(metrics, "config_last_reload_successful") == 1
    assert value(metrics, "config_timestamp_seconds") >= began
    assert [value(metrics, "config_reloads_total", result=r) for r in ("accepted", "refused")] == [1, 1]


def test_the_longest_loop_delay_is_remembered_for_a_while_and_then_forgotten(metrics):
    now = [0.0]
    delay = LoopDelay(CollectorRegistry(), lambda: now[0])
    delay.observe(0.4)
    now[0] = 20.0
    delay.observe(0.1)
    assert delay._longest() == 0.4
    now[0] = 59.0
    assert delay._longest() == 0.4
    now[0] = 61.0
    assert delay._longest() == 0.0
    metrics.loop_delay.observe(0.3)
    assert value(metrics, "event_loop_delay_longest_seconds") == 0.3
    assert value(metrics, "event_loop_delay_seconds_count") == 1


class OnePool:
    """As much of `Pools` as the metrics read."""

    def __init__(self, pool):
        self.pool = pool
        self.by_model = {"tiny": pool}
        self.members = {}

    def usable(self, _line):
        return []


class Clock:
    """As much of an event loop as the metrics read."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now

    def call_at(self, *_):
        return None


@pytest.fixture
def pool(metrics):
    made = Pool("tiny", make_scheduler(Config.load(env={})), Clock(10.0))
    metrics.page.add(Gauges(OnePool(made), list, metrics.observed, {}))
    return made


def test_exceptions_of_policies_are_read_when_asked(metrics, pool):
    assert value(metrics, "policy_faults_total", model="tiny") == 0
    pool.scheduler.faults.add(LookupError("a bug"))
    assert value(metrics, "policy_faults_total", model="tiny") == 1


def test_who_waits_shows_before_the_wait_is_over(metrics, pool):
    scheduler = pool.scheduler
    scheduler.worker_joined(WorkerFacts("w", frozenset({"tiny"}), slots=0), 0.0)
    assert value(metrics, "client_queued", client="team") == 0
    scheduler.submit(view("a", arrived=1.0), 1.0)
    scheduler.submit(view("b", arrived=4.0), 4.0)
    scheduler.submit(view("c", client="new", arrived=8.0), 8.0)
    assert [value(metrics, "client_queued", client=c) for c in ("team", "new")] == [2, 1]
    assert [value(metrics, "client_oldest_wait_seconds", client=c) for c in ("team", "new")] == [9, 2]
    assert value(metrics, "queue_depth", model="tiny") == 3
    assert value(metrics, "routable_workers", model="tiny") == 0


def test_the_deficit_of_a_client_is_the_policys_own(metrics, pool):
    scheduler = pool.scheduler
    scheduler.worker_joined(WorkerFacts("w", frozenset({"tiny"})), 0.0)
    assert value(metrics, "client_deficit", client="team") is None
    scheduler.submit(view("a"), 0.0)
    scheduler.decisions(0.0)
    shown = value(metrics, "client_deficit", model="tiny", client="team")
    assert shown == scheduler._order.deficit("team")
    assert shown is not None


def test_an_order_without_accounts_shows_no_deficit(pool):
    pool.scheduler._order = Fcfs(FcfsSettings())
    assert pool.scheduler.deficit("team") is None


def test_the_hottest_beginnings_are_shares_of_recent_requests(metrics, pool):
    for number in range(10):
        finish(metrics, prompt_head=0 if number < 6 else number)
    assert value(metrics, "hot_prefix_share", rank="1") == 0.6
    assert value(metrics, "hot_prefix_share", rank="2") == 0.1


def worker(state=State.UP, why="", **more):
    fields = {"spec": WorkerSpec("http://a:1"), "model": "tiny", **more}
    return Worker(state=state, why=why, **fields)


def test_every_change_of_state_counts_also_when_no_scrape_sees_it():
    metrics = Metrics("1")
    members = {}
    pools = OnePool(None)
    pools.by_model, pools.members = {}, members
    metrics.page.add(Gauges(pools, list, metrics.observed, {}))
    metrics.follow(WorkerJoined(worker(State.STARTING)))
    for state in (State.UP, State.SUSPECT, State.UP, State.UP, State.DOWN):
        metrics.follow(WorkerChanged(worker(state)))
    metrics.follow(WorkerLeft("http://a:1", "its process restarted"))
    metrics.follow(WorkerJoined(worker(State.UP, epoch=1)))
    members["http://a:1@1"] = Member(worker(State.UP, epoch=1))
    found = {
        s.value: value(metrics, "worker_transitions_total", server="http://a:1", state=s.value) for s in State
    }
    assert found == {"starting": 1, "up": 3, "suspect": 1, "down": 1, "draining": 0}
    assert value(metrics, "worker_epoch", server="http://a:1") == 1
    assert value(metrics, "workers", state="up") == 1
    assert value(metrics, "workers", state="down") == 0
    members.clear()
    assert 'server="' not in metrics.page.now().decode()
    assert metrics._transitions._counts == {}


class Member:
    """As much of a pool's member as the metrics read."""

    def __init__(self, known):
        self.worker = known
        self.pool = None


def test_each_reason_why_a_worker_is_excluded_has_its_label():
    metrics, members = Metrics("1"), {}
    pools = OnePool(None)
    pools.by_model, pools.members = {}, members
    metrics.page.add(Gauges(pools, list, metrics.observed, {}))
    for reason in (None, *Exclusion):
        members["http://a:1"] = Member(worker(excluded=reason))
        shown = {each: value(metrics, "worker_excluded", reason=each.value) for each in Exclusion}
        assert shown == {each: float(each is reason) for each in Exclusion}


def entries(metrics):
    page = metrics.page.now().decode()
    return {name: float(count) for name, count in re.findall(r'fairlead_entries{.*structure="(\w+)"} (\S+)', page)}


def test_the_tables_that_grow_with_traffic_show_their_sizes(metrics):
    made = Pool("tiny", make_scheduler(Config.load(env={})), Clock(10.0))
    metrics.page.add(Gauges(OnePool(made), list, metrics.observed, {"quotas": lambda: 7}))
    made.scheduler.worker_joined(WorkerFacts("w", frozenset({"tiny"})), 0.0)
    assert entries(metrics)["accounts"] == 0
    for number in range(3):
        made.scheduler.submit(view(f"r{number}", client=f"c{number}", party=("key", f"c{number}")), 0.0)
    assert entries(metrics)["accounts"] == 4, "the key's own and those of its users"
    assert entries(metrics)["quotas"] == 7


def test_who_waits_is_shown_by_account(metrics, pool):
    pool.scheduler.worker_joined(WorkerFacts("w", frozenset({"tiny"}), slots=0), 0.0)
    for number in range(3):
        client = f"team/user-{number}"
        pool.scheduler.submit(view(client, client=client, party=("team", client), arrived=1.0), 1.0)
    assert value(metrics, "client_queued", client="team") == 3
    assert "user-" not in metrics.page.now().decode()


def test_a_worker_that_is_no_member_has_no_rows_whatever_others_still_have_of_it(metrics):
    made = Pool("tiny", make_scheduler(Config.load(env={})), Clock(10.0))
    made.scheduler.worker_joined(WorkerFacts("http://b:1", frozenset({"tiny"})), 0.0)
    pools = OnePool(made)
    metrics.page.add(Gauges(pools, lambda: [("http://b:1", 0, 1)], metrics.observed, {}))
    assert "http://b:1" not in metrics.page.now().decode()
    pools.members["http://b:1"] = Member(worker(spec=WorkerSpec("http://b:1")))
    assert value(metrics, "worker_connections", worker="http://b:1", state="busy") == 1
    assert value(metrics, "worker_requests", worker="http://b:1") == 0


async def test_the_fleet_may_change_between_the_steps_of_a_scrape(metrics):
    made = Pool("tiny", make_scheduler(Config.load(env={})), Clock(10.0))
    pools = OnePool(made)
    for number in range(100):
        name = f"http://w{number}:1"
        pools.members[name] = Member(worker(spec=WorkerSpec(name)))
        made.scheduler.worker_joined(WorkerFacts(name, frozenset({"tiny"}), slots=0), 0.0)
        made.scheduler.submit(view(f"r{number}", client=f"c{number}"), 0.0)
        metrics.follow(WorkerJoined(worker(spec=WorkerSpec(name))))
    metrics.page.add(Gauges(pools, lambda: [(name, 1, 1) for name in pools.members], metrics.observed, {}))
    whole = metrics.page.now()
    scrape = asyncio.create_task(metrics.page.read())
    turns = 0
    while not scrape.done():
        await asyncio.sleep(0)
        turns += 1
        if pools.members:
            name, _ = pools.members.popitem()
            made.scheduler.worker_left(name, 0.0)
            metrics.follow(WorkerLeft(name, "removed"))
    assert turns > 50
    assert len(await scrape) < len(whole)
