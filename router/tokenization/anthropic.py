"""A request to /v1/messages as the chat that vLLM makes of it, before its template sees anything.

Where vLLM's conversion depends on settings of the server that cannot be seen from here (system turns in the midst
of a conversation, thinking switched off, tools that come and go), the request is not exact.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from router.tokenization.prompt import Chat, Inexact, Why, listed, template_arguments

BILLING = "x-anthropic-billing-header"
"""How a line begins that differs in every request of a certain client; vLLM takes it out of system prompts."""
_EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})


def chat_of(fields: dict[str, Any]) -> Chat:
    """The chat of a request's fields. Raises Inexact."""
    messages = _system(fields.get("system"))
    for turn in listed(fields.get("messages")):
        messages += _turn(turn)
    tools = fields.get("tools")
    return Chat(
        messages,
        None if tools is None else [_tool(tool) for tool in listed(tools)],
        template_arguments(fields, _effort(fields), add_generation_prompt=True, continue_final_message=False),
    )


def _system(system: Any) -> list[dict[str, Any]]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    texts = [str(block["text"]) for block in listed(system) if block.get("type") == "text" and block.get("text")]
    text = "".join(text for text in texts if not text.startswith(BILLING))
    return [{"role": "system", "content": text}] if text else []


def _effort(fields: dict[str, Any]) -> str | None:
    thinking, output = fields.get("thinking") or {}, fields.get("output_config") or {}
    if not isinstance(thinking, dict) or not isinstance(output, dict) or thinking.get("type") == "disabled":
        raise Inexact(Why.TEMPLATE)
    effort = output.get("effort")
    if effort is not None and effort not in _EFFORTS:
        raise Inexact(Why.SHAPE)
    return effort


def _turn(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn: what it brings of tool results stands before it, as turns of their own."""
    role, content = turn.get("role"), turn.get("content")
    if role not in ("user", "assistant"):
        raise Inexact(Why.SHAPE)
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _Blocks()
    for block in listed(content):
        blocks.take(role, block)
    message = blocks.message(role)
    return blocks.results if role == "user" and not blocks.texts else [*blocks.results, message]


@dataclass(slots=True)
class _Blocks:
    """What the blocks of one turn come to."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def take(self, role: str, block: dict[str, Any]) -> None:
        match block:
            case {"type": "text", "text": str(text)}:
                self.texts += [text] if text else []
            case {"type": "thinking", "thinking": str(thought)}:
                self.thoughts.append(thought)
            case {"type": "redacted_thinking"}:
                pass  # it cannot be read
            case {"type": "tool_use"}:
                self.calls.append(_call(block))
            case {"type": "tool_result"} if role == "user":
                self.results.append(_result(block))
            case _:
                raise Inexact(Why.MEDIA if block.get("type") == "image" else Why.SHAPE)

    def message(self, role: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": role}
        if self.thoughts:
            message["reasoning"] = "".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
        if len(self.texts) == 1:
            message["content"] = self.texts[0]
        elif self.texts:
            message["content"] = [{"type": "text", "text": text} for text in self.texts]
        return message


def _call(block: dict[str, Any]) -> dict[str, Any]:
    arguments, identity = block.get("input") or {}, block.get("id")
    if not isinstance(arguments, dict) or not isinstance(identity, str) or not identity:
        raise Inexact(Why.SHAPE)
    function = {"name": block.get("name") or "", "arguments": json.dumps(arguments)}
    return {"id": identity, "type": "function", "function": function}


def _result(block: dict[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        if not all(isinstance(item, dict) and item.get("type") == "text" for item in content):
            raise Inexact(Why.MEDIA)
        content = "\n".join(str(item.get("text", "")) for item in content)
    if content is not None and not isinstance(content, str):
        raise Inexact(Why.SHAPE)
    return {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": content or ""}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict) or "name" not in tool:
        raise Inexact(Why.SHAPE)  # a tool of the API's own
    function: dict[str, Any] = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": schema if "type" in schema else {**schema, "type": "object"},
    }
    return {
        "type": "function",
        "function": function | {k: tool[k] for k in ("strict", "defer_loading") if k in tool},
    }
