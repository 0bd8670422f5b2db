"""The fleet at a glance: the API behind it, the page in a real browser, and the terminal."""

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from gateway_under_test import MODEL, in_thread, running_fleet, until
from rich.console import Console
from typer.testing import CliRunner

from router.commands.cli import cli
from router.commands.top_screen import screen
from router.control.pages.live import MOST_VIEWERS

KEY = "an-admin-key-of-this-test"
ADMIN = {"admin": {"key": KEY}}
OPERATOR = {"authorization": f"Bearer {KEY}"}
PICTURES = os.environ.get("FAIRLEAD_PICTURES")
"""A folder in which to keep what the pages look like."""
SLOW = {"profile": "h100-llama-3.1-8b", "max_num_seqs": 1}


def ask(fleet, name, **more):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 4, **more}
    return fleet.http.post("/v1/chat/completions", json=body, headers={"x-request-id": name})


async def overview(fleet):
    return (await fleet.http.get("/admin/overview", headers=OPERATOR)).json()


# -- the API


async def test_the_overview_says_who_runs_who_waits_and_what_was_decided():
    async with running_fleet(1, SLOW, worker={"max_num_seqs": 1}, **ADMIN) as fleet:
        await ask(fleet, "before", user="carl")
        running = asyncio.create_task(ask(fleet, "running", user="ann", max_tokens=200, ignore_eos=True))
        await until(lambda: fleet.running == 1)
        waiting = asyncio.create_task(ask(fleet, "waiting", user="bob"))
        pool = fleet.gateway.gateway.pools.by_model[MODEL]
        await until(lambda: pool.scheduler.queued == 1)
        told = await overview(fleet)
        assert (told["open"], told["queued"]) == (2, 1)
        (worker,) = told["workers"]
        assert (worker["state"], worker["batch"], worker["slots"]) == ("up", 1, 1)
        assert worker["requests_last_minute"] == 1
        clients = {row["client"]: row for row in told["clients"]}
        assert (clients["bob"]["waiting"], clients["ann"]["running"], clients["carl"]["share"]) == (1, 1, 1.0)
        assert [row["request_id"] for row in told["waiting"]] == ["waiting"]
        assert [row["request_id"] for row in told["decisions"]] == ["before"]
        await asyncio.gather(running, waiting)


async def test_however_many_look_it_is_made_once():
    async with running_fleet(1, **ADMIN) as fleet:
        first, *others = await asyncio.gather(*(overview(fleet) for _ in range(8)))
        assert all(one["time"] == first["time"] for one in others)


async def test_events_come_once_a_second_and_end_with_their_reader():
    async with running_fleet(1, **ADMIN) as fleet:
        async with fleet.http.stream("GET", "/admin/events", headers=OPERATOR) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            seen = []
            while len(seen) < 2:
                line = await anext(lines)
                if line:
                    seen.append(json.loads(line.removeprefix("data: ")))
            assert seen[1]["time"] > seen[0]["time"]
        await ask(fleet, "after")
        assert (await fleet.http.get("/admin/workers", headers=OPERATOR)).status_code == 200


async def test_there_are_only_so_many_viewers(monkeypatch):
    async with running_fleet(1, **ADMIN) as fleet:
        monkeypatch.setattr("router.control.pages.live.MOST_VIEWERS", 0)
        answer = await fleet.http.get("/admin/events", headers=OPERATOR)
        assert answer.status_code == 429
        assert MOST_VIEWERS == 32


@pytest.mark.parametrize("own_port", [False, True])
async def test_the_page_needs_no_key_and_holds_no_data_and_the_rest_needs_one(own_port):
    admin = {"key": KEY, **({"port": 0} if own_port else {})}
    async with running_fleet(1, admin=admin) as fleet:
        base = fleet.gateway.admin_url if own_port else f"{fleet.gateway.url}/admin"
        for path in ("/status", "/status.js", "/status.css"):
            answer = await fleet.http.get(base + path)
            assert answer.status_code == 200
            assert fleet.workers[0].url not in answer.text
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert (await fleet.http.post(base + path)).status_code == 401
        for path in ("/overview", "/events", "/requests", "/keys", "/status/x", "/status.jsx"):
            assert (await fleet.http.get(base + path)).status_code == 401


async def test_status_leads_to_the_operators_page_where_that_is_on_the_same_port():
    async with running_fleet(1, **ADMIN) as fleet:
        answer = await fleet.http.get("/status")
        assert (answer.status_code, answer.headers["location"]) == (307, "/admin/status")
    async with running_fleet(1) as fleet:
        assert (await fleet.http.get("/status")).status_code == 404


