"""A real vLLM that publishes its KV events: what it will find in its cache is known before it is asked."""

import asyncio
import json
import signal
from random import Random

import httpx
import pytest
from gateway_under_test import running_gateway, until
from real_vllm import Wanted, wait_until_healthy

pytestmark = pytest.mark.timeout(600)

PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 20, "scrape_every_s": 0.5, "stale_after_s": 60}
BLOCK, BLOCKS = 32, 48
"""A cache of 1,500 tokens, so that what is used least is soon evicted."""
WORDS = ("worker", "router", "block", "prefix", "cache", "token", "queue", "share", "reads", "seldom", "first")
GOAL = 0.99
"""Of all answers, the number with as many cached tokens as were foretold."""


@pytest.fixture(scope="module")
def reporting(servers, free_port):
    first = free_port()
    published = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{first}",
        "replay_endpoint": f"tcp://*:{first + 1}",
    }
    args = (
        "--kv-events-config",
        json.dumps(published),
        "--num-gpu-blocks-override",
        str(BLOCKS),
        "--max-model-len",
        "1024",
    )
    [server] = servers.fresh(Wanted(args=args, environment=(("VLLM_SERVER_DEV_MODE", "1"),)))
    return server


def index_of(gateway):
    rows = gateway.series("fairlead_worker_prefix_index")
    return {labels["worker"]: labels["index"] for labels, value in rows if value}


async def known(gateway, worker, index="exact"):
    """Wait until that is how the worker's cache is known, and what it has published before is heard."""
    await until(lambda: index_of(gateway).get(worker) == index, lambda: index_of(gateway), within_s=60)
    await quiet(gateway)


async def quiet(gateway):
    """Wait until it is known what vLLM did: on a busy machine its answer may be here before its events are."""
    reported = gateway.gateway.pools.by_model["tiny"].scheduler.prefixes.reports
    seen = -1
    while seen != reported.version:
        seen = reported.version
        await asyncio.sleep(0.25)


