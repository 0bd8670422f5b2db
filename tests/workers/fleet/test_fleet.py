"""The fleet in front of listeners that speak just enough of vLLM, over real sockets."""

import asyncio
import contextlib
import json
import socket
import time
from dataclasses import replace

import pytest

from workers.fleet.fleet import DuplicateServerError, Fleet, FleetSettings, UnknownServerError
from workers.fleet.health import HealthSettings
from workers.fleet.poller import PollerSettings
from workers.fleet.worker import (
    State,
    WorkerChanged,
    WorkerJoined,
    WorkerLeft,
    WorkerSpec,
)

QUICK = FleetSettings(
    poller=PollerSettings(
        probe_every_s=0.1,
        probe_timeout_s=0.3,
        retry_first_s=0.05,
        starting_every_s=0.1,
        scrape_every_s=0.1,
        scrape_timeout_s=0.3,
        models_every_s=0.2,
    ),
    health=HealthSettings(suspect_for_s=0.3),
    scrape_stale_s=0.4,
    remove_after_s=0.3,
)


class FakeVllm:
    """A listener with vLLM's control paths, whose answers a test may change while it runs."""

    def __init__(self):
        self.port = 0
        self.models = ["tiny"]
        self.started_at = 1000.0
        self.engines = 1
        self.hanging = set()
        self.broken = {}
        self.asked = []
        self.hosts = set()
        self.host = "127.0.0.1"
        self._server = None
        self._exchanges = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)

    def count(self, path):
        return self.asked.count(path)

    def answer(self, path):
        if path == "/v1/models":
            data = [{"id": name, "root": "/m", "parent": None, "max_model_len": 2048} for name in self.models]
            return json.dumps({"object": "list", "data": data})
        if path == "/version":
            return '{"version":"0.32.0"}'
        if path == "/metrics":
            gauge = 'vllm:num_requests_running{engine="%d",model_name="m"} %d.0'
            lines = [f"process_start_time_seconds {self.started_at}"]
            lines += [gauge % (n, n + 1) for n in range(self.engines)]
            return "\n".join(lines) + "\n"
        return ""

    async def _serve(self, reader, writer):
        self._exchanges.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            self.hosts.add(next(line[6:] for line in head.split("\r\n") if line.lower().startswith("host: ")))
            self.asked.append(path)
            if path in self.hanging:
                await reader.read()
            else:
                body = self.answer(path).encode()
                head = f"HTTP/1.1 {self.broken.get(path, 200)} X\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Observed:
    """A fleet and everything it told its subscriber."""

    def __init__(self, settings=QUICK, clock=time.monotonic):
        self.events = []
        self.fleet = Fleet(settings, clock, self.on_event)

    def on_event(self, event):
        self.events.append(event)

    def worker(self, n=0):
        return self.fleet.workers()[n]

    def left(self):
        return [event for event in self.events if isinstance(event, WorkerLeft)]


async def until(fact, within_s=20.0):
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110 - the fact has no event of its own
            await asyncio.sleep(0.005)


@pytest.fixture
async def vllm():
    server = await FakeVllm().start()
    yield server
    await server.stop()


@pytest.fixture
async def watched(vllm):
    """A started fleet with one routable worker, read at least once."""
    seen = Observed()
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable and seen.worker().scrape and seen.worker().version)
    yield seen
    await seen.fleet.aclose()


# Over sockets.


async def test_a_worker_is_found_with_everything_it_says_of_itself(vllm, watched):
    worker = watched.worker()
    assert worker.id == vllm.url
    assert (worker.state, worker.model, worker.version) == (State.UP, "tiny", "0.32.0")
    assert (worker.max_model_len, worker.scrape.running, worker.stale) == (2048, 1, False)
    assert isinstance(watched.events[0], WorkerJoined)
    assert all(isinstance(event, WorkerChanged) for event in watched.events[1:])


async def test_a_worker_that_starts_later_is_found_by_quick_retries(vllm):
    await vllm.stop()
    seen = Observed()
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().why == "probe failed: connection refused")
    assert seen.worker().state is State.STARTING
    await vllm.start()
    await until(lambda: seen.worker().routable)
    await seen.fleet.aclose()


