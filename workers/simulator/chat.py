"""Answers of `/v1/chat/completions` and `/v1/completions`, streamed and whole.

The constant parts of a chunk are made once per choice; what is left per chunk is the text and three joins.
"""

import time
from typing import Any, Protocol

import orjson

from workers.simulator.real_time import Call, Generation
from workers.simulator.requests import ApiRequest
from workers.simulator.tokens import token_bytes

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "vllm-0.32.0-51a1a7ed"


class Shape(Protocol):
    """How one endpoint writes an answer. `start` and `stop` are positions in a generation's output tokens."""

    def opening(self) -> bytes:
        """Written once, with the first tokens."""

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        """Tokens start..stop; with its finish reason where the generation has ended at `stop`."""

    def closing(self) -> bytes:
        """Written after the last delta."""

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def usage(request: ApiRequest, call: Call, output_tokens: int | None = None) -> dict[str, Any]:
    """VLLM's usage object without its details; `output_tokens` None: those of the ended generations."""
    if output_tokens is None:
        output_tokens = sum(generation.final for generation in call.generations)
    return {
        "prompt_tokens": request.prompt_tokens,
        "total_tokens": request.prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
    }


def _cached(request: ApiRequest, call: Call) -> int:
    return sum(generation.cached for generation in call.generations[:: request.n])


def _logprob(token_id: int, rank: int) -> float:
    return -(hash((token_id, rank)) % 500) / 1000 - rank


def _token(token_id: int, rank: int) -> dict[str, Any]:
    raw = token_bytes(token_id)
    return {"token": raw.decode(errors="replace"), "logprob": _logprob(token_id, rank), "bytes": list(raw)}


