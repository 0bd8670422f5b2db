"""The measurement of the data plane, run for a moment: what it reports adds up, and it notices broken answers."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.dataplane import kernel
from benchmarks.dataplane.__main__ import backends
from benchmarks.dataplane.backend import CHUNK, answer_to
from benchmarks.dataplane.client import Client, Question, Requests, Tally
from benchmarks.dataplane.load import KEYS, Load, under_load
from benchmarks.dataplane.routers import found
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
    assert len(tally.first_s) == tally.done


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


def test_a_peer_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(NotInstalledError, match="smg"):
        found("smg", tmp_path)


# -- the whole of it


async def test_a_run_reports_every_figure_and_names_who_is_not_there(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.dataplane", "--peers", "smg", "--peers-at", str(tmp_path)),
        *("--scenarios", "plain", "--seconds", "0.5", "--rounds", "1", "--workers", "2"),
        *("--json", str(tmp_path / "report.json")),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    report = json.loads((tmp_path / "report.json").read_text())
    for scenario in report["scenarios"].values():
        assert "smg" in scenario["left_out"]["smg"]
        assert scenario["failed"] == {}
        for figure in scenario["figures"]:
            assert list(figure["values"]) == ["fairlead"]
    cost, rate = report["scenarios"]["plain"]["figures"]
    assert cost["values"]["fairlead"][0] > 0
    assert rate["values"]["fairlead"][0] > 0
