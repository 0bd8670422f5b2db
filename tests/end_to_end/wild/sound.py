"""Sound messages of every surface, from which mutations start: what clients ask, and what vLLM answers."""

import json
from typing import Any

from tests.end_to_end.wild.listener import Answer, whole
from tests.end_to_end.wild.mutation import Headers
from tests.end_to_end.wild.strict_http import Message

MODEL = "tiny"
_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
_TOOL = {
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}

BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": _PNG}}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "sun"},
            ],
            "tools": [{"type": "function", "function": _TOOL}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "n": 2,
            "user": "u",
            "max_completion_tokens": 5,
            "chat_template_kwargs": {"enable_thinking": False},
            "priority": 1,
        },
    ),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 4, "stream": True}),
    ("/v1/completions", {"prompt": [1, 2, 3, 4], "max_tokens": 4, "n": 1, "logprobs": 1}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4, "cache_salt": "s"}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 4, "stream": True}),
    (
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
            "instructions": "i",
            "previous_response_id": "resp_1",
        },
    ),
    (
        "/v1/messages",
        {
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "max_tokens": 4,
            "metadata": {"user_id": "u"},
            "stream": True,
        },
    ),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
    ("/v1/embeddings", {"input": ["a", "b"]}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/tokenize", {"prompt": "Hi"}),
    ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}),
)
"""Path and body, without the model's name."""

FORM = (
    b'--xx\r\ncontent-disposition: form-data; name="model"\r\n\r\ntiny\r\n'
    b'--xx\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF....\r\n--xx--\r\n'
)
PAGES = (
    "/v1/models",
    "/v1/models/tiny",
    "/health",
    "/version",
    "/metrics",
    "/ready",
    "/v1/responses/resp_1",
    "/",
    "/docs",
)


def request_bytes(method: str, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[bytes, Headers]:
    """First line and headers of a sound request with this body."""
    given: Headers = [(b"Host", b"gateway"), *headers]
    if body or method == "POST":
        given.append((b"Content-Length", b"%d" % len(body)))
    return f"{method} {path} HTTP/1.1".encode(), given


def ask(path: str, fields: dict[str, Any]) -> bytes:
    """A whole sound request."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    first, headers = request_bytes("POST", path, body, (b"Content-Type", b"application/json"))
    return first + b"\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n" + body


# -- answers

_USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def document(path: str) -> dict[str, Any]:
    """The JSON of an answer in one piece."""
    match path:
        case "/v1/chat/completions":
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": MODEL,
                "choices": [choice],
                "usage": _USAGE,
            }
        case "/v1/completions":
            choice = {"index": 0, "text": "hello", "finish_reason": "length"}
            return {
                "id": "cmpl-1",
                "object": "text_completion",
                "model": MODEL,
                "choices": [choice],
                "usage": _USAGE,
            }
        case "/v1/responses":
            return _response("completed")
        case "/v1/messages":
            content = [{"type": "text", "text": "hello"}]
            usage = {"input_tokens": 2, "output_tokens": 3}
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "content": content,
                "stop_reason": "end_turn",
                "usage": usage,
            }
        case "/v1/embeddings":
            return {
                "object": "list",
                "data": [{"index": 0, "embedding": [0.1, 0.2]}],
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
            }
        case _:
            return {"count": 1, "tokens": [1]}


def events(path: str, *, usage: bool) -> list[tuple[bytes, Any]]:
    """The events of a streamed answer: name (empty if it has none) and JSON; text stands for itself."""
    if path in ("/v1/chat/completions", "/v1/completions"):
        kind = "delta" if "chat" in path else "text"
        parts: list[Any] = []
        for text, finish in (("he", None), ("llo", None), ("", "stop")):
            choice = {"index": 0, kind: {"content": text} if kind == "delta" else text, "finish_reason": finish}
            parts.append({"id": "cmpl-1", "object": "chunk", "model": MODEL, "choices": [choice]})
        if usage:
            parts.append({"id": "cmpl-1", "object": "chunk", "model": MODEL, "choices": [], "usage": _USAGE})
        return [*((b"", part) for part in parts), (b"", "[DONE]")]
    if path == "/v1/responses":
        return [
            (b"response.created", {"type": "response.created", "response": _response("in_progress")}),
            (b"response.output_text.delta", {"type": "response.output_text.delta", "delta": "hello"}),
            (b"response.completed", {"type": "response.completed", "response": _response("completed")}),
        ]
    start = {"id": "msg_1", "type": "message", "content": [], "usage": {"input_tokens": 2, "output_tokens": 0}}
    return [
        (b"message_start", {"type": "message_start", "message": start}),
        (
            b"content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        ),
        (
            b"message_delta",
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        ),
        (b"message_stop", {"type": "message_stop"}),
    ]


def _response(status: str) -> dict[str, Any]:
    usage = {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
    return {"id": "resp_1", "object": "response", "status": status, "output": [], "usage": usage}


def event_bytes(name: bytes, content: Any, line_end: bytes = b"\n") -> bytes:
    data = content.encode() if isinstance(content, str) else json.dumps(content, separators=(",", ":")).encode()
    named = b"event: " + name + line_end if name else b""
    return named + b"data: " + data + line_end + line_end


def fields_of(message: Message) -> dict[str, Any]:
    """The JSON object that a request brings; empty if it brings none."""
    try:
        fields = json.loads(message.body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def answer(message: Message) -> Answer:
    """What a worker in good health says to any request."""
    path = message.target.partition(b"?")[0].decode()
    fields = fields_of(message)
    if fields.get("stream") in (True, 1) and path.startswith("/v1/"):
        body = b"".join(event_bytes(*event) for event in events(path, usage=True))
        return Answer((STREAM_HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),))
    return Answer((whole(json.dumps(document(path), separators=(",", ":")).encode()),))


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
