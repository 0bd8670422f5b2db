"""What vLLM does when it is full, paused, told to end, or dead; the gateway in front keeps its clients out of it.

Each test has a gateway over one server that it spoils and one that stays healthy. Requests take turns, so that
half of them meet the trap.
"""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import httpx
import pytest
from gateway_under_test import running_gateway, until
from real_vllm import Wanted, wait_until_healthy

pytestmark = pytest.mark.timeout(400)

FULL = 8
"""What the fixture `limited` takes at once."""
DRAINING = Wanted(args=("--shutdown-timeout", "150"), environment=(("VLLM_SERVER_DEV_MODE", "1"),))
WORDS = "What is the capital of France?"
TURNS = {"messages": [{"role": "user", "content": WORDS}], "ignore_eos": True}
ASKS = {
    "/v1/chat/completions": TURNS,
    "/v1/completions": {"prompt": WORDS, "ignore_eos": True},
    "/v1/responses": {"input": WORDS, "ignore_eos": True},
    "/v1/messages": TURNS,
}
SAY_SO = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
"""Where vLLM says that it gives an answer up. On `/v1/responses` it calls such an answer complete."""
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 3, "scrape_every_s": 0.5, "stale_after_s": 5}
"""Servers that share two cores answer late now and then."""


@pytest.fixture(scope="module")
def draining(servers):
    """A server that may be paused, and drains before it ends."""
    return servers.fresh(DRAINING)[0]


@asynccontextmanager
async def gateway_over(*servers, **settings):
    urls = [server.url for server in servers]
    settings = {"policies": {"placement": "round_robin"}, "health": PATIENT, **settings}
    async with running_gateway(urls, **settings) as gateway:
        await until(
            lambda: all(state(gateway, server) == "up" for server in servers),
            lambda: [worker(gateway, server) for server in servers],
            within_s=20,
        )
        yield gateway
        await gateway.at_rest()


def body(path, *, tokens=4, **more):
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return {"model": "tiny", "temperature": 0, limit: tokens, **ASKS[path], **more}


async def ask(gateway, path="/v1/completions", **more):
    return await gateway.http.post(path, json=body(path, **more), timeout=180)


def is_whole(answer):
    """An answer that the client has no reason to complain about."""
    assert answer.status_code == 200, answer.text
    assert '"error"' not in answer.text
    assert '"abort"' not in answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        end = answer.text.rstrip().rpartition("\n\n")[2]
        assert any(mark in end for mark in ("data: [DONE]", "event: message_stop", "event: response.completed"))
    else:
        assert answer.json()["usage"]
    return True


class Stream:
    """One stream under way, read in the background."""

    def __init__(self, gateway, path="/v1/completions", tokens=6000):
        self.text = ""
        self._begun = asyncio.Event()
        content = body(path, stream=True, tokens=tokens)
        self._task = asyncio.create_task(self._read(gateway.http, path, content))

    async def _read(self, http, path, content):
        async with http.stream("POST", path, json=content, timeout=180) as answer:
            assert answer.status_code == 200
            async for piece in answer.aiter_text():
                self.text += piece
                self._begun.set()

    async def begun(self):
        await asyncio.wait_for(self._begun.wait(), 60)
        return self

    async def is_whole(self):
        """True at a proper end, False if it ends with the one event that says that the worker broke off."""
        await asyncio.wait_for(self._task, 180)
        *_, last = [line for line in self.text.splitlines() if line.startswith("data: {")]
        broken = "The worker broke off in mid-answer" in last
        assert broken == ('"error"' in self.text)
        assert '"abort"' not in self.text
        assert '{"stop_reason":null' not in self.text
        return not broken


async def under_way(gateway, server, paths=tuple(ASKS)):
    """On every path two answers in one piece and two streams, about half of them on this server."""
    members = gateway.gateway.pools.members.values()
    whole = [asyncio.create_task(ask(gateway, path, tokens=4000)) for path in paths for _ in range(2)]
    await until(lambda: sum(member.open for member in members) == len(whole), within_s=20)
    there = in_flight(gateway, server)
    streams = [await Stream(gateway, path).begun() for path in paths for _ in range(2)]
    assert 0 < there < in_flight(gateway, server)
    return whole, streams


