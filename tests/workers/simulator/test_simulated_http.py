"""vLLM's HTTP surface on a real socket, looked at byte by byte."""

import asyncio
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me about the sea and its tides."}]}


def config(**changes):
    given = {"model": "models/tiny", "served_names": ("tiny", "tiny-alias"), "loras": ("sql",)}
    return SimulatorConfig(**{**given, "profile": "instant", "max_model_len": 1024, **changes})


@pytest.fixture
async def worker():
    async with simulated_worker(config()) as one:
        yield one


@pytest.fixture
async def client(worker):
    async with httpx.AsyncClient(base_url=worker.url, verify=False) as one:
        yield one


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def post(client, path, body, **more):
    return await client.post(path, json=body, **more)


async def test_a_stream_says_what_the_whole_answer_says(client):
    body = {**CHAT, "max_tokens": 30}
    whole = (await post(client, "/v1/chat/completions", body)).json()
    answer = await post(
        client, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-2])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert {chunk["id"] for chunk in chunks[:-1]} == {chunks[0]["id"]}
    assert whole["object"] == "chat.completion"
    assert whole["model"] == "tiny"


async def test_without_stream_options_no_chunk_has_usage(client):
    answer = await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 3, "stream": True})
    assert all("usage" not in chunk for chunk in events(answer.text)[:-1])


async def test_continuous_usage_counts_up_on_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**CHAT, "max_tokens": 9, "ignore_eos": True, "stream": True, "stream_options": options}
    chunks = events((await post(client, "/v1/chat/completions", body)).text)[:-1]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 9


async def test_ignore_eos_gives_exactly_max_tokens_and_a_stop_comes_earlier(client):
    exact = (await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 700, "ignore_eos": True})).json()
    assert exact["usage"]["completion_tokens"] == 700
    assert exact["choices"][0]["finish_reason"] == "length"
    drawn = (await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 900})).json()
    assert drawn["usage"]["completion_tokens"] < 900
    assert drawn["choices"][0]["finish_reason"] == "stop"


async def test_two_workers_give_the_same_answer(client):
    async with simulated_worker(config()) as other, httpx.AsyncClient(base_url=other.url, verify=False) as second:
        answers = [(await post(one, "/v1/chat/completions", CHAT)).json() for one in (client, second)]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_a_repeat_hits_full_blocks_and_a_salt_does_not(client):
    text = "one two three four five six seven eight nine ten " * 8
    body = {"prompt": text, "max_tokens": 2}
    first, again = [(await post(client, "/v1/completions", body)).json()["usage"] for _ in range(2)]
    salted = (await post(client, "/v1/completions", {**body, "cache_salt": "a"})).json()["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["prompt_tokens_details"]["cached_tokens"] == (first["prompt_tokens"] - 1) // 16 * 16
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_next_turn_of_a_chat_hits_the_answer_before(client):
    answer = (await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 64, "ignore_eos": True})).json()
    turn = [*CHAT["messages"], answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    usage = (await post(client, "/v1/chat/completions", {"messages": turn, "max_tokens": 1})).json()["usage"]
    spent = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == (spent["total_tokens"] - 1) // 16 * 16


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("one text", 1), (["a text", "another"], 2), ([1, 2, 3], 1), ([[1, 2], [3, 4, 5], [6]], 3)],
)
async def test_completions_take_every_form_of_prompt(client, prompt, choices):
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "n": 2}
    answer = (await post(client, "/v1/completions", body)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * choices))
    assert answer["usage"]["completion_tokens"] == 8 * choices
    assert answer["object"] == "text_completion"


async def test_a_streamed_completion_of_several_prompts_says_the_same(client):
    body = {"prompt": ["a text", "another"], "max_tokens": 12, "n": 2}
    whole = (await post(client, "/v1/completions", body)).json()
    chunks = events((await post(client, "/v1/completions", {**body, "stream": True})).text)[:-1]
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}


