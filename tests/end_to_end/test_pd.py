"""Prefill/decode pairs through the whole gateway: two attempts, one answer, nothing left on either side."""

import asyncio
import json
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache

import httpx
import openai
import pytest
from child import fairlead
from gateway_under_test import MODEL, Running, post, raw_client, running_gateway, until

from workers.simulator.connector import Handover, KvTransfer
from workers.simulator.faults import Fault
from workers.simulator.server import SimulatedWorker, SimulatorConfig, simulated_worker

WORDS = "Tell me about the sea and its tides, and about the moon that draws them. " * 6
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 12, "ignore_eos": True}
ASKED = {**CHAT, "extra_body": {"ignore_eos": CHAT["ignore_eos"]}}
"""The same in the words of the client library."""
del ASKED["ignore_eos"]
TEXT = {"model": MODEL, "prompt": WORDS, "max_tokens": 12, "ignore_eos": True}
SLOW = {"profile": "h100-llama-3.1-8b", "speed": 0.01}
"""A prefill of a hundred tokens takes a second."""


@dataclass(slots=True)
class Pairs:
    """A gateway and workers for one stage each."""

    gateway: Running
    prefill: list[SimulatedWorker]
    decode: list[SimulatedWorker]

    @property
    def http(self):
        return self.gateway.http

    @property
    def computed(self):
        """Prompt tokens that were computed, on the prefill workers and on the decode workers."""
        return [sum(_computed(worker) for worker in side) for side in (self.prefill, self.decode)]

    def kv(self, name):
        """A count of the connectors, summed over all workers."""
        return sum(worker.state()["kv_transfer"][name] for worker in (*self.prefill, *self.decode))

    def asked(self, side):
        """The bodies of all inference requests to one side."""
        return [json.loads(seen.body) for worker in side for seen in worker.app.received if seen.method == "POST"]

    def failed(self):
        """Workers on which an attempt has failed."""
        failures = self.gateway.series("fairlead_attempt_failures_total")
        return {labels["worker"] for labels, value in failures if value}

    async def at_rest(self):
        """Nothing runs, nothing is held for a fetch, and no fetch was in vain."""
        await self.gateway.at_rest(*self.prefill, *self.decode)
        await until(lambda: not self.kv("held"), lambda: f"{self.kv('held')} prefills are still held")
        assert (self.kv("spoiled"), self.kv("refused"), self.kv("expired")) == (0, 0, 0)
        for worker in (*self.prefill, *self.decode):
            assert worker.engine.kv_blocks_used == 0


def _computed(worker):
    counters = worker.engine.counters
    return counters.prompt_tokens - counters.prefix_hits - counters.pulled_tokens


@asynccontextmanager
async def running_pairs(prefill=1, decode=1, simulator=None, on_prefill=None, on_decode=None, **settings):
    """A number of workers of each kind; `simulator` is for all of them."""
    given = {"model": MODEL, "profile": "instant", "kv_transfer": KvTransfer(), **(simulator or {})}
    async with AsyncExitStack() as stack:
        sides = []
        for count, more in ((prefill, on_prefill), (decode, on_decode)):
            config = SimulatorConfig(**{**given, **(more or {})})
            sides.append([await stack.enter_async_context(simulated_worker(config)) for _ in range(count)])
        known = [{"url": worker.url, "roles": "prefill"} for worker in sides[0]]
        known += [{"url": worker.url, "roles": "decode"} for worker in sides[1]]
        gateway = await stack.enter_async_context(running_gateway(known, **settings))
        yield Pairs(gateway, *sides)


@pytest.fixture
async def pairs():
    async with running_pairs() as running:
        yield running


@pytest.fixture
async def client(pairs):
    base = f"{pairs.gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as one:
        yield one


