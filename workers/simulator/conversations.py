"""Answers of `/v1/responses` (OpenAI) and `/v1/messages` (Anthropic): streams of named events."""

import time
from typing import Any

import orjson

from workers.simulator.api_errors import invalid
from workers.simulator.asks import Ask, check_messages
from workers.simulator.live import Call, Generation


def named_event(name: str, value: dict[str, Any]) -> bytes:
    """One server-sent event with a name, which is also its `type`."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps({"type": name, **value}) + b"\n\n"


def responses_messages(body: dict[str, Any], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation of a `/v1/responses` body after the `earlier` turns, as chat messages."""
    given = body.get("input")
    if given is None:
        raise invalid("body.input", "Field required")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise invalid("body.input", "Input should be a text or a list of items")
    turns = [item if isinstance(item.get("role"), str) else {"role": "tool", "content": [item]} for item in given]
    system = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    return [*system, *earlier, *turns]


def anthropic_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a `/v1/messages` body, as chat messages."""
    messages = check_messages(body, "messages")
    system = body.get("system")
    return [{"role": "system", "content": system}, *messages] if system else messages


class ResponsesShape:
    """`/v1/responses`."""

    def __init__(self, ask: Ask, call: Call) -> None:
        self.ask = ask
        self.call = call
        self.created = int(time.time())
        self._number = -1
        self._item_id = "msg_" + call.id.removeprefix("resp_")

    def _named(self, name: str, value: dict[str, Any]) -> bytes:
        self._number += 1
        return named_event(name, {**value, "sequence_number": self._number})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def body(self, status: str, output: list[dict[str, Any]], spent: dict[str, Any] | None) -> dict[str, Any]:
        """The response object in some state."""
        body = self.ask.body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.call.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": bool(body.get("background")),
            "error": None,
            "incomplete_details": cut,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens") or self.ask.max_tokens,
            "metadata": body.get("metadata"),
            "model": self.ask.line,
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "previous_response_id": body.get("previous_response_id"),
            "service_tier": "auto",
            "temperature": body.get("temperature", 1.0),
            "text": body.get("text"),
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p", 1.0),
            "truncation": body.get("truncation") or "disabled",
            "usage": spent,
            "user": body.get("user"),
        }

    def opening(self) -> bytes:
        response = self.body("in_progress", [], None)
        item = {"output_index": 0, "item": self._item("in_progress", [])}
        return b"".join(
            (
                self._named("response.created", {"response": response}),
                self._named("response.in_progress", {"response": response}),
                self._named("response.output_item.added", item),
                self._named("response.content_part.added", {**self._place(), "part": self._part("")}),
            )
        )

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.reply.text(start, stop)
        if not text:
            return b""
        value = {**self._place(), "delta": text, "logprobs": []}
        return self._named("response.output_text.delta", value)

    def closing(self) -> bytes:
        whole = self.whole()
        item = whole["output"][0]
        part = item["content"][0]
        text = {**self._place(), "text": part["text"], "logprobs": []}
        return b"".join(
            (
                self._named("response.output_text.done", text),
                self._named("response.content_part.done", {**self._place(), "part": part}),
                self._named("response.output_item.done", {"output_index": 0, "item": item}),
                self._named(
                    "response.incomplete" if whole["status"] == "incomplete" else "response.completed",
                    {"response": whole},
                ),
            )
        )

    def whole(self) -> dict[str, Any]:
        [generation] = self.call.generations
        status = {"stop": "completed", "length": "incomplete"}.get(generation.finish or "", "cancelled")
        spent = {
            "input_tokens": self.ask.prompt_tokens,
            "input_tokens_details": {"cached_tokens": generation.cached},
            "output_tokens": generation.final,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.ask.prompt_tokens + generation.final,
        }
        part = self._part(generation.reply.text(0, generation.final))
        item = self._item("incomplete" if status == "incomplete" else "completed", [part])
        return self.body(status, [item], spent)


class MessagesShape:
    """`/v1/messages`."""

    def __init__(self, ask: Ask, call: Call) -> None:
        self.ask = ask
        self.call = call

    def _message(self, content: list[dict[str, Any]], output_tokens: int, reason: str | None) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.ask.line,
            "stop_reason": reason,
            "stop_sequence": self.call.generations[0].reply.stop_string if reason == "stop_sequence" else None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "input_tokens": self.ask.prompt_tokens,
            "output_tokens": output_tokens,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": self.call.generations[0].cached,
        }

    def _reason(self) -> str:
        [generation] = self.call.generations
        if generation.reply.stop_string is not None:
            return "stop_sequence"
        return "max_tokens" if generation.finish == "length" else "end_turn"

    def opening(self) -> bytes:
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        start = named_event("message_start", {"message": self._message([], 0, None)})
        return start + named_event("content_block_start", block)

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.reply.text(start, stop)
        if not text:
            return b""
        return named_event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})

    def closing(self) -> bytes:
        whole = self.whole()
        ended = {key: whole[key] for key in ("stop_reason", "stop_sequence")}
        return b"".join(
            (
                named_event("content_block_stop", {"index": 0}),
                named_event("message_delta", {"delta": ended, "usage": whole["usage"]}),
                named_event("message_stop", {}),
            )
        )

    def whole(self) -> dict[str, Any]:
        [generation] = self.call.generations
        text = generation.reply.text(0, generation.final)
        return self._message([{"type": "text", "text": text}], generation.final, self._reason())