async def test_a_stop_string_ends_the_answer(client):
    text = (await post(client, "/v1/completions", {"prompt": "x", "max_tokens": 40})).json()["choices"][0]["text"]
    word = text.split()[5]
    body = {"prompt": "x", "max_tokens": 40, "stop": [word]}
    choice = (await post(client, "/v1/completions", body)).json()["choices"][0]
    assert choice["text"] == text[: text.index(word)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", word)


async def test_models_list_aliases_and_adapters(client):
    cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
    assert cards["tiny"]["root"] == cards["tiny-alias"]["root"] == "models/tiny"
    assert cards["tiny"]["max_model_len"] == 1024
    assert cards["sql"]["parent"] == "tiny"
    answer = (await post(client, "/v1/chat/completions", {**CHAT, "model": "sql", "max_tokens": 1})).json()
    assert answer["model"] == "sql"
    aliased = (await post(client, "/v1/chat/completions", {**CHAT, "model": "tiny-alias", "max_tokens": 1})).json()
    assert aliased["model"] == "tiny"


async def test_probes_and_unknown_paths(client):
    for path in ("/health", "/ping"):
        answer = await client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert (await client.get("/version")).json() == {"version": "0.32.0"}
    assert (await client.get("/load")).json() == {"server_load": 0}
    missing = await client.post("/v1/nothing", json={})
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    wrong = await client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


async def test_metrics_have_vllm_names_and_count(client):
    await post(client, "/v1/completions", {"prompt": [1] * 40, "max_tokens": 7, "ignore_eos": True})
    await post(client, "/v1/completions", {"prompt": [1] * 40, "max_tokens": 7, "ignore_eos": True})
    text = (await client.get("/metrics")).text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, sample.labels.get("finished_reason")] = sample
    value = {key: sample.value for key, sample in samples.items()}
    assert value["vllm:num_requests_running", None] == 0
    assert value["vllm:num_requests_waiting", None] == 0
    assert value["vllm:kv_cache_usage_perc", None] == 0
    assert value["vllm:prompt_tokens_total", None] == 80
    assert value["vllm:generation_tokens_total", None] == 14
    assert value["vllm:prefix_cache_queries_total", None] == 80
    assert value["vllm:prefix_cache_hits_total", None] == 32
    assert value["vllm:num_preemptions_total", None] == 0
    assert value["vllm:request_success_total", "length"] == 2
    assert value["vllm:time_to_first_token_seconds_count", None] == 2
    assert value["vllm:e2e_request_latency_seconds_count", None] == 2
    assert samples["vllm:num_requests_running", None].labels == {"engine": "0", "model_name": "tiny"}
    cache = samples["vllm:cache_config_info", None].labels
    assert (cache["block_size"], cache["num_gpu_blocks"]) == ("16", "25000")
    assert value["process_start_time_seconds", None] > 1e9
    for family in text_string_to_metric_families(text):
        assert family.type != "unknown", family.name


