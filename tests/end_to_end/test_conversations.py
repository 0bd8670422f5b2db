"""Conversations in front of workers that report nothing: their caches are predicted, answers included."""

from random import Random

from gateway_under_test import MODEL, running_fleet

WORDS = ["many", "a", "word", "about", "the", "sea", "its", "ships", "and", "those", "who", "steer", "them"]


def speech(chance):
    return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(10, 60)))


async def say(http, messages, chance):
    """One turn: what the worker answers stands in the next one's prompt."""
    messages.append({"role": "user", "content": speech(chance)})
    body = {"model": MODEL, "messages": messages, "max_tokens": chance.randrange(40, 120), "ignore_eos": True}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    messages.append(answer.json()["choices"][0]["message"])


async def held(tokenizer):
    """Eight turns each of five conversations, on three workers: the log line of every request."""
    async with running_fleet(3, tokenization={"tokenizer": tokenizer}) as fleet:
        chance = Random(2)
        chats = [[{"role": "system", "content": speech(chance)}] for _ in range(5)]
        for _ in range(8):
            for chat in chats:
                await say(fleet.http, chat, chance)
        return fleet.gateway.lines()


async def test_where_tokens_are_known_the_next_turn_is_foretold_to_the_token():
    lines = await held("worker")
    wrong = [line["cached_tokens"] - line["matched_tokens"] for line in lines]
    assert sum(line["cached_tokens"] > 100 for line in lines) >= 30
    # The first answer that is found where it was supposed is the reason to suppose it of others.
    assert sum(each != 0 for each in wrong) <= 1, wrong


async def test_where_they_are_not_an_answer_in_the_next_prompt_is_no_surprise_all_the_same():
    lines = await held("text")
    found = [line["cached_tokens"] - line["matched_tokens"] for line in lines]
    # What is foretold is as wrong as the tokens that are taken to be in a text, but no answer is missing.
    assert sum(each > 40 for each in found) <= 2, found