async def all_end(gateway, server, whole, streams):
    """What was not on its way to its client yet is whole; a stream of this server is broken off, and says so."""
    for answer in await asyncio.gather(*whole):
        assert is_whole(answer)
    assert max(line["attempt"] for line in gateway.lines()) > 1
    broken = [await stream.is_whole() for stream in streams].count(False)
    failed = [line["worker"] for line in gateway.lines() if line["outcome"] == "failed"]
    assert failed == [worker(gateway, server).id] * broken
    assert broken > 0


def worker(gateway, server):
    """The gateway's own view of a server, in its present epoch."""
    [found] = [w for w in gateway.gateway.fleet.workers() if w.spec.url == server.url]
    return found


def state(gateway, server):
    return worker(gateway, server).state.value


def failures(gateway, server):
    """Failed attempts on a server by reason, since it joined."""
    counted = gateway.series("fairlead_attempt_failures_total")
    known = worker(gateway, server).id
    return {labels["reason"]: count for labels, count in counted if labels["worker"] == known and count}


def in_flight(gateway, server):
    return gateway.gateway.pools.members[worker(gateway, server).id].open


def told(server, path, *, stream=False, **more):
    """One request past the gateway: status and text."""
    answer = httpx.post(server.url + path, json=body(path, stream=stream, **more), timeout=60)
    return answer.status_code, answer.text


def control(server, action):
    assert httpx.post(f"{server.url}/{action}").status_code == 200


def says_that_it_is_healthy(server):
    return httpx.get(f"{server.url}/health").status_code == 200


@asynccontextmanager
async def occupied(server):
    """Other people's requests fill the server."""
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
        content = body("/v1/completions", prompt=["Once upon a time"] * FULL, stream=True, tokens=60_000)
        async with client.stream("POST", "/v1/completions", json=content) as answer:
            pieces = answer.aiter_text()
            await anext(pieces)
            yield
            assert "[DONE]" not in await anext(pieces), "it ended before the test did"


async def test_a_full_engine_s_requests_go_to_another_worker_and_it_is_not_blamed(limited, pair):
    async with gateway_over(limited, pair[0]) as gateway:
        for path in ASKS:
            async with occupied(limited):
                for stream in (False, True):
                    assert told(limited, path, stream=stream)[0] == 503
                    for _ in range(3):
                        assert is_whole(await ask(gateway, path, stream=stream))
        assert failures(gateway, limited)["busy"] >= len(ASKS) * 2
        assert state(gateway, limited) == "up"
        assert gateway.outcomes() == {"completed": len(ASKS) * 6}


async def test_an_engine_that_says_busy_inside_a_stream_is_left_for_another_worker(limited, pair):
    # vLLM looks for room for one, answers 200, and finds no room for all of them.
    several = {"prompt": ["Once upon a time"] * (FULL + 1), "stream": True}
    status, text = told(limited, "/v1/completions", **several)
    assert status == 200
    assert text.startswith('data: {"error": {"message": "The engine is currently busy')
    async with gateway_over(limited, pair[0]) as gateway:
        for _ in range(8):
            assert is_whole(await ask(gateway, **several))
        assert failures(gateway, limited)["busy"] >= 3
        assert state(gateway, limited) == "up"
        assert gateway.outcomes() == {"completed": 8}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_paused_engine_is_left_for_another_worker_suspected_and_trusted_again(draining, pair, stream):
    paused = draining
    async with gateway_over(paused, pair[0], timeouts={"first_byte_s": 2, "whole_answer_s": 2}) as gateway:
        control(paused, "pause?mode=abort")
        try:
            assert says_that_it_is_healthy(paused)
            while state(gateway, paused) == "up":
                assert is_whole(await ask(gateway, stream=stream))
            assert failures(gateway, paused) == {"timeout": 3}
            assert state(gateway, paused) == "suspect"
            asked = len(gateway.lines())
            for _ in range(4):
                assert is_whole(await ask(gateway, stream=stream))
            assert {line["worker"] for line in gateway.lines()[asked:]} == {pair[0].url}
        finally:
            control(paused, "resume")
        await until(lambda: state(gateway, paused) == "up")
        for _ in range(4):
            assert is_whole(await ask(gateway, stream=stream))
        assert paused.url in {line["worker"] for line in gateway.lines()[-4:]}
        assert failures(gateway, paused) == {"timeout": 3}
        assert set(gateway.outcomes()) == {"completed"}


