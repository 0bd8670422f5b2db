"""From findings to snapshots and events, on a clock that the test turns."""

import logging

import pytest

from workers.fleet.health import HealthSettings
from workers.fleet.probe import Models, ProbeError
from workers.fleet.server import Server
from workers.fleet.worker import (
    Exclusion,
    Scrape,
    State,
    WorkerChanged,
    WorkerJoined,
    WorkerLeft,
    WorkerSpec,
)

URL = "http://w:8000"
REFUSED = ProbeError("connection refused", connect=True)


class Bench:
    """A server, its clock, and what it said."""

    def __init__(self, stale_s=15.0, **spec):
        self.now = 100.0
        self.events = []
        spec = WorkerSpec(URL, **spec)
        self.server = Server(spec, HealthSettings(), stale_s, lambda: self.now, self.events.append)
        self.server.join()

    def up(self, *names, **more):
        self.server.healthy()
        self.server.models_found(Models(*(names or ("tiny",)), **more))
        self.events.clear()
        return self

    @property
    def worker(self):
        (engine,) = self.server.engines
        return engine.worker

    @property
    def kinds(self):
        return [type(event) for event in self.events]

    def scrape(self, rank=0, **figures):
        figures = {"running": 0, "waiting": 0, "kv_usage": 0.0} | figures
        return self.server.scraped({rank: Scrape(at=self.now, **figures)})


def test_a_server_joins_as_starting_and_becomes_routable_with_its_model():
    bench = Bench()
    assert bench.events == [WorkerJoined(bench.worker)]
    assert (bench.worker.state, bench.worker.why) == (State.STARTING, "not reached yet")
    bench.server.healthy()
    assert bench.worker.state is State.UP
    assert not bench.worker.routable
    assert bench.worker.why == "its models are not known yet"
    bench.server.models_found(Models("tiny", ("tiny-alias",), ("sql",), 2048))
    assert bench.worker.routable
    assert bench.worker.served_names == {"tiny", "tiny-alias", "sql"}
    assert (bench.worker.model, bench.worker.max_model_len, bench.worker.why) == ("tiny", 2048, "")
    assert bench.events[-1] == WorkerChanged(bench.worker)


def test_every_rank_is_a_worker_of_its_own():
    bench = Bench(data_parallel=3).up()
    assert [e.worker.id for e in bench.server.engines] == [f"{URL}#{rank}" for rank in range(3)]
    bench.scrape(rank=1, running=5)
    assert [e.worker.stale for e in bench.server.engines] == [True, False, True]
    assert bench.kinds == [WorkerChanged]


def test_nothing_is_emitted_when_nothing_changes():
    bench = Bench().up()
    for _ in range(3):
        bench.server.healthy()
        bench.server.models_found(Models("tiny"))
        bench.server.refresh()
    assert bench.events == []


def test_a_readiness_flap_keeps_the_identity():
    bench = Bench().up()
    before = bench.worker.id
    for _ in range(3):
        bench.server.unhealthy(REFUSED)
    assert bench.worker.state is State.DOWN
    bench.server.healthy()
    assert bench.worker.state is State.UP
    assert bench.worker.id == before
    assert set(bench.kinds) == {WorkerChanged}


def test_another_start_time_of_the_process_is_a_new_epoch():
    bench = Bench().up()
    assert not bench.scrape(process_started=1000.0)
    assert not bench.scrape(process_started=1000.0)
    bench.events.clear()
    assert bench.scrape(process_started=2000.0)
    assert bench.kinds[:2] == [WorkerLeft, WorkerJoined]
    assert bench.events[0] == WorkerLeft(URL, "its process restarted")
    assert bench.worker.id == f"{URL}@1"
    assert bench.worker.state is State.UP
    assert bench.worker.model is None, "the new process may serve another model"
    assert not bench.scrape(process_started=2000.0)


def test_a_counter_that_fell_is_a_new_epoch_where_no_start_time_is_exported():
    bench = Bench().up()
    assert not bench.scrape(prefix_queries=500)
    assert not bench.scrape(prefix_queries=900)
    assert bench.scrape(prefix_queries=10)
    assert bench.worker.epoch == 1