async def test_a_worker_that_stops_and_comes_back_keeps_its_identity(vllm, watched):
    await vllm.stop()
    await until(lambda: watched.worker().state is State.DOWN)
    await vllm.start()
    await until(lambda: watched.worker().routable)
    assert watched.worker().id == vllm.url
    assert watched.left() == []


async def test_a_process_that_restarted_is_a_new_worker(vllm, watched):
    vllm.started_at = 2000.0
    await until(lambda: watched.worker().epoch == 1 and watched.worker().routable)
    assert watched.left() == [WorkerLeft(vllm.url, "its process restarted")]
    assert watched.worker().id == f"{vllm.url}@1"


async def test_a_worker_that_comes_back_is_read_at_once_since_it_may_be_another_process(vllm):
    calm = FleetSettings(
        poller=PollerSettings(probe_every_s=0.1, scrape_every_s=60.0),
        scrape_stale_s=70.0,
    )
    seen = Observed(calm)
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable and seen.worker().scrape)
    await vllm.stop()
    await until(lambda: seen.worker().state is not State.UP)
    vllm.started_at = 2000.0
    await vllm.start()
    await until(lambda: seen.worker().epoch == 1 and seen.worker().routable)
    await seen.fleet.aclose()


async def test_the_launcher_may_say_so_first(vllm, watched):
    watched.fleet.restarted(vllm.url)
    vllm.started_at = 2000.0
    assert watched.worker().state is State.STARTING
    await until(lambda: watched.worker().routable and not watched.worker().stale)
    await asyncio.sleep(0.25)
    assert watched.worker().epoch == 1


async def test_another_model_is_another_worker(vllm, watched):
    vllm.models = ["large"]
    await until(lambda: watched.worker().model == "large")
    assert [event.why for event in watched.left()] == ["it now serves large"]


async def test_a_hanging_metrics_page_starves_no_probe(vllm, watched):
    vllm.hanging.add("/metrics")
    before = vllm.count("/health")
    await until(lambda: watched.worker().stale)
    assert vllm.count("/health") - before >= 3
    assert watched.worker().state is State.UP
    vllm.hanging.clear()
    await until(lambda: not watched.worker().stale)


async def test_a_hanging_worker_starves_no_other(vllm, watched):
    hung = await FakeVllm().start()
    hung.hanging |= {"/health", "/metrics", "/v1/models", "/version"}
    watched.fleet.add(WorkerSpec(hung.url))
    before = vllm.count("/health")
    await until(lambda: "no answer within 0.3 s" in watched.worker(1).why)
    assert vllm.count("/health") - before >= 2
    assert watched.worker(0).routable
    watched.fleet.remove(hung.url)
    assert len(watched.fleet.workers()) == 1
    await hung.stop()


async def test_a_failed_connection_is_probed_at_once(vllm):
    calm = FleetSettings(poller=PollerSettings(probe_every_s=60.0))
    seen = Observed(calm)
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable)
    await vllm.stop()
    seen.fleet.request_failed(vllm.url, "connection refused", connect=True)
    await until(lambda: seen.worker().state is State.DOWN)
    await seen.fleet.aclose()


async def test_a_storm_of_failed_connections_is_not_a_storm_of_probes(vllm, watched):
    before, began = vllm.count("/health"), time.monotonic()
    for _ in range(100):
        watched.fleet.request_failed(vllm.url, "connection reset", connect=True)
        await asyncio.sleep(0.002)
    assert vllm.count("/health") - before <= (time.monotonic() - began) / 0.05 + 2


async def test_a_suspect_recovers_by_time_between_two_probes(vllm):
    calm = FleetSettings(
        poller=PollerSettings(probe_every_s=60.0), health=HealthSettings(suspect_for_s=0.1, fail_threshold=1)
    )
    seen = Observed(calm)
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable)
    seen.fleet.request_failed(vllm.url, "no first byte within 60 s")
    assert seen.worker().state is State.SUSPECT
    assert seen.worker().routable
    await until(lambda: seen.worker().state is State.UP)
    assert vllm.count("/health") == 1
    await seen.fleet.aclose()


