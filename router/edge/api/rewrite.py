"""The few changes that a body undergoes on its way to a worker. Everything else is forwarded byte for byte.

Where a key is absent it is spliced in before the closing brace; where it is present the body is written anew.
"""

from typing import Any

import orjson

from router.edge.api.parsed_request import ParsedRequest, Surface

_KV = "kv_transfer_params"
_FOR_ANOTHER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    **dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")),
}
"""What vLLM's connectors want of whoever asks for a prompt only."""
_ABOUT_THE_ANSWER = frozenset(("stream_options", "min_tokens"))
"""Fields that do not go with an answer of one token."""
_USAGE = b'"stream_options":{"include_usage":true}'


def for_worker(ask: ParsedRequest, model: str | None, kv: dict[str, Any] | None = None) -> bytes:
    """The body for the worker: usage asked for on streams, and `model` in place of an alias (None: as it came).

    `kv` is what the worker that has computed the prompt says of where it is.
    """
    if kv is not None:
        return _splice(for_worker(ask, model), b'"%s":%s' % (_KV.encode(), orjson.dumps(kv)))
    changes: dict[str, Any] = {}
    if model is not None and model != ask.model:
        changes["model"] = model
    if ask.stream and not ask.wants_usage and ask.surface in (Surface.CHAT, Surface.COMPLETIONS):
        options = ask.fields.get("stream_options")
        if options is None and "stream_options" not in ask.fields and not changes:
            return _splice(ask.body, _USAGE)
        if options is None or isinstance(options, dict):  # anything else is for the worker to refuse
            changes["stream_options"] = {**(options or {}), "include_usage": True}
            if options and "continuous_usage_stats" in options:
                # Without `include_usage` it means nothing; with it every chunk would carry usage.
                changes["stream_options"]["continuous_usage_stats"] = False
    return orjson.dumps({**ask.fields, **changes}) if changes else ask.body


def for_prefill(ask: ParsedRequest, model: str | None) -> bytes:
    """The body that makes a worker compute the prompt, keep its KV for another one, and say where it is."""
    fields = {name: value for name, value in ask.fields.items() if name not in _ABOUT_THE_ANSWER}
    changes: dict[str, Any] = {"stream": False, "max_tokens": 1, _KV: _FOR_ANOTHER}
    if "max_completion_tokens" in fields:
        changes["max_completion_tokens"] = 1
    if model is not None:
        changes["model"] = model
    return orjson.dumps({**fields, **changes})


def for_release(line: str, kv: dict[str, Any], *, chat: bool = False, salt: str | None = None) -> bytes:
    """A request that every vLLM turns down, and in doing so lets go of the KV that nobody is to fetch.

    With a `salt` it is one that is answered, after the end of the KV has been pushed.
    """
    prompt = {"messages": [{"role": "user", "content": "-"}]} if chat else {"prompt": "-"}
    tokens = {"max_tokens": 0} if salt is None else {"max_tokens": 1, "cache_salt": salt}
    return orjson.dumps({"model": line, **prompt, **tokens, _KV: kv})


def _splice(body: bytes, member: bytes) -> bytes:
    """Add a member to the end of a JSON object known to be valid and not to have it."""
    end = body.rindex(b"}")
    head = body[:end].rstrip()
    return b"".join((head, b"" if head.endswith(b"{") else b",", member, body[end:]))
