"""The few changes that a body undergoes on its way to a worker. Everything else is forwarded byte for byte.

A member is set, replaced or taken out in its place in the text (see `members`); nothing is written anew.
"""

from typing import Any

import orjson

from router.edge.api.members import appended, changed, members
from router.edge.api.parsed_request import ParsedRequest
from router.edge.api.passed_body import PassedBody
from router.edge.pieces import Payload, joined, payload_of

_KV = "kv_transfer_params"
_IDS = "return_token_ids"
_FOR_ANOTHER = orjson.dumps(
    {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        **dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")),
    }
)
"""What vLLM's connectors want of a request for a prompt only."""


def for_worker(
    ask: ParsedRequest, model: str | None, kv: dict[str, Any] | None = None, *, ids: bool = False
) -> Payload:
    """The body for the worker: usage asked for on streams, and `model` in place of an alias (None: as it came).

    `kv` is what the worker that has computed the prompt says of where it is. `ids`: token ids are asked for.
    """
    changes = ask.changes
    if model is not None and model != ask.model:
        changes = {**changes, "model": orjson.dumps(model)}
    if kv is not None:
        changes = {**changes, _KV: orjson.dumps(kv)}
    if ids:
        changes = {**changes, _IDS: b"true"}
    return with_changes(ask, changes)


def for_prefill(ask: ParsedRequest, model: str | None) -> Payload:
    """The body that makes a worker compute the prompt, keep its KV for another one, and say where it is."""
    changes: dict[str, bytes | None] = {
        **ask.changes,
        "stream": b"false",
        "stream_options": None,
        "min_tokens": None,
        "max_tokens": b"1",
        _KV: _FOR_ANOTHER,
    }
    if "max_completion_tokens" in ask.present:
        changes["max_completion_tokens"] = b"1"
    if model is not None:
        changes["model"] = orjson.dumps(model)
    return with_changes(ask, changes)


def for_release(line: str, kv: dict[str, Any], *, chat: bool = False, salt: str | None = None) -> bytes:
    """A request that every vLLM turns down, and in doing so lets go of KV that will not be fetched.

    With a `salt` it is one that is answered, after the end of the KV has been pushed.
    """
    prompt = {"messages": [{"role": "user", "content": "-"}]} if chat else {"prompt": "-"}
    tokens = {"max_tokens": 0} if salt is None else {"max_tokens": 1, "cache_salt": salt}
    return orjson.dumps({"model": line, **prompt, **tokens, _KV: kv})


def with_changes(ask: ParsedRequest | PassedBody, changes: dict[str, bytes | None]) -> Payload:
    """The request's body with these members changed: set to a value (JSON), or taken out."""
    if not changes:
        return payload_of(ask.body)
    if ask.present.isdisjoint(changes):
        more = {name: value for name, value in changes.items() if value is not None}
        return appended(ask.body, more) if more else payload_of(ask.body)
    found = ask.members
    if found is None:
        found = members(joined(ask.body))
    return changed(ask.body, found, changes)
