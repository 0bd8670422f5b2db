"""A request to /v1/responses as the chat that vLLM makes of it: plain turns and function tools.

What refers to something stored on a worker, tool calls and reasoning items are left out: the request is not exact.
"""

from typing import Any

from router.tokenization.prompt import Chat, Inexact, Why, listed, template_arguments

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")


def chat_of(fields: dict[str, Any]) -> Chat:
    """The chat of a request's fields. Raises Inexact."""
    if fields.get("previous_response_id") is not None or fields.get("previous_input_messages"):
        raise Inexact(Why.STORED)
    if fields.get("prompt") is not None or fields.get("truncation") not in (None, "disabled"):
        raise Inexact(Why.TRUNCATED if fields.get("prompt") is None else Why.STORED)
    instructions, given = fields.get("instructions"), fields.get("input")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        messages += [_turn(item) for item in listed(given)]
    reasoning, tools = fields.get("reasoning") or {}, fields.get("tools")
    if not isinstance(reasoning, dict):
        raise Inexact(Why.SHAPE)
    return Chat(
        messages,
        [_tool(tool) for tool in listed(tools)] if tools else None,
        template_arguments(
            fields, reasoning.get("effort"), add_generation_prompt=True, continue_final_message=False
        ),
    )


def _turn(item: dict[str, Any]) -> dict[str, Any]:
    role, content = item.get("role"), item.get("content")
    if item.get("type", "message") != "message" or role not in _ROLES or item.keys() & {"id", "status"}:
        raise Inexact(Why.STORED if item.get("type") == "item_reference" else Why.SHAPE)
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = listed(content)
    if not all(part.get("type") in _TEXTS and isinstance(part.get("text"), str) for part in parts):
        raise Inexact(Why.SHAPE)
    if role == "assistant":
        if len(parts) != 1:
            raise Inexact(Why.SHAPE)
        return {"role": role, "content": parts[0]["text"]}
    return {"role": role, "content": [{"type": "text", "text": part["text"]} for part in parts]}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Inexact(Why.SHAPE)
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