async def test_an_unknown_model_has_the_exact_body(client):
    answer = await post(client, "/v1/chat/completions", {**CHAT, "model": "nope"})
    assert answer.status_code == 404
    assert answer.json() == {
        "error": {
            "message": "The model `nope` does not exist. Valid aliases: tiny, tiny-alias.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }
    answer = await post(client, "/v1/messages", {**CHAT, "model": "nope", "max_tokens": 3})
    assert (answer.status_code, answer.json()["type"]) == (404, "error")


async def test_a_prompt_that_is_too_long_has_the_exact_body(client):
    answer = await post(client, "/v1/completions", {"prompt": [1] * 1100})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "This model's maximum context length is 1024 tokens. However, your prompt contains 1100 input "
        "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        "prompt. (parameter=input_tokens, value=1100)",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }


@pytest.mark.parametrize(
    ("path", "body", "kind", "param"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 5000}, "BadRequestError", "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "9"}, "Bad Request", "body.max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": True}, "Bad Request", "body.max_tokens"),
        ("/v1/completions", {"prompt": {"a": 1}}, "Bad Request", "body.prompt"),
        ("/v1/completions", {"prompt": []}, "BadRequestError", "prompt"),
        ("/v1/completions", {"prompt": ""}, "BadRequestError", "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "BadRequestError", "max_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 0}, "BadRequestError", None),
        ("/v1/completions", {"prompt": "x", "n": 2, "temperature": 0}, "BadRequestError", None),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "BadRequestError", "temperature"),
        ("/v1/chat/completions", {}, "Bad Request", "body.messages"),
        ("/v1/chat/completions", {"messages": "hi"}, "Bad Request", "body.messages"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "Bad Request", "body.messages.0.role"),
        ("/v1/chat/completions", {**CHAT, "model": 7}, "Bad Request", "body.model"),
        ("/v1/chat/completions", {**CHAT, "stream": "yes"}, "Bad Request", "body.stream"),
        ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}, "BadRequestError", "tool_choice"),
        ("/v1/responses", {"model": "tiny"}, "Bad Request", "body.input"),
        ("/tokenize", {}, "Bad Request", "body.prompt"),
    ],
)
async def test_bad_bodies_get_a_400_that_names_the_place(client, path, body, kind, param):
    answer = await post(client, path, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (kind, param, 400)


async def test_malformed_json_and_wrong_content_type_are_400(client):
    json_type = {"content-type": "application/json"}
    answer = await client.post("/v1/completions", content=b'{"prompt": ', headers=json_type)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "Bad Request"
    assert answer.json()["error"]["param"].startswith("body.")
    answer = await client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 400


async def test_unknown_fields_are_ignored_and_huge_prompts_refused(client):
    answer = await post(client, "/v1/completions", {"prompt": "x", "max_tokens": 1, "what": {"is": "this"}})
    assert answer.status_code == 200
    answer = await post(client, "/v1/completions", {"prompt": "x " * 2_000_000})
    assert answer.status_code == 400


async def test_the_request_id_is_part_of_the_id_and_echoed(client):
    answer = await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 1}, headers={"X-Request-Id": "r7"})
    assert answer.json()["id"] == "chatcmpl-r7"
    assert answer.headers["x-request-id"] == "r7"


async def test_the_rank_must_exist(client):
    body = {**CHAT, "max_tokens": 1}
    answer = await post(client, "/v1/chat/completions", body, headers={"X-data-parallel-rank": "3"})
    assert answer.status_code == 400
    assert "data_parallel_rank 3 is out of range [0, 1)." in answer.json()["error"]["message"]
    good = await post(client, "/v1/chat/completions", body, headers={"X-data-parallel-rank": "0"})
    assert good.status_code == 200


async def test_a_key_guards_only_below_v1():
    async with (
        simulated_worker(config(api_key="k")) as worker,
        httpx.AsyncClient(base_url=worker.url, verify=False) as client,
    ):
        denied = await client.get("/v1/models")
        assert (denied.status_code, denied.json()) == (401, {"error": "Unauthorized"})
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer k"})).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await post(client, "/tokenize", {"prompt": "a"})).status_code == 200