def test_a_counter_that_fell_is_no_new_epoch_where_the_start_time_is_the_same():
    bench = Bench().up()
    bench.scrape(prefix_queries=500, process_started=1.0)
    assert not bench.scrape(prefix_queries=10, process_started=1.0)


def test_the_launcher_says_that_the_process_is_new():
    bench = Bench().up()
    bench.scrape(process_started=1000.0)
    bench.server.restarted("its process was restarted")
    assert (bench.worker.id, bench.worker.state) == (f"{URL}@1", State.STARTING)
    bench.server.healthy()
    bench.server.models_found(Models("tiny"))
    assert not bench.scrape(process_started=2000.0), "its first reading is no second restart"
    assert bench.worker.routable


def test_another_model_leaves_and_joins_but_an_adapter_only_changes():
    bench = Bench().up("tiny")
    bench.server.models_found(Models("tiny", (), ("sql",)))
    assert bench.kinds == [WorkerChanged]
    assert bench.worker.served_names == {"tiny", "sql"}
    bench.events.clear()
    bench.server.models_found(Models("large"))
    assert bench.events == [WorkerLeft(URL, "it now serves large"), WorkerJoined(bench.worker)]
    assert (bench.worker.model, bench.worker.epoch, bench.worker.routable) == ("large", 1, True)


def test_another_model_does_not_forgive_failed_requests():
    bench = Bench().up("tiny")
    for _ in range(3):
        bench.server.engines[0].health.request_failed("timeout", bench.now)
    bench.server.models_found(Models("large"))
    assert bench.worker.state is State.SUSPECT


def test_a_configured_model_that_is_not_served_is_not_routable_and_says_why():
    bench = Bench(model="large").up("tiny", ("small",))
    assert bench.worker.state is State.UP
    assert not bench.worker.routable
    assert bench.worker.why == "it serves tiny, small, not large"
    bench.server.models_found(Models("large"))
    assert bench.worker.routable


def test_a_configured_alias_is_the_name_of_the_model():
    bench = Bench(model="small").up("tiny", ("small",))
    assert bench.worker.model == "small"


def test_a_model_list_that_cannot_be_read_says_nothing_about_a_known_model():
    bench = Bench().up("tiny")
    bench.server.models_unknown(ProbeError("HTTP 401"))
    assert bench.events == []
    fresh = Bench()
    fresh.server.healthy()
    fresh.server.models_unknown(ProbeError("HTTP 401"))
    assert fresh.worker.why == "its models are not known: HTTP 401"


def test_a_reading_becomes_stale_by_time():
    bench = Bench(stale_s=15.0).up()
    bench.scrape(running=2)
    assert bench.worker.scrape.running == 2
    assert not bench.worker.stale
    assert bench.server.next_change(bench.now) == 115.0
    bench.now = 115.0
    bench.server.refresh()
    assert bench.worker.stale
    assert bench.server.next_change(bench.now) is None


def test_a_sleeping_engine_is_not_routable_and_an_awake_one_is_again():
    bench = Bench().up()
    bench.scrape(awake=False)
    assert not bench.worker.routable
    assert bench.worker.why == "the engine is asleep"
    bench.server.healthy()
    assert not bench.worker.routable
    assert bench.server.next_change(bench.now) == bench.now + 15.0, "the report holds as long as the reading"
    bench.scrape(awake=True)
    assert bench.worker.routable


def test_a_changed_specification_keeps_the_identity_unless_the_engines_change():
    bench = Bench().up()
    bench.server.change(WorkerSpec(URL, roles=frozenset({"decode"})))
    assert bench.kinds == [WorkerChanged]
    assert bench.worker.spec.roles == {"decode"}
    bench.events.clear()
    bench.server.change(WorkerSpec(URL, data_parallel=2))
    assert bench.kinds == [WorkerLeft, WorkerJoined, WorkerJoined]
    assert all(engine.worker.routable for engine in bench.server.engines)


def test_a_drain_outlives_a_restart():
    bench = Bench().up()
    bench.server.drain(Exclusion.DRAINED)
    bench.server.restarted("its process was restarted")
    bench.server.healthy()
    assert (bench.worker.state, bench.worker.why) == (State.DRAINING, "drained by the operator")
    bench.server.undrain()
    assert bench.worker.state is State.UP