async def test_every_rank_gets_its_own_figures(vllm):
    vllm.engines = 2
    seen = Observed()
    seen.fleet.add(WorkerSpec(vllm.url, data_parallel=2))
    await seen.fleet.start()
    await until(lambda: all(w.routable and w.scrape for w in seen.fleet.workers()))
    assert [(w.id, w.scrape.running) for w in seen.fleet.workers()] == [
        (f"{vllm.url}#0", 1),
        (f"{vllm.url}#1", 2),
    ]
    await seen.fleet.aclose()


async def test_a_server_that_refuses_the_model_list_is_not_routable_and_says_why(vllm):
    vllm.broken["/v1/models"] = 401
    seen = Observed()
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: "HTTP 401" in seen.worker().why)
    assert not seen.worker().routable
    vllm.broken.clear()
    await until(lambda: seen.worker().routable)
    await seen.fleet.aclose()


async def test_after_the_close_nobody_is_asked_any_more(vllm, watched):
    await watched.fleet.aclose()
    before = len(vllm.asked)
    await asyncio.sleep(0.25)
    assert len(vllm.asked) == before
    assert [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith(("probe", "learn"))] == []


async def test_a_loop_survives_a_turn_that_breaks(vllm, watched, monkeypatch, caplog):
    def broken(_server):
        raise RuntimeError("a mistake")

    monkeypatch.setattr("workers.fleet.server.Server.healthy", broken)
    await until(lambda: "a turn failed" in caplog.text)
    monkeypatch.undo()
    before = vllm.count("/health")
    await until(lambda: vllm.count("/health") > before + 1)


async def test_a_removed_worker_leaves_when_it_is_released(vllm, watched):
    watched.fleet.remove(vllm.url)
    assert (watched.worker().state, watched.worker().why) == (State.DRAINING, "being removed")
    watched.fleet.release("another worker")
    assert len(watched.fleet.workers()) == 1
    watched.fleet.release(vllm.url)
    assert watched.fleet.workers() == ()
    assert watched.events[-1] == WorkerLeft(vllm.url, "removed")


async def test_a_removed_worker_that_is_never_released_leaves_in_the_end(vllm, watched):
    watched.fleet.remove(vllm.url)
    await until(lambda: watched.fleet.workers() == ())
    assert watched.events[-1] == WorkerLeft(vllm.url, "removed while requests were in flight")


async def test_a_subscriber_may_release_from_within_the_event_and_hears_all_in_order(vllm):
    heard = []

    def on_event(event):
        heard.append(type(event).__name__)
        if isinstance(event, WorkerChanged) and event.worker.state is State.DRAINING:
            fleet.release(event.worker.id)
        heard.append("done")

    fleet = Fleet(QUICK, time.monotonic, on_event)
    fleet.add(WorkerSpec(vllm.url))
    await fleet.start()
    await until(lambda: fleet.workers()[0].routable)
    heard.clear()
    fleet.remove(vllm.url)
    assert heard == ["WorkerChanged", "done", "WorkerLeft", "done"]
    assert fleet.workers() == ()
    await fleet.aclose()


async def test_a_worker_called_back_while_it_leaves_stays_the_same_worker(vllm, watched):
    fleet = watched.fleet
    fleet.remove(vllm.url)
    fleet.add(WorkerSpec(vllm.url))
    assert watched.worker().routable
    await asyncio.sleep(QUICK.remove_after_s + 0.1)
    assert watched.worker().routable
    assert watched.left() == []


SELDOM = replace(QUICK, poller=replace(QUICK.poller, models_every_s=600.0))


async def test_what_was_loaded_a_moment_ago_is_found_when_it_is_asked_for(vllm):
    seen = Observed(SELDOM)
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable)
    vllm.models.append("loaded-since")
    await seen.fleet.look_again()
    assert "loaded-since" in seen.worker().served_names
    await seen.fleet.aclose()


