"""A prefill worker, a decode worker, KV between them and the gateway in front: real vLLM, on the CPU.

Every test runs with each of three connectors: NIXL where the decode worker pulls, NIXL where the prefill worker
pushes, and KV in files that both can read.
"""

import asyncio
import json
import re
import signal

import httpx
import openai
import pytest
from gateway_under_test import post, raw_client, running_gateway, until
from real_vllm import Wanted, free_ports

pytestmark = pytest.mark.timeout(600)

WORDS = "The moon draws the sea, the sea draws the sand, and nobody asks the fish what they think of it. " * 4
PATIENT = {"probe_every_s": 0.2, "probe_timeout_s": 20, "scrape_every_s": 0.5, "stale_after_s": 60}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SOURCE = "vllm:prompt_tokens_by_source_total"
BLOCK = 32
TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("tide", "moon")
]


def nixl(name):
    """What is free before a long lease ends was released."""
    lease = {"kv_connector_extra_config": {"kv_lease_duration": 600 if name == "NixlConnector" else 20}}
    return (
        {"kv_connector": name, "kv_role": "kv_producer", **lease},
        {"kv_connector": name, "kv_role": "kv_consumer", "kv_load_failure_policy": "recompute"},
    )


def files(folder):
    both = {"kv_connector_extra_config": {"shared_storage_path": str(folder)}}
    return ({"kv_connector": "ExampleConnector", "kv_role": "kv_both", **both},) * 2


@pytest.fixture(scope="module", params=["NixlConnector", "NixlPushConnector", "ExampleConnector"])
def connector(request):
    return request.param


@pytest.fixture(scope="module")
def sides(connector, servers, tmp_path_factory):
    """The prefill worker and the decode worker, which end with the last test of their connector."""
    configs = files(tmp_path_factory.mktemp("kv")) if connector == "ExampleConnector" else nixl(connector)
    started = servers.fresh(
        *(
            Wanted(
                args=(*TOOL_FLAGS, "--kv-transfer-config", json.dumps(config)),
                environment=(
                    ("VLLM_NIXL_SIDE_CHANNEL_PORT", str(free_ports(1))),
                    ("VLLM_SERVER_DEV_MODE", "1"),
                ),
            )
            for config in configs
        )
    )
    yield started
    for server in started:
        server.stop()


@pytest.fixture
async def gateway(sides):
    workers = [
        {"url": server.url, "roles": role} for server, role in zip(sides, ("prefill", "decode"), strict=True)
    ]
    async with running_gateway(workers, ready=False, health=PATIENT) as running:
        known = running.gateway.fleet.workers
        await until(lambda: len(known()) == 2 and all(w.routable for w in known()), within_s=60)
        yield running
        await running.at_rest()


def prompts(server):
    """Prompt tokens of a server by where they came from."""
    page = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False, verify=False).text
    return {source: float(value) for source, value in re.findall(rf'{SOURCE}{{.*source="(\w+)".*}} (\S+)', page)}


def change(before, after):
    return {source: after[source] - before[source] for source in after if after[source] != before[source]}


def fetched(connector, tokens):
    """Where a prompt comes from on a decode worker that computes no more of it than it must."""
    if connector != "ExampleConnector":
        return {"external_kv_transfer": tokens}
    # Files hold whole blocks, and never the last token; what is left over is less than two blocks.
    whole = (tokens - 2) // BLOCK * BLOCK
    return {"external_kv_transfer": whole, "local_compute": tokens - whole}


async def came(server, before, expected):
    """Until the server's prompt tokens since `before` have come from where they should."""
    await until(
        lambda: change(before, prompts(server)) == expected,
        lambda: f"{change(before, prompts(server))}, not {expected}",
        within_s=40,
    )


def body(path, words, **more):
    asked = {"messages": [{"role": "user", "content": words}]} if path == CHAT else {"prompt": words}
    return {"model": "tiny", **asked, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}


def choice_of(answer):
    [choice] = answer["choices"]
    return choice.get("text") or choice["message"]["content"], choice["finish_reason"]


