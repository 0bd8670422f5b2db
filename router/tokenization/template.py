"""A chat as text, by the model's chat template: the same bytes as vLLM renders.

Two steps, both vLLM's. First the conversation is brought into the form that templates expect: contents become
strings joined by line ends, or lists of parts where the template walks through parts; arguments of tool calls
become objects; nothing is left of fields that the API does not have. Then the template is applied by
`transformers`, as a worker does it.
"""

import json
from typing import Any, Protocol

from router.tokenization.anthropic import BILLING
from router.tokenization.prompt import Chat, Inexact, Why

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
_PROBE = "fairlead-probe"


class TemplateOwner(Protocol):
    """A tokenizer of `transformers`, as far as chats are concerned."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], **arguments: Any) -> Any: ...
    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str: ...


class Template:
    """The chat template of one model. Raises whatever `transformers` raises where there is none."""

    def __init__(self, owner: TemplateOwner) -> None:
        self._owner = owner
        source = owner.get_chat_template(None)
        self._knows_developers = '"developer"' in source or "'developer'" in source
        self._walks_parts = self._does_walk_parts()

    def render(self, chat: Chat) -> str:
        """The prompt's text. Raises Inexact for a conversation that has no exact text here."""
        conversation = [self._message(message) for message in chat.messages]
        if not self._knows_developers and any(message["role"] == "developer" for message in conversation):
            conversation = _without_developers(conversation)
        tools = None if chat.tools is None else [_tool(tool) for tool in chat.tools]
        try:
            return self._apply(conversation, tools, chat.arguments)
        except Exception as error:
            raise Inexact(Why.FAILED, f"the chat template refuses the request: {error}") from error

    def _apply(self, conversation: list[dict[str, Any]], tools: Any, arguments: dict[str, Any]) -> str:
        text = self._owner.apply_chat_template(conversation, tools=tools, tokenize=False, **arguments)
        if not isinstance(text, str):
            raise TypeError(f"a template that renders {type(text).__name__}")
        return text

    def _does_walk_parts(self) -> bool:
        """Whether contents are to be lists of parts: it is given one, with a key that only a dump shows."""
        parts = [{"type": "text", "text": f"{_PROBE}-{number}", "dumped": _PROBE + "-dump"} for number in (1, 2)]
        try:
            text = self._apply([{"role": "user", "content": parts}], None, {})
        except Exception:  # noqa: BLE001 - templates fail in many ways on what they do not expect
            return False
        return f"{_PROBE}-1" in text and f"{_PROBE}-2" in text and f"{_PROBE}-dump" not in text

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        role = message.get("role")
        if not isinstance(role, str):
            raise Inexact(Why.SHAPE)
        made: dict[str, Any] = {"role": role, "content": self._content(role, message.get("content"))}
        if role == "assistant":
            calls = message.get("tool_calls")
            if calls:
                made["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else _unknown()
            if message.get("reasoning") is not None:
                made["reasoning"] = made["reasoning_content"] = message["reasoning"]
        elif role == "tool" and "tool_call_id" in message:
            made["tool_call_id"] = message["tool_call_id"]
        made |= {name: message[name] for name in ("name", "task") if isinstance(message.get(name), str)}
        if role == "developer":
            made["tools"] = message.get("tools")
        return made

    def _content(self, role: str, content: Any) -> Any:
        if content is None:
            parts: list[Any] = []
        elif isinstance(content, str):
            parts = [content]
        elif isinstance(content, list):
            parts = content
        else:
            raise Inexact(Why.SHAPE)
        texts = [text for part in parts if (text := _text(part)) is not None]
        if role == "system":
            texts = [text for text in map(_without_billing, texts) if text is not None]
        if self._walks_parts and role != "tool":
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)


def _unknown() -> Any:
    raise Inexact(Why.SHAPE)


def _text(part: Any) -> str | None:
    """The text of a part; None for an empty one, which is left out."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("uuid") is not None:
        raise Inexact(Why.SHAPE)
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        raise Inexact(Why.MEDIA if isinstance(kind, str) else Why.SHAPE)
    text = part.get({"refusal": "refusal", "thinking": "thinking"}.get(kind, "text"))
    if text is None and kind in ("text", "refusal"):
        return None
    if not isinstance(text, str):
        raise Inexact(Why.SHAPE)
    return text


def _without_billing(text: str) -> str | None:
    return (text.partition("\n")[2] or None) if text.startswith(BILLING) else text


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise Inexact(Why.SHAPE)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except ValueError:
            arguments = {}
    made = {"name": function["name"]} if "name" in function else {}
    known = {
        **({"id": call["id"]} if "id" in call else {}),
        "function": {"arguments": arguments if isinstance(arguments, dict) else {}, **made},
        "type": "function",
    }
    return known | {name: value for name, value in call.items() if name not in known}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with exactly the fields that the API knows, in its order."""
    function = tool.get("function")
    if not isinstance(function, dict) or tool.get("type", "function") != "function" or "name" not in function:
        raise Inexact(Why.SHAPE)
    deferred = function.get("defer_loading")
    deferred = tool.get("defer_loading") if deferred is None else deferred
    made = {name: function.get(name) for name in ("name", "description", "parameters")}
    made |= {} if function.get("strict") is None else {"strict": function["strict"]}
    made |= {} if deferred is None else {"defer_loading": deferred}
    outer = {} if tool.get("defer_loading") is None else {"defer_loading": tool["defer_loading"]}
    return {"type": "function", "function": made, **outer}


def _without_developers(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Developers speak as the system, and the system speaks once, at the beginning."""
    turns = [
        {name: value for name, value in turn.items() if name != "tools"} | {"role": "system"}
        if turn["role"] == "developer"
        else turn
        for turn in conversation
    ]
    spoken = [turn for turn in turns if turn["role"] == "system"]
    if spoken == turns[:1]:
        return turns
    texts = [
        "\n".join(part["text"] for part in turn["content"])
        if isinstance(turn["content"], list)
        else turn["content"]
        for turn in spoken
    ]
    content = "\n\n".join(text for text in texts if text)
    return [{"role": "system", "content": content}, *(turn for turn in turns if turn["role"] != "system")]
