"""The questions of the operating guide are answered by the commands that stand beside them."""

import asyncio
import re
import shlex
from pathlib import Path

import httpx
import pytest
from gateway_under_test import MODEL, in_thread, running_fleet
from typer.testing import CliRunner

from router.commands.cli import cli
from workers.simulator.faults import Fault

KEY = "an-admin-key-of-this-test"
OPERATOR = {"authorization": f"Bearer {KEY}"}
GUIDE = (Path(__file__).parents[2] / "deploy/runbook.md").read_text()
QUESTIONS = dict(
    re.findall(
        r"^\| ([^|]*\?) \| `(fairlead [^`]*)`",
        GUIDE.partition("## Ten questions")[2].partition("\n## ")[0],
        re.MULTILINE,
    )
)


@pytest.fixture(scope="module")
def fleet():
    with in_thread(lambda: running_fleet(2, admin={"key": KEY})) as made:
        dead = made.workers[1]
        url = made.gateway.url
        with httpx.Client(base_url=url, timeout=20) as http:
            limits = {"name": "CLIENT", "tokens_per_day": 100}
            key = http.post("/admin/keys", json=limits, headers=OPERATOR).json()["key"]
            http.post("/admin/keys", json={"name": "other", "tokens_per_day": 10**9}, headers=OPERATOR)
            headers = {"authorization": f"Bearer {key}", "x-request-id": "REQUEST_ID"}
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            assert http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
            dead.set_fault(Fault("hang", probes=True))
            for _ in range(200):
                states = http.get("/admin/workers", headers=OPERATOR).json()["workers"]
                if any(row["state"] == "down" for row in states):
                    break
                asyncio.run(asyncio.sleep(0.05))
        yield made


def test_there_are_ten():
    assert len(QUESTIONS) == 10


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_question_is_answered_by_its_command(fleet, question):
    command = QUESTIONS[question].replace("WORKER_URL", fleet.workers[0].url)
    environment = {"FAIRLEAD_URL": fleet.gateway.url, "FAIRLEAD_ADMIN_KEY": KEY, "COLUMNS": "120"}
    result = CliRunner().invoke(cli, shlex.split(command)[1:], env=environment)
    assert result.exit_code == 0, result.output
    said = {
        "How is the fleet, at a glance?": "2 workers",
        "Who is hogging it?": "100%",
        "Which worker is dead, and why?": "down",
        "Who waits, and for how long?": "0 wait",
        "Why did this request wait, or go there?": "attempt 1",
        "What became of a client's last requests?": "completed",
        "Whose key is nearly spent?": "of 100 tokens-day left",
        "What may this key do, and what has it used?": "of 100 left",
        "How do I take a worker out for maintenance?": "drains",
        "What would two more GPUs buy?": "ttft",
    }[question]
    assert said in result.output.lower() if said == "ttft" else said in result.output
    if question.startswith("Which worker"):
        first = result.output.splitlines()[1]
        assert first.startswith(fleet.workers[1].url)
        assert "healthy" in first or "probe" in first or "answer" in first
    if question.startswith("Whose key"):
        assert result.output.splitlines()[1].startswith("CLIENT")