async def test_however_many_ask_for_unknown_names_the_servers_are_asked_in_shared_rounds(vllm):
    seen = Observed(SELDOM)
    seen.fleet.add(WorkerSpec(vllm.url))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable)
    before = vllm.count("/v1/models")
    began = time.monotonic()
    for _ in range(2):
        await asyncio.gather(*(seen.fleet.look_again() for _ in range(200)))
    assert vllm.count("/v1/models") - before == 2
    assert time.monotonic() - began >= 1.0, "the second round waits"
    await seen.fleet.aclose()


async def test_a_caller_that_leaves_does_not_end_the_round_of_the_others(vllm, watched):
    leaving = asyncio.create_task(watched.fleet.look_again())
    staying = asyncio.create_task(watched.fleet.look_again())
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert watched.fleet._asking is None


async def test_asking_again_does_not_wait_for_servers_that_were_never_reached(vllm, watched):
    watched.fleet.add(WorkerSpec("http://127.0.0.1:1"))
    await watched.fleet.look_again()


@pytest.fixture
def names(monkeypatch):
    """What the system's resolver says, by name."""
    table = {}

    async def getaddrinfo(_loop, host, port, **_options):
        host = host.decode() if isinstance(host, bytes) else host
        found = table.get(host, [host] if host[0].isdigit() else None)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (
                families[":" in address],
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, *([0, 0] if ":" in address else [])),
            )
            for address in found
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return table


async def on_port(host, port):
    server = FakeVllm()
    server.host, server.port = host, port
    return await server.start()


async def test_each_address_of_a_host_name_is_a_worker_of_its_own(vllm, names):
    other = await on_port("127.0.0.2", vllm.port)
    url = f"http://workers.example:{vllm.port}"
    names["workers.example"] = ["127.0.0.2", "127.0.0.1", "::1"]
    seen = Observed(replace(QUICK, resolve_every_s=0.1))
    seen.fleet.apply([WorkerSpec(url, max_num_seqs=7)])
    await seen.fleet.start()
    await until(lambda: len(seen.fleet.workers()) == 2 and all(w.routable for w in seen.fleet.workers()))
    assert [w.spec.url for w in seen.fleet.workers()] == [vllm.url, f"http://127.0.0.2:{vllm.port}"]
    assert {(w.spec.host_name, w.spec.max_num_seqs) for w in seen.fleet.workers()} == {("workers.example", 7)}
    assert other.hosts == vllm.hosts == {f"workers.example:{vllm.port}"}

    names["workers.example"] = ["127.0.0.2"]
    await until(lambda: len([w for w in seen.fleet.workers() if w.routable]) == 1)
    seen.fleet.release(vllm.url)
    assert [w.spec.url for w in seen.fleet.workers()] == [f"http://127.0.0.2:{vllm.port}"], "it keeps its identity"

    del names["workers.example"]
    await asyncio.sleep(0.25)
    assert seen.worker().routable, "a resolver that fails takes no worker away"
    seen.fleet.drain(url)
    assert seen.worker().state is State.DRAINING
    seen.fleet.undrain(url)
    seen.fleet.apply([WorkerSpec(url, max_num_seqs=8)])
    assert seen.worker().spec.max_num_seqs == 8
    seen.fleet.apply([])
    seen.fleet.release(f"http://127.0.0.2:{vllm.port}")
    assert seen.fleet.workers() == ()
    with pytest.raises(UnknownServerError):
        seen.fleet.drain(url)
    await seen.fleet.aclose()
    await other.stop()


@pytest.mark.parametrize("each_address", [True, False])
async def test_a_name_that_means_one_server_is_one_worker(vllm, names, each_address):
    names["worker.example"] = ["127.0.0.1", "::1"] if each_address else ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    url = f"http://worker.example:{vllm.port}"
    seen = Observed(replace(QUICK, resolve_every_s=0.05))
    seen.fleet.add(WorkerSpec(url, each_address=each_address))
    await seen.fleet.start()
    await until(lambda: seen.worker().routable)
    await asyncio.sleep(0.2)
    assert [w.id for w in seen.fleet.workers()] == [url]
    await seen.fleet.aclose()


