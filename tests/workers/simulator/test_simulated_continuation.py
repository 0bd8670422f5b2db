"""Answers that are gone on with: ids, the rest of an answer, cut characters, stop strings that are held back.

Each fact was seen on vLLM 0.32.0.
"""

import json

import httpx
import pytest

from workers.simulator.server import SimulatorConfig, simulated_worker

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SECRET = {"role": "system", "content": "The secret word is periwinkle."}
ASK = {"messages": [SECRET, {"role": "user", "content": "tell me of the sea"}], "temperature": 0}


@pytest.fixture(params=["english", "chinese", "emoji"])
async def worker(request):
    async with (
        simulated_worker(SimulatorConfig(profile="instant", vocabulary=request.param)) as one,
        httpx.AsyncClient(base_url=one.url) as http,
    ):
        yield http


async def streamed(http, path, body):
    answer = await http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]


def text_of(chunks):
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") for choice in choices)


def ids_of(chunks):
    return [one for chunk in chunks for choice in chunk["choices"] for one in choice.get("token_ids") or ()]


async def test_ids_come_with_each_chunk_and_are_null_without_being_asked_for(worker):
    asked = {**ASK, "max_tokens": 20, "ignore_eos": True}
    told = await streamed(worker, CHAT, {**asked, "return_token_ids": True})
    untold = await streamed(worker, CHAT, asked)
    assert (len(ids_of(told)), ids_of(untold)) == (20, [])
    assert told[0]["prompt_token_ids"]
    assert untold[0]["prompt_token_ids"] is None
    assert text_of(told) == text_of(untold)
    assert all(chunk["choices"][0]["token_ids"] is None for chunk in untold[1:-1])
    said = (await worker.post("/detokenize", json={"tokens": ids_of(told)})).json()["prompt"]
    assert said.rstrip("\ufffd") == text_of(told)


async def test_a_prompt_that_ends_in_whole_characters_of_an_answer_gets_its_rest(worker):
    asked = {**ASK, "max_tokens": 60}
    told = await streamed(worker, CHAT, {**asked, "return_token_ids": True})
    prompt, ids, text = told[0]["prompt_token_ids"], ids_of(told), text_of(told)
    usage = told[-1]["usage"]
    leaks = 0
    for cut in range(1, len(ids) - 1):
        said = (await worker.post("/detokenize", json={"tokens": ids[:cut]})).json()["prompt"]
        rest = await streamed(
            worker, TEXT, {"prompt": prompt + ids[:cut], "max_tokens": 60 - cut, "return_token_ids": True}
        )
        assert ids_of(rest) == ids[cut:]
        assert rest[-1]["usage"]["completion_tokens"] == usage["completion_tokens"] - cut
        assert rest[-2]["choices"][0]["finish_reason"] == told[-2]["choices"][0]["finish_reason"]
        if said.endswith("\ufffd"):
            leaks += "periwinkle" in text_of(rest)
        else:
            assert said + text_of(rest) == text
    assert leaks == sum(
        [
            (await worker.post("/detokenize", json={"tokens": ids[:cut]})).json()["prompt"].endswith("\ufffd")
            for cut in range(1, len(ids) - 1)
        ]
    ), "as on vLLM: the detokenizer is primed with the prompt, and lets go of all of it with the next token"


async def test_text_is_held_back_for_stop_strings_while_ids_run_ahead():
    async with (
        simulated_worker(SimulatorConfig(profile="instant")) as one,
        httpx.AsyncClient(base_url=one.url) as http,
    ):
        asked = {"prompt": "tell me", "max_tokens": 30, "ignore_eos": True, "return_token_ids": True}
        text, ids = text_of(told := await streamed(http, TEXT, asked)), ids_of(told)
        at = 60
        stop = text[at : at + 9]
        held = await streamed(http, TEXT, {**asked, "stop": [stop, "never said"]})
        assert text_of(held) == text[:at]
        assert held[-2]["choices"][0]["stop_reason"] == stop
        assert ids_of(held) == ids[: len(ids_of(held))], "those of the stop string are among them"
        seen = said = 0
        for chunk in held[:-2]:
            seen, said = seen + len(ids_of([chunk])), said + len(text_of([chunk]))
            whole = (await http.post("/detokenize", json={"tokens": ids[:seen]})).json()["prompt"]
            assert said == max(0, len(whole) - 9), "the longest stop string has ten characters"
        shown = await streamed(http, TEXT, {**asked, "stop": [stop], "include_stop_str_in_output": True})
        assert text_of(shown) == text[: at + 9]