@cache
def _answer_of_one(path, body):
    """What one worker by itself answers, asked in an event loop of its own."""

    async def ask():
        config = SimulatorConfig(model=MODEL, profile="instant")
        async with simulated_worker(config) as worker, httpx.AsyncClient(base_url=worker.url) as client:
            return (await client.post(path, content=body, headers={"content-type": "application/json"})).text

    return asyncio.run(ask())


async def alone(body, path="/v1/chat/completions"):
    return json.loads(await asyncio.to_thread(_answer_of_one, path, json.dumps(body)))


def said(answer):
    choice = answer["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


async def answers_as_one_worker_would(pairs, bad, *, stream):
    """Ask until the worker that will fail has been asked; the client notices nothing."""
    while not pairs.asked([bad]):
        answer = await pairs.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert answer.status_code == 200
    chunks = events(answer.text) if stream else []
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert (text if stream else said(answer.json())) == said(await alone(CHAT))


def events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


# -- the answer


async def test_a_chat_is_computed_by_one_worker_and_answered_by_another(pairs, client):
    answer = await client.chat.completions.create(**ASKED)
    expected = await alone(CHAT)
    assert answer.choices[0].message.content == said(expected)
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == 12
    assert pairs.computed == [answer.usage.prompt_tokens, 0]
    assert pairs.decode[0].engine.counters.pulled_tokens == answer.usage.prompt_tokens
    assert pairs.prefill[0].engine.counters.generation_tokens == 1
    await pairs.at_rest()


async def test_a_streamed_chat_says_the_same(pairs, client):
    options = {"include_usage": True}
    stream = await client.chat.completions.create(**ASKED, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    expected = await alone(CHAT)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == said(expected)
    assert chunks[-1].usage.completion_tokens == 12
    assert pairs.computed == [chunks[-1].usage.prompt_tokens, 0]
    await pairs.at_rest()


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_are_shared_too(pairs, stream):
    answer = await pairs.http.post("/v1/completions", json={**TEXT, "stream": stream})
    text = "".join(map(said, events(answer.text))) if stream else said(answer.json())
    expected = await alone(TEXT, "/v1/completions")
    assert text == said(expected)
    assert pairs.computed == [expected["usage"]["prompt_tokens"], 0]
    await pairs.at_rest()


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_are_shared_too(pairs, stream):
    body = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 12, "stream": stream}
    answer = await pairs.http.post("/v1/messages", json=body)
    assert answer.status_code == 200
    assert pairs.computed[1] == 0
    assert pairs.decode[0].engine.counters.pulled_tokens == pairs.computed[0] > 0
    await pairs.at_rest()


async def test_the_prefill_is_asked_for_one_token_and_the_decode_for_what_the_client_wants(pairs):
    body = {**CHAT, "stream": True, "min_tokens": 3, "max_completion_tokens": 12, "metadata": {"a": "b"}}
    answer = await pairs.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r-1"})
    assert answer.headers["x-request-id"] == "r-1"
    [asked], [went_on] = pairs.asked(pairs.prefill), pairs.asked(pairs.decode)
    params = asked.pop("kv_transfer_params")
    assert (params["do_remote_decode"], params["do_remote_prefill"]) == (True, False)
    expected = {**body, "stream": False, "max_tokens": 1, "max_completion_tokens": 1}
    del expected["min_tokens"]
    assert asked == expected
    handed = went_on.pop("kv_transfer_params")
    assert handed["do_remote_prefill"]
    assert handed["remote_port"] == pairs.prefill[0].port
    assert went_on == {**body, "stream_options": {"include_usage": True}}
    sent_as = {
        one.headers["x-request-id"]
        for worker in (*pairs.prefill, *pairs.decode)
        for one in worker.app.received
        if one.method == "POST"
    }
    assert [re.sub(r"\.[0-9a-f]{12}$", "", name) for name in sent_as] == ["r-1"]  # the same on both


async def test_the_log_and_the_headers_name_both_workers():
    async with running_pairs(listen={"decision_headers": True}) as pairs:
        answer = await pairs.http.post("/v1/chat/completions", json=CHAT)
        assert answer.headers["x-fairlead-worker"] == pairs.decode[0].url
        assert answer.headers["x-fairlead-prefill-worker"] == pairs.prefill[0].url
        [line] = pairs.gateway.lines()
        assert (line["worker"], line["prefill_worker"]) == (pairs.decode[0].url, pairs.prefill[0].url)


async def test_cached_tokens_are_those_of_the_worker_that_has_computed_the_prompt(pairs):
    prefill = pairs.prefill[0]
    async with httpx.AsyncClient(base_url=prefill.url) as client:
        await client.post("/v1/chat/completions", json=CHAT)
    await pairs.http.post("/v1/chat/completions", json=CHAT)
    [line] = pairs.gateway.lines()
    assert line["cached_tokens"] == prefill.engine.counters.prefix_hits > 0
    assert pairs.decode[0].engine.counters.prefix_hits == 0


async def test_the_prefill_workers_room_is_free_again_while_the_answer_is_decoded():
    async with running_pairs(on_decode=SLOW) as pairs, raw_client(pairs.gateway.port) as client:
        await client.send(post("/v1/chat/completions", CHAT))
        await until(lambda: pairs.decode[0].engine.waiting + pairs.decode[0].engine.running)
        [pool] = pairs.gateway.gateway.pools.by_model.values()
        loads = {view.id: view for view in pool.scheduler.snapshot().workers}
        assert loads[pairs.prefill[0].url].prefill_owed == loads[pairs.prefill[0].url].requests == 0
        assert loads[pairs.decode[0].url].sequences == 1


async def test_parameters_of_other_versions_go_from_one_worker_to_the_other_unread(monkeypatch):
    # vLLM 0.20 has fewer of them than 0.32, and 0.33 has one more.
    hand_out = Handover.hand_out

    def of_another_version(handover, sequence):
        params = hand_out(handover, sequence)
        if params is None:
            return None
        newer = ("dcp_size", "pp_size", "remote_num_tokens", "remote_blocks_expiry_time", "transfer_mode")
        old = {name: value for name, value in params.items() if name not in newer}
        return {**old, "remote_registration_generation": 7}

    monkeypatch.setattr(Handover, "hand_out", of_another_version)
    async with running_pairs() as pairs:
        answer = await pairs.http.post("/v1/chat/completions", json=CHAT)
        assert said(answer.json()) == said(await alone(CHAT))
        [went_on] = pairs.asked(pairs.decode)
        assert went_on["kv_transfer_params"]["remote_registration_generation"] == 7
        assert "transfer_mode" not in went_on["kv_transfer_params"]
        assert pairs.computed[1] == 0
        await pairs.at_rest()


async def test_a_pushing_connector_needs_nothing_else():
    async with running_pairs(simulator={"kv_transfer": KvTransfer("NixlPushConnector")}) as pairs:
        answer = await pairs.http.post("/v1/chat/completions", json=CHAT)
        assert said(answer.json()) == said(await alone(CHAT))
        assert pairs.computed[1] == 0
        await pairs.at_rest()


async def test_workers_that_hand_nothing_over_are_asked_one_after_the_other_all_the_same():
    async with running_pairs(simulator={"kv_transfer": None}) as pairs:
        answer = await pairs.http.post("/v1/chat/completions", json=CHAT)
        assert said(answer.json()) == said(await alone(CHAT))
        assert "kv_transfer_params" not in pairs.asked(pairs.decode)[0]
        await pairs.at_rest()


async def test_many_at_once_leave_nothing_behind():
    async with running_pairs(2, 2) as pairs:
        bodies = [
            {**CHAT, "messages": [{"role": "user", "content": f"{n} {WORDS}"}], "stream": n % 2 == 0}
            for n in range(24)
        ]
        answers = await asyncio.gather(*(pairs.http.post("/v1/chat/completions", json=body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}
        assert pairs.computed[1] == 0
        assert pairs.kv("handed_out") == pairs.kv("fetched") == 24
        await pairs.at_rest()


# -- an answer that is over with its first token


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_ends_at_once_is_the_prefills_own(pairs, path, stream):
    base = CHAT if "chat" in path else TEXT
    body = {**base, "stop": [" "], "stream": stream}  # every word begins with one
    answer = await pairs.http.post(path, json=body)
    expected = await alone({**body, "stream": False}, path)
    assert expected["choices"][0]["finish_reason"] == "stop"
    if stream:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.endswith("data: [DONE]\n\n")
        last = events(answer.text)[-1]
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["system_fingerprint"] == expected["system_fingerprint"]
        if "chat" in path:
            assert events(answer.text)[0]["choices"][0]["delta"]["role"] == "assistant"
            assert {chunk["object"] for chunk in events(answer.text)} == {"chat.completion.chunk"}
    else:
        given = answer.json()
        for one in (given, expected):
            del one["id"], one["created"]
        assert given == expected
    assert pairs.decode[0].engine.counters.generation_tokens == 0
    assert pairs.gateway.outcomes() == {"completed": 1}
    await pairs.at_rest()


async def test_such_a_stream_ends_with_its_usage_where_the_client_wants_it(pairs, client):
    stream = await client.chat.completions.create(
        model=MODEL, messages=CHAT["messages"], stop=" ", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 1
    await pairs.at_rest()


async def test_an_answer_that_must_be_longer_is_not_taken_for_over(pairs):
    answer = await pairs.http.post("/v1/chat/completions", json={**CHAT, "stop": [" "], "min_tokens": 2})
    assert answer.status_code == 200
    assert len(pairs.asked(pairs.decode)) == 1
    await pairs.at_rest()


async def test_where_one_token_is_wanted_the_prefill_worker_does_it_all(pairs):
    answer = await pairs.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1, "stream": True})
    assert events(answer.text)[-1]["choices"][0]["finish_reason"] == "length"
    assert pairs.kv("handed_out") == 0
    assert pairs.asked(pairs.decode) == []
    await pairs.at_rest()


# -- what two workers cannot share

FORCED = {
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "n": 2, "temperature": 1}),
        ("/v1/chat/completions", {**CHAT, **FORCED}),
        ("/v1/chat/completions", {**CHAT, "prompt_logprobs": 0}),
        ("/v1/completions", {**TEXT, "prompt": ["one", "two"]}),
        ("/v1/completions", {**TEXT, "echo": True}),
        ("/v1/responses", {"model": MODEL, "input": "hello"}),
        ("/v1/embeddings", {"model": MODEL, "input": "hello"}),
    ],
)
async def test_what_two_workers_cannot_share_one_does(pairs, path, body):
    answer = await pairs.http.post(path, json=body)
    assert answer.status_code == 200
    assert len(pairs.asked([*pairs.prefill, *pairs.decode])) == 1
    assert pairs.kv("handed_out") == 0
    [line] = pairs.gateway.lines()
    assert "prefill_worker" not in line
    await pairs.at_rest()


