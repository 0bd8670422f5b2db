"""The measurement of the data plane, run for a moment: what it reports adds up, and it notices broken answers."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.dataplane import kernel, metrics_page, page, parts
from benchmarks.dataplane.__main__ import backends
from benchmarks.dataplane.backend import CHUNK, answer_to
from benchmarks.dataplane.client import Client, Question, Requests, Tally
from benchmarks.dataplane.gaps import Row
from benchmarks.dataplane.load import KEYS, Load, under_load
from benchmarks.dataplane.routers import found
from benchmarks.dataplane.soak import Sample, Soaked
from benchmarks.fleet.routers import NotInstalledError

ROOT = Path(__file__).parents[2]
STREAM = Question(prompt_bytes=512, tokens=5, spacing_ms=1)
WHOLE = Question(prompt_bytes=512, tokens=5, spacing_ms=0, stream=False)


def requests(question, users=2):
    return Requests(question, "http://host:1", KEYS, users=users, seed=0)


def body_of(request):
    head, _, body = request.partition(b"\r\n\r\n")
    assert int(head.lower().partition(b"content-length: ")[2].split()[0]) == len(body)
    return json.loads(body)


# -- the load


def test_no_two_requests_have_the_same_prompt_and_users_take_turns():
    made = requests(STREAM)
    bodies = [body_of(made.next()) for _ in range(200)]
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert len(set(prompts)) == 200
    assert {len(prompt) for prompt in prompts} == {512}
    assert len({body["user"] for body in bodies}) == 2
    assert len({body_of(made.next())["user"] for made in [requests(STREAM, users=0)] for _ in range(50)}) == 50
    # Some begin alike for half their length.
    assert 1 < len({prompt[:200] for prompt in prompts if prompt[:8] != "########"}) < 200


def test_requests_depend_on_the_seed_alone():
    assert requests(STREAM).next() == requests(STREAM).next()
    other = Requests(STREAM, "http://host:1", KEYS, users=2, seed=1)
    assert other.next() != requests(STREAM).next()


@pytest.mark.parametrize("load", [Load(STREAM, 4), Load(WHOLE, 4), Load(WHOLE, 4, rate=200)])
async def test_a_load_counts_what_was_answered(load):
    async with backends(1) as (url,), under_load(url, load) as tally:
        while tally.done < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert tally.failed == tally.open == tally.left == 0
    assert tally.chunks == (5 * tally.done if load.question.stream else tally.chunks)
    assert len(tally.first_s) == len(tally.whole_s) == tally.done
    assert tally.streaming == 0
    assert all(first <= whole for first, whole in zip(sorted(tally.first_s), sorted(tally.whole_s), strict=True))


async def test_in_an_open_loop_a_stall_counts_for_everybody_who_was_due_meanwhile():
    go_on = asyncio.Event()
    pieces = answer_to(requests(WHOLE).next())
    serving = []

    async def answer(reader, writer):
        serving.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
                await go_on.wait()
                writer.write(pieces[0])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with under_load(url, Load(WHOLE, 0, rate=100)) as tally:
            while tally.open < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            go_on.set()
        await asyncio.wait(serving)
    # The first was due 0.19 s before the twentieth, however late either of them was sent.
    assert max(tally.whole_s) > 0.19
    assert tally.failed == 0


async def test_times_count_from_when_a_request_was_due():
    async with backends(1) as (url,):
        tally = Tally()
        loop = asyncio.get_running_loop()
        port = int(url.rpartition(":")[2])
        _, client = await loop.create_connection(lambda: Client(tally), "127.0.0.1", port)
        await client.ask(WHOLE, requests(WHOLE).next(), time.perf_counter() - 100)
        client.transport.abort()
    assert tally.first_s[0] > 100
    assert tally.whole_s[0] > 100


async def test_clients_that_hang_up_at_the_end_are_no_failures_and_do_not_wait_for_the_rest():
    question = Question(512, 1000, 1000)  # a quarter of an hour
    async with backends(1) as (url,):
        async with under_load(url, Load(question, 5, hang_up=True)) as tally:
            while tally.streaming < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (tally.left, tally.open, tally.streaming, tally.failed) == (5, 0, 0, 0)


async def test_a_slow_reader_gets_all_of_a_long_answer_in_the_end():
    question = Question(512, 2000, 0)
    async with backends(1) as (url,):
        load = Load(question, 3, slow=1.0, pause_s=0.3, receive_buffer=16_384)
        async with under_load(url, load) as tally:
            while tally.streaming < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert tally.done == 0
        assert tally.failed == 0
        assert tally.done >= 3


async def test_clients_that_leave_and_clients_that_dawdle_are_no_failures():
    async with backends(1) as (url,):
        load = Load(Question(512, 50, 10), 8, leaving=0.9)
        async with under_load(url, load) as tally:
            while tally.left < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert tally.failed == tally.open == 0
        async with under_load(url, Load(STREAM, 2, slow=1.0)) as tally:
            while tally.done < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert tally.failed == 0


@pytest.mark.parametrize("what", ["a chunk is missing", "it breaks off", "an error", "it is no HTTP"])
async def test_an_answer_that_is_not_whole_is_a_failure(what):
    pieces = answer_to(requests(STREAM).next())
    answers = {
        "a chunk is missing": b"".join(pieces).replace(CHUNK, b"", 1),
        "it breaks off": b"".join(pieces[:-1]),
        "an error": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno",
        "it is no HTTP": b"none",
    }

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[what])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        tally = Tally()
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(tally), "127.0.0.1", port)
        await client.ask(STREAM, requests(STREAM).next())
        client.transport.abort()
    assert (tally.done, tally.failed) == (0, 1)
    assert tally.faults


# -- the page of metrics


async def test_the_page_of_metrics_is_read_with_every_pair_of_client_and_adapter_asked():
    measured = await metrics_page.run(("fairlead",), metrics_page.Shape(2, 3, 1, 8), scrapes=2)
    one = measured["fairlead"]
    assert one.failed == 0
    assert one.lines > 500, "four models and two clients"
    assert one.page_ms <= one.longest_page_ms
    assert one.rest_ms > 0
    assert one.stop_ms > 0


# -- the machine


async def test_cpu_and_memory_are_those_of_the_whole_tree():
    work = "sum(range(10_000_000)); x = bytearray(60_000_000); print(flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", nested), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    await process.stdout.readline()
    assert len(kernel.processes(process.pid)) == 2
    assert kernel.cpu_s(process.pid) > 0.03
    seen = kernel.memory(process.pid)
    assert seen.pss > 60_000_000
    assert seen.peak_rss >= 60_000_000
    await process.communicate(b"\n")
    assert kernel.cpu_s(process.pid) == 0.0


def test_what_is_reached_twice_counts_once_and_for_its_own_part():
    shared, program = bytearray(50_000), [json]
    tree, scheduler = {"edges": bytearray(200_000), "shared": shared}, [bytearray(100_000)]
    scheduler += [tree, shared, program]
    seen = parts.sizes({"tree": [tree], "scheduler": [scheduler]})
    assert 250_000 < seen["tree"] < 251_000
    assert 100_000 < seen["scheduler"] < 101_000
    without = parts.sizes({"tree": [tree], "scheduler": [scheduler]}, [shared])
    assert without["tree"] == seen["tree"] - sys.getsizeof(shared)


def test_only_counters_that_are_not_back_at_zero_are_held():
    at_rest = """# HELP fairlead_open_requests Requests
