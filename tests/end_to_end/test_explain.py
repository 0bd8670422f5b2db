"""Why a request waited, or went there: asked while it waits, while it runs, and afterwards."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
from gateway_under_test import MODEL, in_thread, running_fleet, until
from typer.testing import CliRunner

from policies.fleet.obstacle import Obstacle
from policies.model import AttemptFailure, Reason, RejectReason
from router.commands.cli import cli
from router.commands.explain_text import as_text
from router.control.explanation import NotTaken
from workers.simulator.faults import Fault

KEY = "an-admin-key-of-this-test"
ADMIN = {"admin": {"key": KEY}}
OPERATOR = {"authorization": f"Bearer {KEY}"}
SLOW = {"profile": "h100-llama-3.1-8b"}
ONE_SLOT = {"worker": {"max_num_seqs": 1}, **ADMIN}


def chat(text="hello", tokens=4, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more}


def ask(fleet, name, **more):
    return fleet.http.post("/v1/chat/completions", json=chat(**more), headers={"x-request-id": name})


async def explained(fleet, name):
    return (await fleet.http.get(f"/admin/requests/{name}", headers=OPERATOR)).json()["requests"]


async def listed(fleet, **query):
    return (await fleet.http.get("/admin/requests", params=query, headers=OPERATOR)).json()


async def test_of_a_request_that_has_ended_all_is_said():
    async with running_fleet(2, **ADMIN) as fleet:
        await ask(fleet, "first", text="a long beginning " * 200)
        answer = await ask(fleet, "second", text="a long beginning " * 200)
        assert answer.status_code == 200
        (told,) = await explained(fleet, "second")
        assert (told["state"], told["model"], told["client"]) == ("completed", MODEL, "anonymous")
        (attempt,) = told["attempts"]
        assert attempt["reason"] == "hit"
        assert {row["worker"] for row in attempt["workers"]} == {worker.url for worker in fleet.workers}
        assert {row["why_not"] for row in attempt["workers"]} == {None, "costs_more"}
        assert attempt["matched_tokens"] > 100
        assert told["found"]["cached_tokens"] > 100
        assert told["found"]["matched_tokens"] == attempt["matched_tokens"]
        assert told["ended"]["outcome"] == "completed"
        assert 0 <= attempt["at_s"] <= told["ended"]["at_s"] == told["age_s"]
        page = (await fleet.http.get("/admin/requests/second", headers=OPERATOR)).json()
        assert [line["request_id"] for line in page["log"]] == ["second"]


async def test_while_a_request_waits_it_is_said_for_what_and_how_the_workers_look_to_it():
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, **ONE_SLOT) as fleet:
        running = asyncio.create_task(ask(fleet, "running", tokens=200, ignore_eos=True))
        await until(lambda: fleet.running == 1)
        waiting = asyncio.create_task(ask(fleet, "waiting"))
        pool = fleet.gateway.gateway.pools.by_model[MODEL]
        await until(lambda: pool.scheduler.queued == 1)
        (told,) = await explained(fleet, "waiting")
        assert told["state"] == "waiting"
        assert told["now"]["waits_for"] == "slot"
        assert [row["why_not"] for row in told["now"]["workers"]] == ["slot"]
        assert told["now"]["waiting"] == told["now"]["of_this_client"] == 1
        page = await listed(fleet)
        assert [(row["request_id"], row["state"]) for row in page["requests"]] == [
            ("waiting", "waiting"),
            ("running", "running"),
        ]
        assert (page["waiting"], page["open"]) == (1, 2)
        assert [row["request_id"] for row in (await listed(fleet, state="waiting"))["requests"]] == ["waiting"]
        await asyncio.gather(running, waiting)
        (told,) = await explained(fleet, "waiting")
        assert [wait["for"] for wait in told["waits"]] == ["slot"]
        assert told["waits"][0]["for_s"] == pytest.approx(told["waited_s"], abs=0.01)
        assert "waited" in as_text({"requests": [told]})
        await fleet.at_rest()


async def test_a_request_whose_client_leaves_while_it_waits_is_kept_with_what_it_waited_for():
    async with running_fleet(1, {**SLOW, "max_num_seqs": 1}, **ONE_SLOT) as fleet:
        running = asyncio.create_task(ask(fleet, "running", tokens=100, ignore_eos=True))
        await until(lambda: fleet.running == 1)
        waiting = asyncio.create_task(ask(fleet, "waiting"))
        pool = fleet.gateway.gateway.pools.by_model[MODEL]
        await until(lambda: pool.scheduler.queued == 1)
        await asyncio.sleep(0.05)
        waiting.cancel()
        await until(lambda: pool.scheduler.queued == 0)
        (told,) = await explained(fleet, "waiting")
        assert (told["state"], [wait["for"] for wait in told["waits"]]) == ("cancelled", ["slot"])
        await running


async def test_an_attempt_that_failed_is_said_and_its_worker_is_left_out_of_the_next():
    async with running_fleet(2, **ADMIN) as fleet:
        for worker in fleet.workers:
            worker.set_fault(Fault("error_500"))
        assert (await ask(fleet, "tried")).status_code == 500
        (told,) = await explained(fleet, "tried")
        first, second = told["attempts"]
        assert told["state"] == "failed"
        assert (first["failed"]["reason"], first["failed"]["on"]) == ("error", first["worker"])
        why = {row["worker"]: row["why_not"] for row in second["workers"]}
        assert why == {second["worker"]: None, first["worker"]: "failed_before"}


async def test_who_is_turned_away_by_a_limit_is_explained_too():
    clients = [{"name": "team", "keys": ["a-key-of-the-team-here"], "max_concurrent": 1, "requests_per_minute": 1}]
    async with running_fleet(1, clients=clients, **ADMIN) as fleet:
        key = {"authorization": "Bearer a-key-of-the-team-here"}
        for name in ("one", "two"):
            await fleet.http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": name, **key})
        (told,) = await explained(fleet, "two")
        assert (told["state"], told["client"], told["attempts"]) == ("rejected", "team", [])
        assert "requests per minute" in told["ended"]["why"]


async def test_one_id_that_clients_gave_twice_shows_both_the_newest_first():
    async with running_fleet(1, **ADMIN) as fleet:
        for tokens in (1, 2):
            await ask(fleet, "same/id", tokens=tokens)
        told = (await fleet.http.get("/admin/requests/same%2Fid", headers=OPERATOR)).json()["requests"]
        assert [one["found"]["output_tokens"] for one in told] == [2, 1]


async def test_a_name_in_the_body_is_the_one_that_is_explained():
    async with running_fleet(1, **ADMIN) as fleet:
        await fleet.http.post("/v1/chat/completions", json=chat(request_id="from-the-body"))
        assert len(await explained(fleet, "from-the-body")) == 1


async def test_an_unknown_request_and_bad_questions_get_an_error_that_says_what():
    async with running_fleet(1, **ADMIN) as fleet:
        answer = await fleet.http.get("/admin/requests/nothing", headers=OPERATOR)
        assert answer.status_code == 404
        assert "`nothing`" in answer.json()["error"]["message"]
        answer = await fleet.http.get("/admin/requests?limit=0", headers=OPERATOR)
        assert (answer.status_code, "limit" in answer.json()["error"]["message"]) == (400, True)
        assert (await fleet.http.get("/admin/requests/nothing")).status_code == 401


async def test_the_last_thousand_are_kept_and_no_more():
    async with running_fleet(1, **ADMIN) as fleet:
        histories = fleet.gateway.gateway.control.histories
        assert histories._ended.maxlen == 1000
        await ask(fleet, "r")
        kept = next(histories.latest())
        held = [getattr(kept, name) for name in kept.__slots__]
        assert not any(isinstance(value, bytes) for value in held)  # nor the prompt


# -- the commands


@pytest.fixture(scope="module")
def fleet():
    with in_thread(lambda: running_fleet(2, listen={"port": 0}, admin={"key": KEY, "port": 0})) as made:
        yield made


def fairlead(fleet, *arguments, key=KEY, url=None):
    environment = {"FAIRLEAD_URL": url or fleet.gateway.admin_url, "FAIRLEAD_ADMIN_KEY": key}
    return CliRunner().invoke(cli, arguments, env=environment)


def test_the_command_answers_why(fleet):
    body = chat("a question")
    httpx.post(f"{fleet.gateway.url}/v1/chat/completions", json=body, headers={"x-request-id": "asked"})
    result = fairlead(fleet, "explain", "asked")
    assert result.exit_code == 0, result.output
    for worker in fleet.workers:
        assert worker.url in result.output
    assert "request asked of anonymous" in result.output
    assert "cached prefix: expected" in result.output
    assert json.loads(fairlead(fleet, "explain", "asked", "--json").output)["requests"]
    table = fairlead(fleet, "requests")
    assert table.exit_code == 0
    assert "asked" in table.output


def test_wrong_questions_are_one_line_with_status_2(fleet):
    for result, words in (
        (fairlead(fleet, "explain", "nothing"), "`nothing`"),
        (fairlead(fleet, "explain", "x", key="a-wrong-key-of-this-test"), "does not take this key"),
        (fairlead(fleet, "explain", "x", key=""), "FAIRLEAD_ADMIN_KEY"),
        (fairlead(fleet, "explain", "x", url=fleet.gateway.url), "there is no admin API at this address"),
        (fairlead(fleet, "explain", "x", url="localhost"), "is no URL"),
        (fairlead(fleet, "explain", "x", "--key-file", "/no/such/file"), "cannot be read"),
    ):
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_gateway_that_is_not_there_is_one_line_with_status_1(fleet):
    result = fairlead(fleet, "explain", "x", url="http://127.0.0.1:9")
    assert (result.exit_code, "does not answer" in result.stderr) == (1, True)


# -- the glossary


def test_the_operating_guide_explains_every_reason_and_no_other():
    text = (Path(__file__).parents[2] / "deploy/runbook.md").read_text()
    section = re.search(r"^## Words of explanations\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    explained = [
        word
        for cell in re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
        for word in re.findall(r"`(\w+)`", cell)
    ]
    known = [one.value for kind in (Obstacle, NotTaken, Reason, RejectReason, AttemptFailure) for one in kind]
    assert sorted(explained) == sorted(known)