async def test_tools_that_are_not_forced_and_log_probabilities_are_shared(pairs):
    body = {**CHAT, **FORCED, "tool_choice": "auto", "logprobs": True, "top_logprobs": 2}
    answer = await pairs.http.post("/v1/chat/completions", json=body)
    assert len(answer.json()["choices"][0]["logprobs"]["content"]) == 12
    assert pairs.computed[1] == 0
    await pairs.at_rest()


# -- what goes wrong


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_prefill_worker_says_is_wrong_reaches_the_client_untouched(pairs, stream):
    body = {**CHAT, "temperature": -1, "stream": stream}
    answer = await pairs.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"
    assert pairs.asked(pairs.decode) == []
    assert pairs.gateway.outcomes() == {"refused": 1}
    await pairs.at_rest()


async def test_what_only_the_decode_worker_can_refuse_lets_the_prefill_go(pairs):
    answer = await pairs.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 10**6})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"
    await pairs.at_rest()


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        ("die_mid_stream", False),
        ("die_mid_stream", True),
        ("draining", False),
    ],
)
async def test_after_a_failed_decode_the_prompt_is_prefilled_again(kind, stream):
    async with running_pairs(1, 2) as pairs:
        bad = pairs.decode[0]
        bad.set_fault(Fault(kind))
        await answers_as_one_worker_would(pairs, bad, stream=stream)
        brought = [body["kv_transfer_params"]["remote_request_id"] for body in pairs.asked(pairs.decode)]
        assert len(set(brought)) == len(brought) == pairs.kv("handed_out") >= 2
        assert pairs.failed() == {bad.url}
        assert (pairs.kv("spoiled"), pairs.kv("refused")) == (0, 0)
        await pairs.gateway.at_rest(*pairs.prefill)


