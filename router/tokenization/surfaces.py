"""From a request on any surface to the prompt that a worker computes for it."""

from array import array
from collections.abc import Callable
from typing import Any

from router.edge.api.parsed_request import ParsedRequest, Surface
from router.tokenization import anthropic, responses
from router.tokenization.prompt import Chat, Ids, Inexact, Prompt, Texts, Why, flag, listed, template_arguments


def prompt_of(ask: ParsedRequest, fields: dict[str, Any]) -> Prompt:
    """What a worker tokenizes of this request, whose body has these fields. Raises Inexact."""
    read = _SURFACES.get(ask.surface)
    if read is None:
        raise Inexact(Why.EMBEDDINGS)
    if ask.media:
        raise Inexact(Why.MEDIA)
    if fields.get("truncate_prompt_tokens") is not None:
        raise Inexact(Why.TRUNCATED)
    return read(fields)


def _chat(fields: dict[str, Any]) -> Chat:
    if fields.get("chat_template") is not None:
        raise Inexact(Why.TEMPLATE)
    tools = fields.get("tools")
    return Chat(
        [_with_reasoning(message) for message in listed(fields.get("messages"))],
        None if tools is None else listed(tools),
        template_arguments(
            fields,
            fields.get("reasoning_effort"),
            add_generation_prompt=flag(fields, "add_generation_prompt", default=True),
            continue_final_message=flag(fields, "continue_final_message", default=False),
            documents=fields.get("documents"),
        ),
        flag(fields, "add_special_tokens", default=False),
    )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under its present name."""
    if "reasoning_content" not in message:
        return message
    message = dict(message)
    former = message.pop("reasoning_content")
    if former is not None and message.get("reasoning") is None:
        message["reasoning"] = former
    return message


def _completions(fields: dict[str, Any]) -> Prompt:
    prompt = fields.get("prompt")
    if fields.get("prompt_embeds") is not None or fields.get("suffix") is not None:
        raise Inexact(Why.SHAPE)
    special = flag(fields, "add_special_tokens", default=True)
    if isinstance(prompt, str):
        return Texts((prompt,), special)
    if not isinstance(prompt, list) or not prompt:
        raise Inexact(Why.SHAPE)
    if all(isinstance(one, str) for one in prompt):
        return Texts(tuple(prompt), special)
    try:
        if isinstance(prompt[0], list):
            return Ids(b"".join(array("I", one).tobytes() for one in prompt))
        return Ids(array("I", prompt).tobytes())
    except (TypeError, OverflowError, ValueError):
        raise Inexact(Why.SHAPE) from None


_SURFACES: dict[Surface, Callable[[dict[str, Any]], Prompt]] = {
    Surface.CHAT: _chat,
    Surface.COMPLETIONS: _completions,
    Surface.MESSAGES: anthropic.chat_of,
    Surface.RESPONSES: responses.chat_of,
}
