"""Answers of `/v1/chat/completions` and `/v1/completions`, streamed and whole.

The constant parts of a chunk are made once per choice; what is left per chunk is the text and three joins.
"""

import time
from typing import Any, Protocol

import orjson

from workers.simulator.asks import Ask
from workers.simulator.live import Call, Generation
from workers.simulator.tokens import token_bytes

DONE = b"data: [DONE]\n\n"


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


def usage(ask: Ask, call: Call, output_tokens: int | None = None) -> dict[str, Any]:
    """VLLM's usage object; `output_tokens` None: those of the ended generations."""
    if output_tokens is None:
        output_tokens = sum(generation.final for generation in call.generations)
    cached = sum(generation.cached for generation in call.generations[:: ask.n])
    return {
        "prompt_tokens": ask.prompt_tokens,
        "total_tokens": ask.prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _logprob(token_id: int, rank: int) -> float:
    return -(hash((token_id, rank)) % 500) / 1000 - rank


def _token(token_id: int, rank: int) -> dict[str, Any]:
    raw = token_bytes(token_id)
    return {"token": raw.decode(errors="replace"), "logprob": _logprob(token_id, rank), "bytes": list(raw)}


class _Choices:
    """What both endpoints share: chunks of choices, usage at the end."""

    kind = ""
    chunk_kind = ""

    def __init__(self, ask: Ask, call: Call) -> None:
        self.ask = ask
        self.call = call
        self.created = int(time.time())
        self._plain = not (ask.continuous_usage or ask.logprobs is not None or ask.body.get("return_token_ids"))
        head = self._chunk([])
        self._head = orjson.dumps(head).partition(b'"choices":[')[0] + b'"choices":['

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "object": self.chunk_kind,
            "created": self.created,
            "model": self.ask.line,
            "choices": choices,
        }

    def _event(self, choice: dict[str, Any], generation: Generation, stop: int) -> bytes:
        chunk = self._chunk([choice])
        if self.ask.continuous_usage:
            sent = sum(other.sent for other in self.call.generations if other is not generation)
            chunk["usage"] = usage(self.ask, self.call, sent + stop)
        if self.ask.body.get("return_token_ids"):
            choice["token_ids"] = generation.reply.ids(generation.sent, stop)
        return event(chunk)

    def finish(self, generation: Generation) -> str | None:
        if generation.finish == "stop" and self.ask.tool and self.ask.body.get("tool_choice") == "required":
            return "tool_calls"
        return generation.finish

    def closing(self) -> bytes:
        if not self.ask.include_usage:
            return DONE
        chunk = self._chunk([])
        chunk["usage"] = usage(self.ask, self.call)
        return event(chunk) + DONE

    def whole(self) -> dict[str, Any]:
        answer = self._chunk([self._choice(generation) for generation in self.call.generations])
        return {**answer, "object": self.kind, "usage": usage(self.ask, self.call)}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(_Choices):
    """`/v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._event({"index": one.index, "delta": role, "logprobs": None, "finish_reason": None}, one, 0)
            for one in self.call.generations
        )

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.reply.text(start, stop)
        ended = generation.finish is not None and stop == generation.final
        if self._plain and not ended and self.ask.tool is None:
            if not text:
                return b""
            index = b"%d" % generation.index
            return b"".join(
                (
                    b"data: ",
                    self._head,
                    b'{"index":',
                    index,
                    b',"delta":{"content":',
                    orjson.dumps(text),
                    b'},"logprobs":null,"finish_reason":null}]}\n\n',
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
        return self._event(choice, generation, stop)

    def _content(self, generation: Generation, text: str, *, first: bool) -> dict[str, Any]:
        if self.ask.tool is None:
            return {"content": text}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if first:
            call |= {"id": self._tool_id(generation), "type": "function"}
            call["function"]["name"] = self.ask.tool
        return {"tool_calls": [call]}

    def _tool_id(self, generation: Generation) -> str:
        return f"chatcmpl-tool-{self.call.id[-24:]}{generation.index}"

    def _logprobs(self, generation: Generation, start: int, stop: int) -> dict[str, Any] | None:
        count = self.ask.logprobs
        if count is None:
            return None
        content = []
        for token_id in generation.reply.ids(start, min(stop, generation.reply.total - generation.reply.silent)):
            top = [_token(token_id + rank, rank) for rank in range(count)]
            content.append({**_token(token_id, 0), "top_logprobs": top})
        return {"content": content}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text = generation.reply.text(0, generation.final)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        if self.ask.tool is not None:
            function = {"name": self.ask.tool, "arguments": text}
            call = {"id": self._tool_id(generation), "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
        return {
            "index": generation.index,
            "message": message,
            "logprobs": self._logprobs(generation, 0, generation.final),
            "finish_reason": self.finish(generation),
            "stop_reason": generation.reply.stop_string,
        }


class CompletionShape(_Choices):
    """`/v1/completions`."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def opening(self) -> bytes:
        return b""

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        text = generation.reply.text(start, stop)
        ended = generation.finish is not None and stop == generation.final
        if self._plain and not ended:
            if not text:
                return b""
            index = b"%d" % generation.index
            tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
            return b"".join((b"data: ", self._head, b'{"index":', index, b',"text":', orjson.dumps(text), tail))
        choice = {
            "index": generation.index,
            "text": text,
            "logprobs": self._logprobs(generation, start, stop),
            "finish_reason": generation.finish if ended else None,
            "stop_reason": generation.reply.stop_string if ended else None,
        }
        return self._event(choice, generation, stop)

    def _logprobs(self, generation: Generation, start: int, stop: int) -> dict[str, Any] | None:
        count = self.ask.logprobs
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
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}

    def _choice(self, generation: Generation) -> dict[str, Any]:
        return {
            "index": generation.index,
            "text": generation.reply.text(0, generation.final),
            "logprobs": self._logprobs(generation, 0, generation.final),
            "finish_reason": generation.finish,
            "stop_reason": generation.reply.stop_string,
        }
