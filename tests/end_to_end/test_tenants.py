"""Clients of one gateway beside each other: who they are taken for, what they share, and what they may claim."""

import asyncio
import json
from collections import Counter

import pytest
from gateway_under_test import (
    MODEL,
    running_fleet,
    running_gateway,
    scripted_worker,
    until,
    whole_answer,
)

CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
ANSWER = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()
A, B, C, D = (f"the-key-of-client-{name}" for name in "abcd")


def key(value):
    return {"authorization": f"Bearer {value}"}


async def answer(_asked, writer):
    writer.write(whole_answer(ANSWER))


# -- who they are


async def test_all_sessions_of_a_coding_agent_are_one_client_of_its_key():
    async with running_fleet(1, clients=[{"name": "team", "keys": [A]}]) as fleet:
        for session in range(4):
            user_id = f"user_{'8f' * 8}_account_1234_session_{session}"
            if session % 2:
                user_id = json.dumps({"device_id": "8f" * 8, "account_uuid": "1234", "session_id": str(session)})
            body = {**ASK, "metadata": {"user_id": user_id}}
            assert (await fleet.http.post("/v1/messages", json=body, headers=key(A))).status_code == 200
        assert {line["client"] for line in fleet.gateway.lines()} == {f"team/user_{'8f' * 8}_account_1234"}
        await fleet.at_rest()


# -- what they share

TENANTS = [
    {"name": "a", "keys": [A]},
    {"name": "b", "keys": [B], "cache_group": "both"},
    {"name": "c", "keys": [C], "cache_group": "both"},
    {"name": "both", "keys": [D]},
]
SALTED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings")


@pytest.mark.parametrize("path", SALTED)
async def test_no_client_gets_the_salt_of_another_whatever_it_sends(path):
    async with (
        scripted_worker(answer) as worker,
        running_gateway([worker.url], clients=TENANTS, isolation={"caches": "separate"}) as gateway,
    ):

        async def salt(who, **fields):
            body = {**ASK, "prompt": "x", "input": "x", **fields}
            said = await gateway.http.post(path, json=body, headers=key(who))
            assert said.status_code == 200, said.text
            found = worker.asked[-1]
            assert {**found, "cache_salt": None} == {**body, "cache_salt": None}
            return found["cache_salt"]

        own = await salt(A)
        assert 0 < len(own) <= 128
        assert own == await salt(A) == await salt(A, cache_salt=None) == await salt(A, user="u")
        grouped = await salt(B)
        assert grouped == await salt(C)
        salts = [own, grouped, await salt(D)]
        for sent in ("x", own, grouped, "client a", "group both", "both"):
            salts += [await salt(who, cache_salt=sent) for who in (A, B, D)]
            assert await salt(B, cache_salt=sent) == await salt(C, cache_salt=sent)
        assert len(set(salts)) == len(salts)
        for no_salt in (5, "", ["x"], {"a": 1}):
            assert await salt(A, cache_salt=no_salt) == own
        await gateway.at_rest()


@pytest.mark.parametrize("separate", [False, True])
async def test_a_probe_finds_what_another_has_sent_only_where_caches_are_shared(separate):
    caches = "separate" if separate else "shared"
    async with running_fleet(1, clients=TENANTS, isolation={"caches": caches}) as fleet:
        prompt = "A secret of a, which is long enough for some blocks. " * 20

        async def cached(who, **fields):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, **fields}
            said = await fleet.http.post("/v1/completions", json=body, headers=key(who))
            return said.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert await cached(A) == 0
        assert (await cached(B) > 100) is not separate
        assert await cached(A) > 100
        assert await cached(C) > 100  # of its group
        matched = [line["matched_tokens"] for line in fleet.gateway.lines()]
        assert (matched[1] > 0) is not separate
        assert matched[2] > 0


# -- what they may claim


async def test_a_priority_counts_as_far_as_its_client_may_name_one():
    clients = [
        {"name": "free", "keys": [A]},
        {"name": "urgent", "keys": [B], "priority_limit": -5},
        {"name": "slow", "keys": [C], "priority_limit": 3},
    ]
    slow = {"model": MODEL, "profile": "h100-llama-3.1-8b", "max_num_seqs": 1}
    async with running_fleet(
        1, slow, worker={"max_num_seqs": 1}, clients=clients, policies={"queue": "priority"}
    ) as fleet:
        order = []

        async def ask(name, who, tokens=2, **fields):
            body = {**ASK, "max_tokens": tokens, "ignore_eos": True, **fields}
            assert (await fleet.http.post(CHAT, json=body, headers=key(who))).status_code == 200
            order.append(name)

        tasks = [asyncio.create_task(ask("first", A, 300))]
        await until(lambda: fleet.running == 1)
        for name, who, priority in (
            ("slow", C, -100),
            ("claims", A, -100),
            ("asks for less", A, 1),
            ("over its limit", B, -100),
            ("at its limit", B, -5),
            ("none", A, None),
        ):
            tasks.append(asyncio.create_task(ask(name, who, priority=priority)))
            queued = len(tasks) - 1
            await until(lambda queued=queued: fleet.gateway.held()[f"{MODEL} queued"] == queued)
        await asyncio.gather(*tasks)
        assert order == ["first", "over its limit", "at its limit", "claims", "none", "asks for less", "slow"]
        assert all(b"priority" not in received.body for received in fleet.workers[0].app.received)
        await fleet.at_rest()


async def test_many_users_under_one_key_get_no_more_than_one_user_under_another():
    slow = {"model": MODEL, "profile": "h100-llama-3.1-8b", "max_num_seqs": 4, "speed": 4.0}
    clients = [{"name": "many", "keys": [A]}, {"name": "one", "keys": [B]}]
    async with running_fleet(2, slow, worker={"max_num_seqs": 4}, clients=clients) as fleet:
        ends = asyncio.Event()
        served = Counter()

        async def ask(name, who, user):
            while not ends.is_set():
                body = {**ASK, "max_tokens": 40, "ignore_eos": True, "user": user}
                said = await fleet.http.post(CHAT, json=body, headers=key(who))
                assert said.status_code == 200
                if not ends.is_set():
                    served[name] += said.json()["usage"]["completion_tokens"]
                    if sum(served.values()) >= 40 * 600:
                        ends.set()

        await asyncio.gather(
            *(ask("many", A, f"user-{number}") for number in range(64)),
            *(ask("one", B, "me") for _ in range(64)),
        )
        share = served["many"] / sum(served.values())
        assert 0.47 <= share <= 0.53, served
        await fleet.at_rest()
