"""Answers of `/v1/responses` (OpenAI) and `/v1/messages` (Anthropic): streams of named events."""

import time
from typing import Any

import orjson

from workers.simulator.api_errors import invalid, missing
from workers.simulator.real_time import Call, Generation
from workers.simulator.requests import ApiRequest, check_messages


def named_event(value: dict[str, Any]) -> bytes:
    """One server-sent event, named by its `type`."""
    name: str = value["type"]
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


def responses_messages(body: dict[str, Any], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation of a `/v1/responses` body after the `earlier` turns, as chat messages."""
    given = body.get("input")
    if given is None:
        raise missing("body.input")
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

    def __init__(self, request: ApiRequest, call: Call) -> None:
        self.request = request
        self.call = call
        self.created = int(time.time())
        self._number = -1
        self._item_id = "msg_" + call.id.removeprefix("resp_")

    def _named(self, name: str, value: dict[str, Any]) -> bytes:
        self._number += 1
        return named_event({**value, "sequence_number": self._number, "type": name})

    def _text_event(self, name: str, value: dict[str, Any]) -> bytes:
        place = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
        return self._named(name, {**place, **value})

    def _part(self, text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def body(self, status: str, output: list[dict[str, Any]], spent: dict[str, Any] | None) -> dict[str, Any]:
        """The response object in some state."""
        body = self.request.body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        tools = body.get("tools") or []
        return {
            "id": self.call.id,
            "created_at": self.created,
            "incomplete_details": cut,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self.request.line,
            "object": "response",
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "temperature": float(body.get("temperature", 1.0)),
            "tool_choice": body.get("tool_choice", "auto") if tools else "none",
            "tools": tools,
            "top_p": float(body.get("top_p", 1.0)),
            "background": bool(body.get("background")),
            "max_output_tokens": body.get("max_output_tokens") or self.request.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": body.get("previous_response_id"),
            "prompt": None,
            "reasoning": body.get("reasoning"),
            "service_tier": "auto",
            "status": status,
            "text": body.get("text"),
            "top_logprobs": body.get("top_logprobs"),
            "truncation": body.get("truncation") or "disabled",
            "usage": spent,
            "user": body.get("user"),
            "presence_penalty": float(body.get("presence_penalty") or 0),
            "frequency_penalty": float(body.get("frequency_penalty") or 0),
            "kv_transfer_params": self.call.hand_out,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def opening(self) -> bytes:
        response = self.body("in_progress", [], None)
        item = {"item": self._item("in_progress", []), "output_index": 0}
        return b"".join(
            (
                self._named("response.created", {"response": response}),
                self._named("response.in_progress", {"response": response}),
                self._named("response.output_item.added", item),
                self._text_event("response.content_part.added", {"part": self._part("", [])}),
            )
        )

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.news(start, stop)
        if not text:
            return b""
        self._number += 1
        return named_event(
            {
                "content_index": 0,
                "delta": text,
                "item_id": self._item_id,
                "logprobs": [],
                "output_index": 0,
                "sequence_number": self._number,
                "type": "response.output_text.delta",
            }
        )

    def closing(self) -> bytes:
        whole = self.whole()
        item = whole["output"][0]
        part = item["content"][0]
        said = {
            "content_index": 0,
            "item_id": self._item_id,
            "logprobs": [],
            "output_index": 0,
            "text": part["text"],
        }
        return b"".join(
            (
                self._named("response.output_text.done", said),
                self._text_event("response.content_part.done", {"part": part}),
                self._named("response.output_item.done", {"item": item, "output_index": 0}),
                # vLLM's last event has this name even where the answer is cut and its status says so.
                self._named("response.completed", {"response": whole}),
            )
        )

    def whole(self) -> dict[str, Any]:
        [generation] = self.call.generations
        # An answer that was given up is "completed" as well: on this surface vLLM does not tell.
        status = "incomplete" if generation.finish == "length" else "completed"
        turns: dict[str, Any] = {
            "cache_write_tokens": 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        }
        tools = {"tool_output_tokens": 0, "output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
        spent = {
            "input_tokens": self.request.prompt_tokens,
            "input_tokens_details": {"cached_tokens": generation.cached, **turns},
            "output_tokens": generation.final,
            "output_tokens_details": {"reasoning_tokens": 0, **tools},
            "total_tokens": self.request.prompt_tokens + generation.final,
        }
        part = self._part(generation.text())
        return self.body(status, [self._item("completed", [part])], spent)


class MessagesShape:
    """`/v1/messages`."""

    def __init__(self, request: ApiRequest, call: Call) -> None:
        self.request = request
        self.call = call

    def _message(self, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.request.line,
            **self._stop(),
            "usage": usage,
        }

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        cached = self.call.generations[0].cached
        return {
            "input_tokens": self.request.prompt_tokens - cached,
            "output_tokens": output_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }

    def _stop(self) -> dict[str, Any]:
        """Why it ended; None while it goes on, and for an answer that was given up."""
        [generation] = self.call.generations
        text = generation.reply.stop_string if generation.finish == "stop" else None
        reason = {"length": "max_tokens", "stop": "stop_sequence" if text else "end_turn"}.get(
            generation.finish or ""
        )
        return {"stop_reason": reason, "stop_sequence": text}

    def opening(self) -> bytes:
        begun = self._message([], {"input_tokens": self.request.prompt_tokens, "output_tokens": 0})
        begun |= {"stop_reason": None, "stop_sequence": None}
        block = {"content_block": {"type": "text", "text": ""}, "index": 0}
        start = named_event({"type": "message_start", "message": begun})
        return start + named_event({"type": "content_block_start", **block})

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.news(start, stop)
        if not text:
            return b""
        delta = {"type": "text_delta", "text": text}
        return named_event({"type": "content_block_delta", "delta": delta, "index": 0})

    def closing(self) -> bytes:
        [generation] = self.call.generations
        ended = {"delta": self._stop(), "usage": self._usage(generation.final)}
        return b"".join(
            (
                named_event({"type": "content_block_stop", "index": 0}),
                named_event({"type": "message_delta", **ended}),
                named_event({"type": "message_stop"}),
            )
        )

    def whole(self) -> dict[str, Any]:
        """Without what is None, as vLLM writes it."""
        [generation] = self.call.generations
        text = generation.text()
        message = self._message([{"type": "text", "text": text}], self._usage(generation.final))
        message["kv_transfer_params"] = self.call.hand_out
        return {name: value for name, value in message.items() if value is not None}