async def test_answers_that_the_engine_gives_up_are_begun_anew_elsewhere_or_broken_off_in_the_open(draining, pair):
    async with gateway_over(draining, pair[0]) as gateway:
        whole, streams = await under_way(gateway, draining, SAY_SO)
        there = in_flight(gateway, draining)
        control(draining, "pause?mode=abort")
        control(draining, "resume")
        await all_end(gateway, draining, whole, streams)
        assert failures(gateway, draining) == {"shutdown": there}
        assert set(gateway.outcomes()) == {"completed", "failed"}


async def test_a_server_that_drains_finishes_what_it_has_and_the_rest_goes_elsewhere(draining, pair):
    async with gateway_over(draining, pair[0]) as gateway:
        streams = [await Stream(gateway, tokens=12_000).begun() for _ in range(2)]
        assert in_flight(gateway, draining) == 1
        draining.signal(signal.SIGTERM)
        await until(lambda: "cannot schedule new futures" in told(draining, "/v1/completions")[1])
        assert says_that_it_is_healthy(draining)
        for stream in (False, True):
            for _ in range(2):
                assert is_whole(await ask(gateway, stream=stream))
        # On a busy machine the server may close a kept connection under a request before it says why.
        assert failures(gateway, draining) in ({"shutdown": 1}, {"shutdown": 1, "lost": 1})
        assert state(gateway, draining) == "draining"
        assert in_flight(gateway, draining) == 1
        assert all([await stream.is_whole() for stream in streams])
        await asyncio.to_thread(draining.wait)
        await until(lambda: state(gateway, draining) == "down")
        assert is_whole(await ask(gateway))
        assert gateway.outcomes() == {"completed": 7}


async def test_a_server_that_is_told_to_end_breaks_off_streams_and_hands_the_rest_to_another(limited, pair):
    # Whether vLLM still says `abort` or leaves its clients hanging is a race inside it; either is seen here.
    async with gateway_over(limited, pair[0]) as gateway:
        whole, streams = await under_way(gateway, limited, SAY_SO)
        limited.signal(signal.SIGTERM)
        await all_end(gateway, limited, whole, streams)
        await until(lambda: state(gateway, limited) == "down")
        await asyncio.to_thread(limited.wait)
        assert is_whole(await ask(gateway))


async def test_a_server_whose_engine_dies_is_left_at_once_and_comes_back_as_another_worker(pair):
    steady, mortal = pair
    repeated = {"prompt": "A prefix that was seen before costs nothing to read again. " * 8}
    async with gateway_over(steady, mortal) as gateway:
        for _ in range(4):
            assert is_whole(await ask(gateway, **repeated))
        # A line may come a moment after the last byte of its answer.
        await until(lambda: len(gateway.lines()) == 4)
        assert all(line["cached_tokens"] and line["matched_tokens"] for line in gateway.lines()[-2:])

        whole, streams = await under_way(gateway, mortal)
        os.kill(mortal.engine_pid, signal.SIGKILL)
        await all_end(gateway, mortal, whole, streams)
        await until(lambda: state(gateway, mortal) == "down")
        assert set(failures(gateway, mortal)) <= {"error", "lost", "connect"}
        assert is_whole(await ask(gateway))

        assert worker(gateway, mortal).epoch == 0
        mortal.start_again()
        await asyncio.to_thread(wait_until_healthy, mortal)
        await until(lambda: worker(gateway, mortal).epoch == 1 and state(gateway, mortal) == "up", within_s=40)
        told_before = len(gateway.lines())
        for _ in range(4):
            assert is_whole(await ask(gateway, **repeated))
        await until(lambda: len(gateway.lines()) == told_before + 4)
        first, second = [line for line in gateway.lines()[-4:] if line["worker"] == worker(gateway, mortal).id]
        assert (first["matched_tokens"], first["cached_tokens"]) == (0, 0)
        assert second["matched_tokens"] > 0
        assert second["cached_tokens"] > 0


async def test_a_server_that_is_killed_breaks_off_its_streams_and_is_down(pair):
    steady, mortal = pair
    async with gateway_over(steady, mortal) as gateway:
        whole, streams = await under_way(gateway, mortal)
        mortal.signal(signal.SIGKILL)
        await all_end(gateway, mortal, whole, streams)
        await until(lambda: state(gateway, mortal) == "down")
        for _ in range(4):
            assert is_whole(await ask(gateway))
        assert gateway.lines()[-1]["worker"] == steady.url