# -- in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("phone", 390, False)]
)
async def test_in_a_browser_the_page_shows_the_fleet_explains_and_drains(tmp_path, name, width, dark):
    async with (
        running_fleet(2, SLOW, worker={"max_num_seqs": 1}, **ADMIN) as fleet,
        browser(tmp_path / "profile") as page,
    ):
        await ask(fleet, "first", user="ann")
        long = [
            asyncio.create_task(ask(fleet, f"long-{n}", user="<b>bob</b>", max_tokens=6000, ignore_eos=True))
            for n in range(3)
        ]
        pool = fleet.gateway.gateway.pools.by_model[MODEL]
        await until(lambda: pool.scheduler.queued == 1)
        await page.open(width=width, dark=dark)
        await page.go(f"{fleet.gateway.url}/status")
        await page.until("document.readyState === 'complete' && !document.getElementById('login').hidden")
        await page.run("key = ''; document.getElementById('key').value = 'a-wrong-key-of-this-test'")
        await page.run("document.querySelector('#login button').click()")
        await page.until("document.getElementById('refused').textContent.includes('needs its key')")
        await page.run(f"document.getElementById('key').value = '{KEY}'")
        await page.run("document.querySelector('#login button').click()")
        await page.until("document.querySelectorAll('#workers tr').length === 3")
        await page.until("document.querySelectorAll('#waiting a').length === 1")
        assert await page.run("document.querySelector('#clients').textContent.includes('_b_bob')")
        assert await page.run("document.querySelectorAll('#clients b').length") == 0
        wide = await page.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert wide, "the page itself does not scroll sideways"
        background = await page.run("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
        await page.run("document.getElementById('request').value = 'first'")
        await page.run("document.querySelector('#find button').click()")
        await page.until("document.getElementById('why').textContent.includes('attempt 1')")
        if PICTURES:
            (Path(PICTURES) / f"status-{name}.png").write_bytes(await page.picture())
        page.accepts = False
        first = fleet.workers[0].url
        button = f"[...document.querySelectorAll('#workers tr')].find(r => r.textContent.includes('{first}'))"
        state = f"{button}.cells[1].textContent"
        await page.run(f"{button}.querySelector('button').click()")
        assert page.confirmations
        assert await page.run(state) == "up"
        page.accepts = True
        await page.run(f"{button}.querySelector('button').click()")
        await page.until(f"{state}.startsWith('draining')")
        await page.run(f"{button}.querySelector('button').click()")
        await page.until(f"{state} === 'up'")
        assert {url.partition("/admin")[0].removesuffix("/status") for url in page.asked} == {fleet.gateway.url}
        assert [problem for problem in page.problems if "401" not in problem] == []
        for task in long:
            task.cancel()


# -- in a terminal


@pytest.fixture(scope="module")
def fleet():
    with in_thread(lambda: running_fleet(2, admin={"key": KEY, "port": 0})) as made:
        yield made


def fairlead(fleet, *arguments):
    environment = {"FAIRLEAD_URL": fleet.gateway.admin_url, "FAIRLEAD_ADMIN_KEY": KEY, "COLUMNS": "120"}
    return CliRunner().invoke(cli, arguments, env=environment)


def test_top_prints_one_screen_that_fits_the_terminal(fleet):
    result = fairlead(fleet, "top", "--once")
    assert result.exit_code == 0, result.output
    for worker in fleet.workers:
        assert worker.url in result.output
    assert max(map(len, result.output.splitlines())) <= 120


def test_top_follows_its_keys_in_a_terminal_and_leaves_it_as_it_was(fleet):
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (32, 120))
    before = termios.tcgetattr(its)
    environment = {
        **os.environ,
        "FAIRLEAD_URL": fleet.gateway.admin_url,
        "FAIRLEAD_ADMIN_KEY": KEY,
        "TERM": "xterm",
    }
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    command = [sys.executable, "-c", "from router.commands.cli import main; main()", "top"]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        seen = ""

        def sees(words):
            nonlocal seen
            deadline = time.monotonic() + 30
            while words not in seen:
                assert time.monotonic() < deadline, seen[-2000:]
                ready, _, _ = select.select([ours], [], [], 0.2)
                seen += os.read(ours, 65536).decode(errors="replace") if ready else ""
            seen = ""

        sees("sorted by worker")
        os.write(ours, b"b")
        sees("sorted by batch")
        os.write(ours, b" ")
        sees("paused")
        os.write(ours, b"q")
        assert process.wait(timeout=20) == 0
    assert termios.tcgetattr(its)[3] == before[3]
    os.close(ours)
    os.close(its)


def row(name, **more):
    return {
        "worker": name,
        "state": "up",
        "why": None,
        "batch": 0,
        "slots": 4,
        "prefill_owed_tokens": 0,
        "kv_share": None,
        "kv_reserved_tokens": 0,
        "hit_share": None,
        "tokens_per_s": 0.0,
        **more,
    }


def shown(told, sort="worker", rows=60):
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the test only
    with console.file:
        console.print(screen(told, sort, rows=rows, paused=False))
        return console.export_text()


def test_workers_are_sorted_and_a_name_cannot_move_the_cursor():
    told = {"time": 0.0, "open": 0, "queued": 0, "clients": [], "decisions": []}
    told["workers"] = [row("a", batch=1), row("b\x1b[2J", batch=3), row("[red]c", batch=2)]
    text = shown(told, "batch")
    assert text.index("b\\x1b") < text.index("[red]c") < text.index("a  ")
    assert "\x1b" not in text


def test_a_screen_of_few_lines_shows_a_part_of_each_table():
    decision = {
        "request_id": "r",
        "client": "c",
        "worker": "w",
        "reason": "hit",
        "matched_tokens": 1,
        "cached_tokens": 1,
    }
    decision |= {"waited_s": 0.0, "age_s": 1.0, "state": "completed"}
    told = {"time": 0.0, "open": 0, "queued": 0, "clients": [], "decisions": [decision] * 30}
    told["workers"] = [row(f"w{number}") for number in range(100)]
    assert len(shown(told, rows=24).splitlines()) <= 24


def test_top_of_no_gateway_is_one_line(fleet):
    result = CliRunner().invoke(
        cli, ["top"], env={"FAIRLEAD_URL": "http://127.0.0.1:9", "FAIRLEAD_ADMIN_KEY": "k"}
    )
    assert (result.exit_code, "does not answer" in result.stderr) == (1, True)