# Without sockets: a fleet that was not started watches nothing.

A, B, C = (WorkerSpec(f"http://{name}:8000") for name in "abc")


def test_servers_are_known_by_their_url():
    fleet = Observed().fleet
    fleet.add(A)
    with pytest.raises(DuplicateServerError, match="http://a:8000"):
        fleet.add(A)
    for verb in (fleet.drain, fleet.undrain, fleet.remove, fleet.restarted):
        with pytest.raises(UnknownServerError, match="http://b:8000"):
            verb(B.url)


def test_applying_a_configuration_touches_only_what_changed():
    seen = Observed()
    seen.fleet.apply([A, B])
    seen.fleet.add(C)
    seen.events.clear()
    changed = WorkerSpec(B.url, max_num_seqs=8)
    seen.fleet.apply([changed, WorkerSpec("http://d:8000")])
    assert [(type(e).__name__, getattr(e, "id", None) or e.worker.id) for e in seen.events] == [
        ("WorkerChanged", A.url),
        ("WorkerLeft", A.url),
        ("WorkerChanged", B.url),
        ("WorkerJoined", "http://d:8000"),
    ]
    assert [w.spec for w in seen.fleet.workers()] == [changed, C, WorkerSpec("http://d:8000")]
    seen.events.clear()
    seen.fleet.apply([changed, WorkerSpec("http://d:8000")])
    assert seen.events == []


def test_a_configuration_that_lists_a_server_twice_changes_nothing():
    seen = Observed()
    seen.fleet.apply([A])
    with pytest.raises(DuplicateServerError, match="listed twice"):
        seen.fleet.apply([B, B])
    assert [w.spec for w in seen.fleet.workers()] == [A]


def test_only_the_changed_snapshot_is_rebuilt():
    fleet = Observed().fleet
    fleet.apply([A, B])
    before = fleet.workers()
    assert fleet.workers() is before
    fleet.drain(A.url)
    after = fleet.workers()
    assert after[0] is not before[0]
    assert after[1] is before[1]


def test_a_report_about_an_unknown_worker_is_ignored():
    seen = Observed()
    seen.fleet.request_ok("http://gone:1")
    seen.fleet.request_failed("http://gone:1", "timeout", connect=True)
    seen.fleet.release("http://gone:1")
    assert seen.events == []


def test_reports_of_requests_reach_the_right_worker_and_say_nothing_without_a_change():
    now = [0.0]
    seen = Observed(clock=lambda: now[0])
    seen.fleet.apply([A, B])
    for entry in seen.fleet._entries.values():
        entry.server.healthy()
    seen.events.clear()
    for _ in range(100):
        seen.fleet.request_ok(A.url)
    assert seen.events == []
    for _ in range(3):
        seen.fleet.request_failed(B.url, "timeout")
    assert [w.state for w in seen.fleet.workers()] == [State.UP, State.SUSPECT]
    seen.fleet.request_failed(A.url, "cannot schedule new futures after shutdown", refused=True)
    assert seen.worker(0).state is State.DRAINING
    seen.fleet.request_ok(B.url)
    assert seen.worker(1).state is State.UP
    assert len(seen.events) == 3


def test_a_subscriber_that_fails_stops_nothing(caplog):
    def on_event(_event):
        raise RuntimeError("a mistake")

    fleet = Fleet(FleetSettings(), time.monotonic, on_event)
    fleet.add(A)
    assert len(fleet.workers()) == 1
    assert "WorkerJoined was not taken up" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"scrape_stale_s": 5.0}, "scrape_stale_s"),
        ({"remove_after_s": -1.0}, "remove_after_s"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(wrong, name):
    with pytest.raises(ValueError, match=name):
        FleetSettings(**wrong)
    with pytest.raises(ValueError, match="probe_every_s"):
        PollerSettings(probe_every_s=0.0)