async def post(http, path, **asked):
    body = {"model": "tiny", "ignore_eos": True, "temperature": 0.0, **asked}
    answer = await http.post(path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def ask(http, prompt, tokens=2):
    asked = {"prompt": prompt, "max_tokens": tokens, "return_token_ids": True}
    return (await post(http, "/v1/completions", **asked))["token_ids"]


def pairs(gateway):
    """For each finished request: tokens expected in the cache, and tokens found there."""
    return [(line["matched_tokens"], line["cached_tokens"]) for line in gateway.lines()]


def share_foretold(gateway, what):
    """The share of answers with as many cached tokens as were foretold; printed, as it is a figure to publish."""
    seen = pairs(gateway)
    right = sum(expected == found for expected, found in seen) / len(seen)
    hits = sum(found for _, found in seen)
    near = sum(abs(expected - found) <= BLOCK for expected, found in seen) / len(seen)
    print(  # noqa: T201
        f"{what}: {right:.1%} of {len(seen)} answers foretold to the token, {near:.1%} to a block of {BLOCK}; "
        f"{hits} tokens hit"
    )
    assert hits > 0
    return right


def ids(chance, count):
    return [chance.randrange(3, 300) for _ in range(count)]


async def chats(gateway, chance, turns, longest, at_once, *, think=quiet):
    """Six chats grow by what they are answered and by what is asked next, until they begin anew."""
    histories = [ids(chance, 40) for _ in range(6)]

    async def turn(history):
        history += await ask(gateway.http, list(history), tokens=chance.randrange(1, 40))
        history += ids(chance, chance.randrange(1, 50))
        if len(history) > longest:
            del history[chance.randrange(30, longest // 2) :]

    for _ in range(turns // at_once):
        await asyncio.gather(*(turn(history) for history in chance.sample(histories, at_once)))
        await think(gateway)


@pytest.mark.parametrize(("longest", "at_once"), [(600, 1), (200, 3)])
async def test_what_chats_of_token_ids_find_in_a_small_cache_is_foretold(reporting, longest, at_once):
    """Long ones evict each other all the time. At once only short ones, as the order of service is not known."""
    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        await chats(gateway, Random(at_once), 120, longest, at_once)
        assert share_foretold(gateway, f"token ids, {at_once} at once") >= GOAL
        assert index_of(gateway) == {reporting.url: "exact"}
        blocks = {labels["kind"]: value for labels, value in gateway.series("fairlead_kv_event_blocks_total")}
        assert blocks["removed"] > 50
        assert blocks["unknown_parent"] == blocks["unknown_removed"] == blocks["passed_over"] == 0


async def test_what_chats_find_that_ask_again_at_once_is_mostly_foretold(reporting):
    """The events of an answer may still be on their way when its client goes on: how well is printed."""

    async def not_at_all(_):
        pass

    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        await chats(gateway, Random(1), 120, 600, 1, think=not_at_all)
        assert share_foretold(gateway, "token ids, asking again at once") >= 0.5
        assert index_of(gateway) == {reporting.url: "exact"}


async def test_what_chats_find_is_mostly_foretold_without_reports_too(reporting):
    """Prompts and answers are known to be there; what is evicted, a little earlier or later than it is."""
    async with running_gateway([reporting.url], health=PATIENT | {"kv_events": "off"}) as gateway:
        reset = await gateway.http.post(f"{reporting.url}/reset_prefix_cache", timeout=60)
        assert reset.status_code == 200
        await chats(gateway, Random(4), 120, 200, 1)
        assert set(index_of(gateway).values()) == {"predicted"}
        assert share_foretold(gateway, "nothing reported") >= 0.8


async def test_a_gateway_that_starts_late_knows_what_was_there_before(reporting):
    prompt = ids(Random(7), 300)
    async with httpx.AsyncClient(base_url=reporting.url) as direct:
        await ask(direct, prompt)
    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        await quiet(gateway)
        await ask(gateway.http, prompt)
        assert pairs(gateway) == [(288, 288)]


async def test_a_salted_prompt_is_known_under_its_salt_alone(reporting):
    prompt = ids(Random(8), 200)
    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        for salt in ({}, {"cache_salt": "pepper"}, {"cache_salt": "pepper"}, {}):
            await post(gateway.http, "/v1/completions", prompt=prompt, max_tokens=2, **salt)
        assert pairs(gateway) == [(0, 0), (0, 0), (192, 192), (192, 192)]


async def test_a_cache_that_was_reset_is_known_to_be_empty(reporting):
    chance = Random(9)
    prompt = ids(chance, 300)
    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        await ask(gateway.http, prompt)
        async with httpx.AsyncClient(base_url=reporting.url) as direct:
            assert (await direct.post("/reset_prefix_cache")).status_code == 200
        await ask(gateway.http, ids(chance, 40))  # vLLM tells of the past with its next step
        await asyncio.sleep(1.5)  # by then the prediction of the first one has ended, too
        await quiet(gateway)
        await ask(gateway.http, prompt)
        await ask(gateway.http, prompt)
        assert pairs(gateway)[-2:] == [(0, 0), (288, 288)]
        assert index_of(gateway) == {reporting.url: "exact"}


@pytest.mark.parametrize("tokenizer", ["worker", "text"])
async def test_chats_are_foretold_where_their_tokens_are_known(reporting, tokenizer):
    """As text they are only estimated: how well is printed."""
    chance = Random(10)
    tokenization = {"tokenizer": tokenizer, "wait_s": 60}
    async with running_gateway([reporting.url], health=PATIENT, tokenization=tokenization) as gateway:
        await known(gateway, reporting.url)
        talks = [[{"role": "user", "content": sentence(chance, 20)}] for _ in range(4)]
        for _ in range(60):
            talk = chance.choice(talks)
            choice = await post(gateway.http, "/v1/chat/completions", messages=talk, max_tokens=8)
            await quiet(gateway)
            talk.append({"role": "assistant", "content": choice["message"]["content"]})
            talk.append({"role": "user", "content": sentence(chance, chance.randrange(3, 12))})
            if len(talk) > 7:
                del talk[chance.randrange(1, 3) * 2 - 1 :]
        right = share_foretold(gateway, f"chats, tokenizer {tokenizer}")
        assert right >= (GOAL if tokenizer == "worker" else 0.0)


def sentence(chance, words):
    return " ".join(chance.choice(WORDS) for _ in range(words)) + "."


async def test_a_server_that_was_killed_and_started_again_begins_with_an_empty_cache(reporting):
    prompt = ids(Random(11), 300)
    async with running_gateway([reporting.url], health=PATIENT) as gateway:
        await known(gateway, reporting.url)
        await ask(gateway.http, prompt)
        await ask(gateway.http, prompt)
        reporting.signal(signal.SIGKILL)
        reporting.wait()
        reporting.start_again()
        await asyncio.to_thread(wait_until_healthy, reporting)
        await known(gateway, f"{reporting.url}@1")
        await until(lambda: bool(gateway.gateway.pools.usable("tiny")), within_s=60)
        await ask(gateway.http, prompt)
        await ask(gateway.http, prompt)
        assert pairs(gateway) == [(0, 0), (288, 288), (0, 0), (288, 288)]