def test_an_engine_is_idle_until_it_was_routable_and_again_once_released_in_a_drain():
    bench = Bench()
    assert bench.server.idle
    bench.up()
    assert not bench.server.idle
    bench.server.release(bench.server.engines[0])
    assert not bench.server.idle, "it takes new requests, so a release says nothing"
    bench.server.drain(Exclusion.DRAINED)
    bench.server.release(bench.server.engines[0])
    assert bench.server.idle
    bench.server.undrain()
    assert not bench.server.idle


def test_trouble_of_our_own_does_not_count_against_the_worker_and_is_said_once(caplog):
    bench = Bench().up()
    for _ in range(10):
        bench.server.unhealthy(ProbeError("this process has no file descriptors left", ours=True))
    assert bench.worker.state is State.UP
    assert len([r for r in caplog.records if "file descriptors" in r.message]) == 1


def test_a_replica_of_a_larger_group_labels_its_only_engine_with_its_place():
    bench = Bench().up()
    bench.scrape(rank=3, running=4)
    assert bench.worker.scrape.running == 4


def test_more_engines_than_configured_are_one_worker_with_a_warning(caplog):
    bench = Bench().up()
    one = Scrape(bench.now, 2, 1, 0.5, kv_tokens=100)
    for _ in range(2):
        bench.server.scraped({0: one, 1: one})
    assert (bench.worker.scrape.running, bench.worker.scrape.kv_tokens) == (4, 200)
    assert len([r for r in caplog.records if "data_parallel: 2" in r.message]) == 1


def test_a_change_of_state_is_one_line_of_log_with_its_reason(caplog):
    bench = Bench().up()
    caplog.set_level(logging.INFO, "fairlead.fleet")
    for _ in range(5):
        bench.server.unhealthy(REFUSED)
    bench.server.healthy()
    assert [r.message for r in caplog.records] == [
        f"worker {URL}: up -> suspect, serving tiny (probe failed: connection refused)",
        f"worker {URL}: suspect -> down (probe failed: connection refused)",
        f"worker {URL}: down -> up, serving tiny",
    ]


def test_a_worker_that_becomes_usable_without_a_change_of_state_is_no_change_from_up_to_up(caplog):
    bench = Bench()
    bench.server.healthy()
    caplog.set_level(logging.INFO, "fairlead.fleet")
    bench.server.models_found(Models("tiny"))
    assert [r.message for r in caplog.records] == [f"worker {URL}: up, serving tiny"]


def test_a_worker_that_was_never_reached_is_told_with_the_cause_and_ever_more_seldom(caplog):
    bench = Bench()
    for _ in range(1000):
        bench.now += 1.0
        bench.server.unhealthy(REFUSED)
    assert [r.message for r in caplog.records] == [
        f"worker {URL} cannot be reached: connection refused; trying again"
    ] * 3
    caplog.clear()
    bench.server.unhealthy(ProbeError("no route to host"))
    assert [r.message for r in caplog.records] == [
        f"worker {URL} cannot be reached: no route to host; trying again"
    ]


def test_a_worker_that_stays_down_is_told_again(caplog):
    bench = Bench().up()
    for _ in range(5):
        bench.server.unhealthy(REFUSED)
    caplog.clear()
    bench.now += 61.0
    bench.server.unhealthy(REFUSED)
    assert [r.message for r in caplog.records] == [
        f"worker {URL} cannot be reached: connection refused; trying again"
    ]


def test_what_keeps_a_worker_that_answers_from_being_used_is_told(caplog):
    bench = Bench(model="large")
    bench.server.healthy()
    for _ in range(3):
        bench.server.models_unknown(ProbeError("HTTP 401", status=401))
    for _ in range(3):
        bench.server.models_found(Models("tiny"))
        bench.server.metrics_unknown(ProbeError("HTTP 404", status=404))
    assert [r.message for r in caplog.records] == [
        f"what worker {URL} serves is not known: HTTP 401",
        f"worker {URL} is not used: it serves tiny, not large",
        f"the metrics of worker {URL} cannot be read: HTTP 404",
    ]