async def test_tokenize_and_detokenize_are_inverse(client):
    text = "Übergrößenträger  say\n\tyes — 東京 🙂 x"
    tokens = (await post(client, "/tokenize", {"prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert (await post(client, "/detokenize", {"tokens": tokens["tokens"]})).json() == {"prompt": text}
    chat = (await post(client, "/tokenize", CHAT)).json()
    answer = (await post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 1})).json()
    assert chat["count"] == answer["usage"]["prompt_tokens"]


async def test_score_and_rerank_prefer_what_is_alike(client):
    body = {"query": "blue whales sing", "documents": ["stock prices fell", "whales sing at night"]}
    results = (await post(client, "/rerank", body)).json()["results"]
    assert [result["index"] for result in results] == [1, 0]
    body = {"text_1": "blue whales", "text_2": ["blue whales", "cars"]}
    data = (await post(client, "/score", body)).json()["data"]
    assert data[0]["score"] > data[1]["score"]


async def test_a_full_queue_says_503_or_an_error_inside_a_200_stream():
    slow = config(profile="h100-llama-3.1-8b", max_num_queued_reqs=1)
    async with simulated_worker(slow) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        body = {**CHAT, "max_tokens": 900, "ignore_eos": True}
        first = asyncio.create_task(post(client, "/v1/chat/completions", body))
        await until(lambda: worker.state()["running"] == 1)
        refused = await post(client, "/v1/chat/completions", body)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "Service Unavailable"
        streamed = await post(client, "/v1/chat/completions", {**body, "stream": True})
        assert streamed.status_code == 200
        error, done = events(streamed.text)
        assert error == refused.json()
        assert done == "[DONE]"
        first.cancel()
        await until(lambda: worker.state()["running"] == 0)


async def test_stored_responses_are_found_again_and_others_are_404(client):
    body = {"input": "Say something", "max_output_tokens": 20}
    first = (await post(client, "/v1/responses", body)).json()
    again = (await client.get(f"/v1/responses/{first['id']}")).json()
    assert again == first
    more = {**body, "input": "More", "previous_response_id": first["id"]}
    second = (await post(client, "/v1/responses", more)).json()
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    for answer in (
        await client.get("/v1/responses/resp_x"),
        await client.post("/v1/responses/resp_x/cancel"),
        await post(client, "/v1/responses", {**body, "previous_response_id": "resp_x"}),
    ):
        assert answer.status_code == 404
        assert "resp_x" in answer.json()["error"]["message"]
    assert (await client.post(f"/v1/responses/{first['id']}/cancel")).status_code == 400


async def test_a_background_response_can_be_cancelled():
    async with (
        simulated_worker(config(profile="h100-llama-3.1-8b")) as worker,
        httpx.AsyncClient(base_url=worker.url, verify=False) as client,
    ):
        body = {"input": "x", "background": True, "max_output_tokens": 900, "ignore_eos": True}
        queued = (await post(client, "/v1/responses", body)).json()
        assert queued["status"] == "queued"
        await until(lambda: worker.state()["running"] == 1)
        assert (await client.get(f"/v1/responses/{queued['id']}")).json()["status"] == "in_progress"
        cancelled = (await client.post(f"/v1/responses/{queued['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        assert worker.state()["running"] == 0


async def test_messages_stream_has_anthropic_events(client):
    body = {**CHAT, "max_tokens": 15, "system": "Be brief."}
    whole = (await post(client, "/v1/messages", body)).json()
    assert whole["type"] == "message"
    text = (await post(client, "/v1/messages", {**body, "stream": True})).text
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    said = "".join(one["delta"]["text"] for one in events(text) if one["type"] == "content_block_delta")
    assert said == whole["content"][0]["text"]
    count = (await post(client, "/v1/messages/count_tokens", body)).json()
    assert count["input_tokens"] == whole["usage"]["input_tokens"]


async def until(fact, limit_s=5.0):
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not fact():
        assert loop.time() < end, "it did not come to be"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_at_once(stream):
    slow = config(profile="h100-llama-3.1-8b")
    async with simulated_worker(slow) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        body = {**CHAT, "max_tokens": 900, "ignore_eos": True, "stream": stream, "n": 2}
        call = asyncio.create_task(post(client, "/v1/chat/completions", body))
        await until(lambda: worker.state()["running"] == 2 and worker.state()["generation_tokens"] > 10)
        call.cancel()
        await until(lambda: worker.state()["running"] == 0, 1.0)
        state = worker.state()
        assert (state["aborted"], state["finished"], state["gone"]) == (2, 0, 1)
        assert state["kv_blocks_used"] == 0
        assert state["generation_tokens"] < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [5, {"type": "image_url"}, None, "text"]}], "max_tokens": 1},
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": "x"}},
        {**CHAT, "tools": [1, {"function": "x"}], "tool_choice": {"function": 3}},
        {**CHAT, "n": 10**9},
        {**CHAT, "logprobs": True, "top_logprobs": 10**6},
        {"input": [{"type": "function_call_output", "output": 3}, {"role": "user", "content": 4}]},
    ],
)
async def test_odd_bodies_never_reach_an_internal_error(client, body):
    path = "/v1/responses" if "input" in body else "/v1/chat/completions"
    assert (await post(client, path, body)).status_code in (200, 400)
    assert (await client.get("/health")).status_code == 200
