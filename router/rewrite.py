"""The few changes that a body undergoes on its way to a worker. Everything else is forwarded byte for byte.

Where a key is absent it is spliced in before the closing brace; where it is present the body is written anew.
"""

from typing import Any

import orjson

from router.openai import Ask, Surface

_USAGE = b'"stream_options":{"include_usage":true}'


def for_worker(ask: Ask, model: str | None) -> bytes:
    """The body for the worker: usage asked for on streams, and `model` in place of an alias (None: as it came)."""
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


def _splice(body: bytes, member: bytes) -> bytes:
    """Add a member to the end of a JSON object known to be valid and not to have it."""
    end = body.rindex(b"}")
    head = body[:end].rstrip()
    return b"".join((head, b"" if head.endswith(b"{") else b",", member, body[end:]))