def test_a_name_is_expected_while_its_worker_loads_it_for_the_first_time_or_again():
    bench = Bench(model="tiny")
    assert bench.worker.expected == {"tiny"}
    bench.up("tiny", ("tiny-alias",), ("sql",))
    assert bench.worker.expected == set()
    bench.server.restarted("its process was restarted")
    assert bench.worker.expected == {"tiny", "tiny-alias", "sql"}
    bench.server.models_found(Models("large"))
    assert bench.worker.expected == {"tiny"}, "as configured; the rest is not served there any more"


def test_what_a_name_stands_for_is_kept_as_the_worker_says_it():
    bench = Bench().up("tiny", (), ("sql",), roots={"tiny": "org/tiny", "sql": "/lora/sql"})
    assert bench.worker.roots == {"tiny": "org/tiny", "sql": "/lora/sql"}


class TestResolvers:
    """Adapters that a worker loads when they are first asked for."""

    def test_a_name_can_be_tried_where_the_worker_has_resolvers(self):
        bench, plain = Bench(resolves_adapters=True), Bench()
        assert not bench.server.resolve_adapter("early"), "it is not known to serve anything"
        bench.up(), plain.up()
        assert bench.server.resolve_adapter("sql")
        assert (bench.worker.served_names, bench.worker.adapters) == ({"tiny", "sql"}, {"sql"})
        assert bench.kinds == [WorkerChanged]
        assert not plain.server.resolve_adapter("sql")
        assert plain.worker.served_names == {"tiny"}

    def test_a_name_that_the_worker_does_not_know_is_given_up(self):
        bench = Bench(resolves_adapters=True).up()
        bench.server.resolve_adapter("sql")
        bench.server.adapter_unknown("sql")
        bench.server.adapter_unknown("tiny")
        assert bench.worker.served_names == {"tiny"}

    def test_a_name_that_is_not_listed_in_time_is_given_up(self):
        bench = Bench(resolves_adapters=True).up()
        bench.server.resolve_adapter("sql")
        bench.server.resolve_adapter("css")
        bench.now += 61.0
        bench.server.models_found(Models("tiny", (), ("sql",)))
        assert bench.worker.adapters == {"sql"}

    def test_the_names_that_clients_invent_are_bounded(self):
        bench = Bench(resolves_adapters=True).up()
        for number in range(1000):
            bench.server.resolve_adapter(f"invented-{number}")
        assert len(bench.worker.served_names) == 65


def test_no_event_follows_the_last_one():
    bench = Bench().up()
    bench.scrape(process_started=1.0)
    bench.server.close("removed")
    assert bench.events[-1] == WorkerLeft(URL, "removed")
    bench.events.clear()
    bench.server.healthy()
    bench.scrape(process_started=2.0)
    bench.server.restarted("its process was restarted")
    assert bench.events == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_subscriber_that_takes_the_server_away_at_its_first_event_hears_no_more_of_it(ranks):
    events = []

    def subscriber(event):
        events.append(event)
        if isinstance(event, WorkerJoined) and len(events) == 1:
            server.close("removed")

    server = Server(WorkerSpec(URL, data_parallel=ranks), HealthSettings(), 15.0, lambda: 0.0, subscriber)
    server.join()
    assert [type(e) for e in events] == [WorkerJoined] + [WorkerLeft] * ranks


def test_a_subscriber_that_takes_the_server_away_at_a_change_hears_no_later_change():
    events = []

    def subscriber(event):
        events.append(event)
        if isinstance(event, WorkerChanged):
            server.close("removed")

    server = Server(WorkerSpec(URL, data_parallel=2), HealthSettings(), 15.0, lambda: 0.0, subscriber)
    server.join()
    events.clear()
    server.healthy()
    assert [type(e) for e in events] == [WorkerChanged, WorkerLeft, WorkerLeft]


def test_a_worker_that_does_not_say_what_it_serves_is_excluded_for_that():
    bench = Bench()
    assert bench.worker.excluded is Exclusion.STARTING
    bench.server.healthy()
    assert bench.worker.excluded is Exclusion.NO_MODEL
    bench.up()
    assert bench.worker.excluded is None