fairlead_open_requests 0.0
fairlead_prefix_tree_nodes{tree="a"} 12.0
fairlead_worker_connections{worker="w",state="idle"} 3.0
fairlead_worker_connections{worker="w",state="busy"} 0.0
"""
    assert page.parsed(at_rest).held() == {}
    assert page.told({}) == "every counter is back at zero"
    busy = at_rest.replace("requests 0.0", "requests 2.0").replace('"busy"} 0.0', '"busy"} 1.0')
    assert page.parsed(busy).held() == {"fairlead_open_requests": 2, "fairlead_worker_connections, busy": 1}
    assert page.parsed(busy).total("fairlead_worker_connections") == 4


def soaked(*rss, **found):
    samples = [Sample(number * 100, 0.0, value, {}, {}) for number, value in enumerate(rss, 1)]
    return Soaked(samples, **{"failed": 0, "faults": [], "held": {}, **found})


def test_memory_is_flat_if_it_stays_within_a_twentieth_of_what_it_was_half_way():
    assert soaked(10, 50, 100, 104, 103, 101).good
    assert not soaked(10, 50, 100, 106, 103, 101).good
    assert not soaked(100, 100, held={"fairlead_open_requests": 1}).good
    assert not soaked(100, 100, failed=1).good


def test_a_peer_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(NotInstalledError, match="smg"):
        found("smg", tmp_path)


# -- the whole of it


async def ran(*words):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    told, _ = await process.communicate()
    return process.returncode, told.decode()


async def test_too_few_open_files_are_said_before_anything_starts():
    status, told = await ran("benchmarks.dataplane", "--scenarios", "memory", "--streams", "10000000000")
    assert status == 2
    assert "'memory' needs 20000000500 open files" in told


async def test_a_soak_reports_memory_by_part_and_what_is_left(tmp_path):
    file = tmp_path / "soak.json"
    status, told = await ran(
        "benchmarks.dataplane.soak", "--requests", "200", "--samples", "2", "--json", str(file)
    )
    report = json.loads(file.read_text())
    assert report["failed"] == 0, told
    assert report["held"] == {}, told
    assert status == (0 if report["good"] else 1)
    first, last = report["samples"]
    assert 100 <= first["requests"] < last["requests"]
    for sample in (first, last):
        assert all(sample["parts"][name] > 0 for name in parts.PARTS)
        assert sample["rss"] > sum(sample["parts"].values())
        assert sample["tables"]["tree nodes"] > 0


async def test_a_run_reports_every_figure_and_names_who_is_not_there(tmp_path):
    status, told = await ran(
        *("benchmarks.dataplane", "--peers", "smg", "--peers-at", str(tmp_path)),
        *("--scenarios", "plain", "--seconds", "0.5", "--rounds", "1", "--workers", "2"),
        *("--json", str(tmp_path / "report.json")),
    )
    assert status == 0, told
    report = json.loads((tmp_path / "report.json").read_text())
    for scenario in report["scenarios"].values():
        assert "smg" in scenario["left_out"]["smg"]
        assert scenario["failed"] == {}
        for figure in scenario["figures"]:
            assert list(figure["values"]) == ["fairlead"]
    cost, rate, p50, p99, peak = (
        figure["values"]["fairlead"][0] for figure in report["scenarios"]["plain"]["figures"]
    )
    assert cost > 0
    assert rate > 0
    assert 0 < p50 <= p99
    assert 20 < peak < 2000


@pytest.mark.parametrize(
    ("gap", "machine", "step", "requests", "stops"),
    [
        (49.0, 3.0, 60.0, 1, False),  # no stream has stood still
        (51.0, 3.0, 5.0, 1, True),  # the machine is quiet: it was the gateway, wherever it spent the time
        (400.0, 26.0, 49.0, 1, False),  # the machine is loud, and the gateway's own step short
        (400.0, 390.0, 51.0, 1, True),
        (400.0, 3.0, 400.0, 60, False),  # many requests are no single one
    ],
)
def test_a_gap_is_the_gateways_unless_the_machine_is_loud_and_its_own_steps_are_short(
    gap, machine, step, requests, stops
):
    row = Row("a shape", 1, "200", gap, machine, step, requests, 0, 0, 0)
    assert row.stops_others(50.0) is stops