@pytest.mark.parametrize(
    ("kind", "stream"), [("error_500", False), ("error_500", True), ("error_in_stream", True)]
)
async def test_a_decode_worker_that_fails_is_asked_for_the_whole_before_it_is_blamed(kind, stream):
    async with running_pairs(1, 2) as pairs:
        bad = pairs.decode[0]
        bad.set_fault(Fault(kind))
        await answers_as_one_worker_would(pairs, bad, stream=stream)
        reasons = pairs.gateway.series("fairlead_attempt_failures_total")
        counted = {(labels["worker"], labels["reason"]) for labels, value in reasons if value}
        assert (bad.url, "handover") in counted
        assert {worker for worker, _ in counted} == {bad.url}


async def test_a_decode_worker_that_cannot_be_reached_leaves_no_prefill_held():
    async with running_pairs(
        1, 2, health={"probe_every_s": 60, "scrape_every_s": 60, "stale_after_s": 90}
    ) as pairs:
        bad = pairs.decode[0]
        bad.set_fault(Fault("crash"))
        while not pairs.failed():
            assert (await pairs.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert pairs.failed() == {bad.url}
        await pairs.at_rest()


@pytest.mark.parametrize("kind", ["crash", "error_500", "die_mid_stream"])
async def test_without_its_prefill_worker_a_request_is_colocated(pairs, kind):
    pairs.prefill[0].set_fault(Fault(kind))
    answer = await pairs.http.post("/v1/chat/completions", json=CHAT)
    assert said(answer.json()) == said(await alone(CHAT))
    assert pairs.computed[1] == answer.json()["usage"]["prompt_tokens"]
    assert pairs.failed() <= {pairs.prefill[0].url}
    await pairs.gateway.at_rest(*pairs.decode)


async def test_a_prefill_worker_killed_in_mid_prefill_is_replaced():
    async with running_pairs(1, 1, on_prefill=SLOW) as pairs:
        asked = asyncio.create_task(pairs.http.post("/v1/chat/completions", json=CHAT))
        await until(lambda: pairs.prefill[0].engine.running)
        pairs.prefill[0].set_fault(Fault("crash"))
        answer = await asked
        assert said(answer.json()) == said(await alone(CHAT))
        await pairs.gateway.at_rest(*pairs.decode)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_whose_decode_worker_is_killed_goes_on_at_the_prefill_worker(path):
    body = {**(CHAT if path == "/v1/chat/completions" else TEXT), "stream": True}
    async with running_pairs(1, 1, continuation="exact") as pairs:
        whole = await pairs.http.post(path, json=body)
        pairs.decode[0].set_fault(Fault("die_mid_stream", after_tokens=4))
        answer = await pairs.http.post(path, json=body)
        assert text_of(answer.text) == text_of(whole.text) != ""
        assert '"error"' not in answer.text
        assert pairs.gateway.outcomes() == {"completed": 2}
        await pairs.at_rest()


def text_of(stream):
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def test_a_decode_worker_killed_in_mid_stream_breaks_an_answer_off_that_cannot_go_on():
    async with running_pairs(1, 1, continuation="exact") as pairs:
        pairs.decode[0].set_fault(Fault("die_mid_stream", after_tokens=4))
        answer = await pairs.http.post("/v1/chat/completions", json={**CHAT, "stream": True, "logprobs": True})
        assert answer.status_code == 200
        assert '"error"' in answer.text
        assert pairs.gateway.outcomes() == {"failed": 1}
        await pairs.at_rest()


async def test_a_prefill_worker_that_dies_before_its_prompt_is_fetched_is_the_one_that_failed():
    async with running_pairs(1, 1) as pairs:
        prefill, decode = pairs.prefill[0], pairs.decode[0]
        decode.set_fault(Fault("slow", delay_s=1.0, times=1))
        asked = asyncio.create_task(pairs.http.post("/v1/chat/completions", json=CHAT))
        await until(lambda: prefill.engine.held)
        prefill.set_fault(Fault("crash"))
        answer = await asked
        assert said(answer.json()) == said(await alone(CHAT))
        assert pairs.failed() == {prefill.url}


# -- clients that leave


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_the_prefill_frees_it_at_once(stream):
    async with running_pairs(on_prefill=SLOW) as pairs, raw_client(pairs.gateway.port) as client:
        await client.send(post("/v1/chat/completions", {**CHAT, "stream": stream}))
        await until(lambda: pairs.prefill[0].engine.running)
        client.vanish()
        await pairs.at_rest()
        assert pairs.asked(pairs.decode) == []
        assert pairs.gateway.outcomes() == {"cancelled": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_the_decode_frees_both_sides(stream):
    async with running_pairs(on_decode=SLOW) as pairs, raw_client(pairs.gateway.port) as client:
        await client.send(post("/v1/chat/completions", {**CHAT, "stream": stream}))
        await until(lambda: pairs.decode[0].engine.waiting + pairs.decode[0].engine.running)
        client.vanish()
        await pairs.at_rest()
        assert pairs.gateway.outcomes() == {"cancelled": 1}


async def test_a_client_that_leaves_between_the_two_leaves_no_prefill_held(monkeypatch):
    async with running_pairs() as pairs, raw_client(pairs.gateway.port) as client:
        upstream = pairs.gateway.gateway.connections.get(pairs.decode[0].url).upstream
        dialled = asyncio.Event()

        async def slow_to_connect(*_, **__):
            dialled.set()
            await asyncio.sleep(60)

        with monkeypatch.context() as patch:
            patch.setattr(upstream, "send", slow_to_connect)
            await client.send(post("/v1/chat/completions", CHAT))
            await dialled.wait()
        assert pairs.kv("held") == 1
        client.vanish()
        await pairs.at_rest()
        assert pairs.gateway.outcomes() == {"cancelled": 1}


# -- commands


async def test_the_demo_shows_a_pair(tmp_path):
    async with fairlead(
        tmp_path, "demo", "--port", "0", "--prefill", "1", "--decode", "1", "--speed", "20"
    ) as child:
        url = await child.ready()
        async with httpx.AsyncClient(timeout=20) as client:
            model = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
            answer = await client.post(f"{url}/v1/chat/completions", json={**CHAT, "model": model})
            assert answer.status_code == 200
        child.signal(signal.SIGTERM)
        assert await child.ended(10) == 0
        [line] = [json.loads(line) for line in child.log().splitlines() if '"request_id"' in line]
        assert line["prefill_worker"] != line["worker"]


@pytest.mark.parametrize("command", [["demo"], ["up", "org/model"]])
async def test_half_a_pair_is_refused(tmp_path, command):
    async with fairlead(tmp_path, *command, "--prefill", "2") as child:
        assert await child.ended(20) == 2
        assert "--prefill and --decode belong together" in child.log()
