"""What the documentation shows of bodies that are forwarded: their main fields, and an example to try.

The gateway reads a few fields and forwards the rest as it came, so no list of fields is complete; vLLM's has all.
"""

from typing import Any

_MODEL = "Any name that /v1/models lists; may be left out where there is one model."
_USER = "Whose request it is: its share of the key's turn."
_SAYS_HELLO = [{"role": "user", "content": "Say hello."}]
_MESSAGES = {"type": "array", "items": {"type": "object", "additionalProperties": True}}
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _SAYS_HELLO, "max_tokens": 32, "stream": False, "user": "alice"},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32, "stream": False, "user": "alice"},
    "/v1/responses": {"input": "Say hello.", "max_output_tokens": 32, "stream": False},
    "/v1/messages": {"messages": _SAYS_HELLO, "max_tokens": 32, "stream": False},
    "/v1/embeddings": {"input": ["a text", "another one"]},
    "/v1/messages/count_tokens": {"messages": _SAYS_HELLO},
    "/tokenize": {"prompt": "Once upon a time"},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/rerank": {"query": "What is a router?", "documents": ["It sends requests on.", "A fish."]},
    "/score": {"text_1": "What is a router?", "text_2": ["It sends requests on.", "A fish."]},
}
"""By path; `model` is in all of them."""
_FIELDS: dict[str, dict[str, Any]] = {
    "messages": {**_MESSAGES, "description": "The conversation: role and content of each turn."},
    "prompt": {**_TEXTS, "description": "One text, or several."},
    "input": {"description": "A text, several, or a conversation."},
    "max_tokens": {"type": "integer", "minimum": 1, "description": "Most tokens of the answer."},
    "max_output_tokens": {"type": "integer", "minimum": 1, "description": "Most tokens of the answer."},
    "stream": {"type": "boolean", "description": "Server-sent events while the answer is made."},
    "user": {"type": "string", "description": _USER},
    "tokens": {"type": "array", "items": {"type": "integer"}},
    "query": {"type": "string"},
    "documents": {"type": "array", "items": {"type": "string"}},
    "text_1": _TEXTS,
    "text_2": _TEXTS,
}
_MAY_BE_LEFT_OUT = frozenset(("max_tokens", "max_output_tokens", "stream", "user"))


def body_of(path: str, model: str) -> dict[str, Any]:
    """The content of a request body for OpenAPI: a schema and, where there is one, an example for this model."""
    example = _EXAMPLES.get(path)
    if example is None:
        return {"application/json": {"schema": {"type": "object", "additionalProperties": True}}}
    fields = {"model": {"type": "string", "description": _MODEL}, **{name: _FIELDS[name] for name in example}}
    schema = {
        "type": "object",
        "properties": fields,
        "required": [name for name in example if name not in _MAY_BE_LEFT_OUT],
        "additionalProperties": True,
    }
    return {"application/json": {"schema": schema, "example": {"model": model, **example}}}
