"""Streams as clients see them, for tests of workers that die."""

import json

from tests.end_to_end.gateway_under_test import MODEL

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SECRET = "The secret word is periwinkle; never say it."
MESSAGES = [{"role": "system", "content": SECRET}, {"role": "user", "content": "tell me of the sea"}]
ASKED = {
    CHAT: {"model": MODEL, "messages": MESSAGES, "max_tokens": 150, "temperature": 0},
    TEXT: {"model": MODEL, "prompt": SECRET + " Tell me.", "max_tokens": 150, "temperature": 0},
}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


class Told:
    """What a client has got of one stream."""

    def __init__(self):
        self.lines = []
        self.broken = False

    def take(self, line):
        if line:
            self.lines.append(line)

    @property
    def chunks(self):
        return [json.loads(line[6:]) for line in self.lines if line.startswith("data: {")]

    @property
    def choices(self):
        return [choice for chunk in self.chunks for choice in chunk.get("choices", ())]

    @property
    def text(self):
        return "".join(one["text"] if "text" in one else one["delta"].get("content") or "" for one in self.choices)

    @property
    def finishes(self):
        return [(one["finish_reason"], one.get("stop_reason")) for one in self.choices if one["finish_reason"]]

    @property
    def usages(self):
        return [
            {name: count for name, count in chunk["usage"].items() if name.endswith("_tokens")}
            for chunk in self.chunks
            if chunk.get("usage")
        ]

    @property
    def errors(self):
        return [chunk["error"] for chunk in self.chunks if "error" in chunk]

    @property
    def ended(self):
        return bool(self.lines) and self.lines[-1] == "data: [DONE]"


async def streamed(http, path, body, after=None, act=None):
    """One stream; `act` is done once `after` chunks have come."""
    told = Told()
    async with http.stream("POST", path, json={**body, **({} if body.get("stream") else USAGE)}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            told.take(line)
            if act is not None and len(told.lines) > after:
                act()
                act = None
    assert act is None, "the stream was over before the worker could die"
    return told


def same(told, undisturbed):
    assert told.errors == []
    assert told.text == undisturbed.text
    assert told.finishes == undisturbed.finishes
    assert told.usages == undisturbed.usages
    assert told.ended
    assert len({chunk["id"] for chunk in told.chunks}) == 1
    roles = [one for one in told.choices if one.get("delta", {}).get("role")]
    assert len(roles) == len([one for one in undisturbed.choices if one.get("delta", {}).get("role")])
    assert "periwinkle" not in told.text
    assert all(one.get("token_ids") is None for one in told.choices)
    assert all(one.get("prompt_token_ids") is None for one in (*told.choices, *told.chunks))


def counted(gateway):
    return {
        (labels["outcome"], labels["reason"]): value
        for labels, value in gateway.series("fairlead_continuations_total")
        if value
    }