async def ask(url, path, asked):
    async with httpx.AsyncClient(base_url=url, timeout=200, trust_env=False) as client:
        answer = await client.post(path, json=asked)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_pair_answers_as_one_server_does_and_the_decode_worker_recomputes_nothing(
    sides, pair, gateway, path, connector
):
    prefill, decode = sides
    asked = body(path, f"{path} at once: {WORDS}")
    before = [prompts(server) for server in sides]
    answer = (await ask(gateway.url, path, asked)).json()
    tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 24
    assert choice_of(answer) == choice_of((await ask(pair[0].url, path, asked)).json())
    assert answer["kv_transfer_params"] is None
    await came(decode, before[1], fetched(connector, tokens))
    await came(prefill, before[0], {"local_compute": tokens})
    [line] = gateway.lines()
    assert (line["prefill_worker"], line["worker"]) == (prefill.url, decode.url)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_through_a_pair_says_what_one_server_says(sides, pair, gateway, path, connector):
    asked = body(path, f"{path} bit by bit: {WORDS}")
    before = prompts(sides[1])
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=200
    ) as client:
        create = client.chat.completions.create if path == CHAT else client.completions.create
        stream = await create(
            **{name: value for name, value in asked.items() if name != "ignore_eos"},
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    text = "".join((one.delta.content or "") if path == CHAT else one.text for one in choices)
    expected = choice_of((await ask(pair[0].url, path, asked)).json())
    assert (text, choices[-1].finish_reason) == expected
    await came(sides[1], before, fetched(connector, chunks[-1].usage.prompt_tokens))


async def test_messages_go_through_a_pair_too(sides, pair, gateway, connector):
    said = {"role": "user", "content": f"messages: {WORDS}"}
    asked = {"model": "tiny", "messages": [said], "max_tokens": 24, "temperature": 0}
    before = prompts(sides[1])
    answer = (await ask(gateway.url, "/v1/messages", asked)).json()
    expected = (await ask(pair[0].url, "/v1/messages", asked)).json()
    assert answer["content"] == expected["content"]
    # Cached tokens are no input tokens in this dialect; what files hold counts as cached.
    usage = answer["usage"]
    tokens = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    await came(sides[1], before, fetched(connector, tokens))


async def test_log_probabilities_are_those_of_one_server(sides, pair, gateway, connector):
    asked = body(CHAT, f"how likely: {WORDS}", logprobs=True, top_logprobs=2)
    before = prompts(sides[1])
    answers = [(await ask(server.url, CHAT, asked)).json() for server in (gateway, pair[0])]
    ours, expected = [answer["choices"][0]["logprobs"]["content"] for answer in answers]
    assert len(ours) == 24
    for one, other in zip(ours, expected, strict=True):
        assert [each["token"] for each in one["top_logprobs"]] == [each["token"] for each in other["top_logprobs"]]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=0.05)
    await came(sides[1], before, fetched(connector, answers[0]["usage"]["prompt_tokens"]))


async def test_tools_and_schemas_are_known_to_both_workers(sides, pair, gateway, connector):
    schema = {"type": "object", "properties": {"tide": {"enum": ["ebb", "flow"]}}, "required": ["tide"]}
    formed = {"type": "json_schema", "json_schema": {"name": "tide", "schema": schema}}
    for more in ({"tools": TOOLS}, {"response_format": formed, "ignore_eos": False}):
        asked = body(CHAT, f"{list(more)}: {WORDS}", **more)
        before = prompts(sides[1])
        answer = (await ask(gateway.url, CHAT, asked)).json()
        expected = (await ask(pair[0].url, CHAT, asked)).json()
        assert answer["choices"] == expected["choices"]
        assert "response_format" not in more or choice_of(answer)[0].lstrip().startswith("{")
        await came(sides[1], before, fetched(connector, answer["usage"]["prompt_tokens"]))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_ends_with_its_first_token_is_given_at_once_and_its_kv_let_go(
    sides, pair, gateway, stream
):
    decode = sides[1]
    asked = body(TEXT, f"{stream}: {WORDS}")
    first, _ = choice_of((await ask(pair[0].url, TEXT, {**asked, "max_tokens": 1})).json())
    asked |= {"stop": [first], "include_stop_str_in_output": True, "stream": stream}
    before = prompts(decode)
    answer = await ask(gateway.url, TEXT, asked)
    if stream:
        lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert [choice_of(line) for line in lines] == [(first, "stop")]
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert choice_of(answer.json()) == (first, "stop")
    # At most the word that lets the prefill go, which has a prompt of its own.
    assert sum(change(before, prompts(decode)).values()) < BLOCK
    await let_go(sides)