class _Choices:
    """What both endpoints share: chunks of choices, usage at the end."""

    kind = ""
    chunk_kind = ""
    created_cache_tokens: int | None = None
    """As vLLM says it with a prefix cache that counts hits only; it leaves it out of a stream where it is None."""

    def __init__(self, request: ApiRequest, call: Call) -> None:
        self.request = request
        self.call = call
        self.created = int(time.time())
        self._plain = not (
            request.continuous_usage or request.logprobs is not None or request.body.get("return_token_ids")
        )
        head = self._chunk([])
        self._head = orjson.dumps(head).partition(b'"choices":[')[0] + b'"choices":['

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "object": self.chunk_kind,
            "created": self.created,
            "model": self.request.line,
            "choices": choices,
        }

    def _event(self, choice: dict[str, Any], generation: Generation, stop: int) -> bytes:
        chunk = self._chunk([choice])
        if self.request.continuous_usage:
            sent = sum(other.sent for other in self.call.generations if other is not generation)
            chunk["usage"] = usage(self.request, self.call, sent + stop)
        if choice["finish_reason"] is not None and not self.request.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return event(chunk)

    def _token_ids(self, generation: Generation, start: int, stop: int) -> list[int] | None:
        return list(generation.reply.ids(start, stop)) if self.request.body.get("return_token_ids") else None

    def _prompt_ids(self, generation: Generation) -> list[int] | None:
        return generation.prompt if self.request.body.get("return_token_ids") else None

    def finish(self, generation: Generation) -> str | None:
        if (
            generation.finish == "stop"
            and self.request.tool
            and self.request.body.get("tool_choice") == "required"
        ):
            return "tool_calls"
        return generation.finish

    def closing(self) -> bytes:
        if not self.request.include_usage:
            return DONE
        details: dict[str, Any] = {"cached_tokens": _cached(self.request, self.call)}
        if self.created_cache_tokens is not None:
            details["created_cache_tokens"] = self.created_cache_tokens
        chunk = self._chunk([])
        chunk["usage"] = {**usage(self.request, self.call), "prompt_tokens_details": details}
        chunk["system_fingerprint"] = FINGERPRINT
        return event(chunk) + DONE

    def whole(self) -> dict[str, Any]:
        details = {
            "cached_tokens": _cached(self.request, self.call),
            "created_cache_tokens": self.created_cache_tokens,
            "multimodal_tokens": None,
        }
        spent = {"prompt_tokens_details": details, "completion_tokens_details": None}
        return {
            **self._chunk([self._choice(generation) for generation in self.call.generations]),
            "object": self.kind,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(self.request, self.call), **spent},
            **self._about_the_prompt(),
            "kv_transfer_params": self.call.hand_out,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _about_the_prompt(self) -> dict[str, Any]:
        return {}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(_Choices):
    """`/v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    created_cache_tokens = 0

    def opening(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        spent = {"usage": usage(self.request, self.call, 0)} if self.request.continuous_usage else {}
        chunks = []
        for one in self.call.generations:
            chunk = self._chunk([{"index": one.index, "delta": role, "logprobs": None, "finish_reason": None}])
            about = {"prompt_token_ids": self._prompt_ids(one), "prompt_text": None}
            chunks.append(event({**chunk, **spent, **about}))
        return b"".join(chunks)

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.news(start, stop)
        ended = generation.ended(stop)
        if self._plain and not ended and self.request.tool is None:
            index = b"%d" % generation.index
            return b"".join(
                (
                    b"data: ",
                    self._head,
                    b'{"index":',
                    index,
                    b',"delta":{"content":',
                    orjson.dumps(text),
                    b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n',
                )
            )
        choice: dict[str, Any] = {
            "index": generation.index,
            "delta": self._content(generation, text, first=start == 0),
            "logprobs": self._logprobs(generation, start, stop),
            "finish_reason": self.finish(generation) if ended else None,
        }
        if ended:
            choice["stop_reason"] = generation.reply.stop_string
        choice["token_ids"] = self._token_ids(generation, start, stop)
        return self._event(choice, generation, stop)

    def _content(self, generation: Generation, text: str, *, first: bool) -> dict[str, Any]:
        if self.request.tool is None:
            return {"content": text}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if first:
            call |= {"id": self._tool_id(generation), "type": "function"}
            call["function"]["name"] = self.request.tool
        return {"tool_calls": [call]}

    def _tool_id(self, generation: Generation) -> str:
        return f"chatcmpl-tool-{self.call.id[-24:]}{generation.index}"

    def _logprobs(self, generation: Generation, start: int, stop: int) -> dict[str, Any] | None:
        count = self.request.logprobs
        if count is None:
            return None
        content = []
        for token_id in generation.reply.ids(start, min(stop, generation.reply.total - generation.reply.silent)):
            top = [_token(token_id + rank, rank) for rank in range(count)]
            content.append({**_token(token_id, 0), "top_logprobs": top})
        return {"content": content}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text = generation.text()
        message: dict[str, Any] = {"role": "assistant", "content": text}
        message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
        if self.request.tool is not None:
            function = {"name": self.request.tool, "arguments": text}
            call = {"id": self._tool_id(generation), "type": "function", "function": function}
            message |= {"content": "", "tool_calls": [call]}
        message["reasoning"] = None
        return {
            "index": generation.index,
            "message": message,
            "logprobs": self._logprobs(generation, 0, generation.final),
            "finish_reason": self.finish(generation),
            "stop_reason": generation.reply.stop_string,
            "token_ids": self._token_ids(generation, 0, generation.final),
            "routed_experts": None,
        }

    def _about_the_prompt(self) -> dict[str, Any]:
        ids = self._prompt_ids(self.call.generations[0])
        return {"prompt_logprobs": None, "prompt_token_ids": ids, "prompt_text": None}


class CompletionShape(_Choices):
    """`/v1/completions`."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def opening(self) -> bytes:
        return b""

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.news(start, stop)
        ended = generation.ended(stop)
        if self._plain and not ended:
            index = b"%d" % generation.index
            tail = (
                b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,'
                b'"token_ids":null}]}\n\n'
            )
            return b"".join((b"data: ", self._head, b'{"index":', index, b',"text":', orjson.dumps(text), tail))
        choice = {
            "index": generation.index,
            "text": text,
            "logprobs": self._logprobs(generation, start, stop),
            "finish_reason": generation.finish if ended else None,
            "stop_reason": generation.reply.stop_string if ended else None,
            "prompt_token_ids": self._prompt_ids(generation) if start == 0 else None,
            "token_ids": self._token_ids(generation, start, stop),
        }
        return self._event(choice, generation, stop)

    def _logprobs(self, generation: Generation, start: int, stop: int) -> dict[str, Any] | None:
        count = self.request.logprobs
        if count is None:
            return None
        reply = generation.reply
        ids = reply.ids(start, min(stop, reply.total - reply.silent))
        tokens = [token_bytes(token_id).decode(errors="replace") for token_id in ids]
        at, offsets = len(reply.text(0, start)), []
        for token in tokens:
            offsets.append(at)
            at += len(token)
        top = []
        for token_id in ids:
            others = [_token(token_id + rank, rank) for rank in range(max(1, count))]
            top.append({other["token"]: other["logprob"] for other in others})
        chosen = [_logprob(token_id, 0) for token_id in ids]
        return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        return {
            "index": generation.index,
            "text": generation.text(),
            "logprobs": self._logprobs(generation, 0, generation.final),
            "finish_reason": generation.finish,
            "stop_reason": generation.reply.stop_string,
            "token_ids": self._token_ids(generation, 0, generation.final),
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt_ids(generation),
            "routed_experts": None,
        }
