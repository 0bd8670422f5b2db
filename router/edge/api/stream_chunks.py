"""An answer that is there whole, in the words of a stream: for clients that asked for one."""

from typing import Any

import orjson

_KINDS = {"chat.completion": "chat.completion.chunk"}
"""What the chunks of an answer call themselves, where they differ from it."""


def as_events(answer: dict[str, Any], *, usage: bool, continuous: bool) -> bytes:
    """The events of a chat completion or completion with one choice; with its usage at the end, or everywhere."""
    counted = answer.get("usage") if usage else None
    [choice] = answer["choices"]
    chunks = [_chunk(answer, [part]) for part in _parts(choice)]
    if counted is not None:
        if continuous:
            for chunk in chunks:
                chunk["usage"] = counted
        chunks.append({**_chunk(answer, []), "usage": counted})
    if answer.get("system_fingerprint"):
        chunks[-1]["system_fingerprint"] = answer["system_fingerprint"]
    events = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks]
    return b"".join(events) + b"data: [DONE]\n\n"


def _chunk(answer: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    kind = answer.get("object", "")
    return {
        "id": answer.get("id"),
        "object": _KINDS.get(kind, kind),
        "created": answer.get("created"),
        "model": answer.get("model"),
        "choices": choices,
    }


def _parts(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """A choice in pieces: a message has its role first, then what it says; a text is one piece."""
    message = choice.get("message")
    if message is None:
        return [choice]
    said = {name: value for name, value in message.items() if value and name != "role"}
    opening = {"role": message.get("role", "assistant"), "content": ""}
    rest = {name: value for name, value in choice.items() if name != "message"}
    return [
        {"index": choice.get("index", 0), "delta": opening, "logprobs": None, "finish_reason": None},
        {**rest, "delta": {"content": "", **said}},
    ]