async def let_go(sides):
    """Until the prefill worker holds no KV: told, and looked at, in steps that either worker makes for others."""
    async with asyncio.timeout(120):
        while True:
            for server in reversed(sides):
                # Two blocks: a prompt of less than one, seen twice, ends an engine whose KV goes to files.
                await ask(server.url, TEXT, {"model": "tiny", "prompt": "a step " * 4 * BLOCK, "max_tokens": 1})
            if sides[0].counted("vllm:kv_cache_usage_perc") == 0:
                return
            await asyncio.sleep(0.1)


async def control(server, what):
    async with httpx.AsyncClient(base_url=server.url, timeout=100, trust_env=False) as client:
        (await client.post(f"/{what}")).raise_for_status()


def idle(server):
    return not (server.counted("vllm:num_requests_running") or server.counted("vllm:num_requests_waiting"))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_the_prefill_frees_it_and_nobody_decodes(sides, gateway, stream):
    prefill, decode = sides
    first = gateway.gateway.connections.get(prefill.url)
    before = prompts(decode)
    await control(prefill, "pause?mode=abort")
    try:
        async with raw_client(gateway.port) as client:
            await client.send(post(TEXT, body(TEXT, f"left early, {stream}: {WORDS}", stream=stream)))
            await until(lambda: first.busy, within_s=60)
            client.vanish()
            await gateway.at_rest()
    finally:
        await control(prefill, "resume")
    await until(lambda: idle(prefill), within_s=60)
    assert change(before, prompts(decode)) == {}
    assert gateway.outcomes() == {"cancelled": 1}
    await let_go(sides)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_the_decode_frees_both_workers(sides, gateway, stream):
    prefill, decode = sides
    begun = prompts(decode)
    async with raw_client(gateway.port) as client:
        asked = body(TEXT, f"left late, {stream}: {WORDS}", max_tokens=60_000, stream=stream)
        await client.send(post(TEXT, asked))
        await until(lambda: "external_kv_transfer" in change(begun, prompts(decode)), within_s=100)
        client.vanish()
    await until(lambda: idle(decode) and idle(prefill), within_s=100)
    assert decode.counted("vllm:generation_tokens_total") > 0
    await let_go(sides)
    await gateway.at_rest()
    assert gateway.outcomes() == {"cancelled": 1}


async def test_a_mistake_of_the_client_is_told_by_the_prefill_worker_or_the_decode_worker(sides, gateway):
    for change_of in ({"temperature": -1}, {"max_tokens": 10**6}):
        answer = await gateway.http.post(TEXT, json={**body(TEXT, WORDS), **change_of}, timeout=200)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(change_of))
    await let_go(sides)


async def test_requests_that_share_an_id_get_each_its_own_kv(sides, pair, gateway):
    # Short answers: four at once are computed in one batch, in which a random model's near ties fall otherwise.
    asked_for = [f"{number} of one name: {WORDS * (number + 1)}" for number in range(4)]
    bodies = [body(CHAT, text, max_tokens=8) for text in asked_for]
    headers = {"x-request-id": "the same"}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=200, trust_env=False, headers=headers) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=asked) for asked in bodies))
    for asked, answer in zip(bodies, answers, strict=True):
        assert answer.headers["x-request-id"] == "the same"
        assert choice_of(answer.json()) == choice_of((await ask(pair[0].url, CHAT, asked)).json())
    assert any("prefill_worker" in line for line in gateway.lines())  # those for which there is no room run whole
    await let_go(sides)


async def test_several_answers_are_one_workers_own(sides, gateway):
    before = [prompts(server) for server in sides]
    answer = await ask(gateway.url, CHAT, body(CHAT, f"twice: {WORDS}", n=2, temperature=1))
    assert len(answer.json()["choices"]) == 2
    [line] = gateway.lines()
    assert "prefill_worker" not in line
    worked = [server.url == line["worker"] for server in sides]
    await until(lambda: [bool(change(*each)) for each in zip(before, map(prompts, sides), strict=True)] == worked)


async def test_without_the_prefill_worker_the_decode_worker_does_it_all(sides, pair, gateway):
    prefill, decode = sides
    asked = body(CHAT, f"alone: {WORDS}")
    before = prompts(decode)
    prefill.signal(signal.SIGKILL)
    answer = (await ask(gateway.url, CHAT, asked)).json()
    assert choice_of(answer) == choice_of((await ask(pair[0].url, CHAT, asked)).json())
    await came(decode, before, {"local_compute": answer["usage"]["prompt_tokens"]})
