"""Requests of the inference API: what routing has to know of a body, and nothing more.

A body is parsed once, read here, and forwarded as it came, without what `trust` keeps from workers. Fields that
routing does not read are not looked at: the worker judges them. A field that routing does read and cannot use (a
model that is no string) is refused here, because no worker could be chosen; wrong types elsewhere (`messages: 5`)
go to the worker, whose error is better.

The prefix key is the prompt's token ids where they are known (see `tokenization`). Elsewhere it is the prompt as
the chat template sees it, in the template's order: what separates caches (salt), tools, template arguments,
documents, then the conversation. Equal beginnings of keys mean equal beginnings of prompts. Media stand in it by
digest, so that an image costs 16 bytes and not a megabyte.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson
import xxhash

from router.edge.errors import BadRequest
from router.edge.trust import forwardable

_ID_BYTES = 4
_SMALL = 512
"""Strings in a media part up to this size stand in the key as they are."""


class Surface(Enum):
    """The routed entry points. Values are their paths."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    EMBEDDINGS = "/v1/embeddings"


@dataclass(slots=True)
class ParsedRequest:
    """What routing knows of a request."""

    surface: Surface
    body: bytes
    fields: dict[str, Any]
    model: str | None
    stream: bool
    wants_usage: bool
    """The client asked for the usage chunk itself."""
    max_output_tokens: int | None
    sequences: int
    priority: int
    user: str | None
    session: str | None
    previous_response: str | None
    prompt: bytes
    """The key's bytes, as long as its token ids are not known."""
    unit_width: int
    prompts: int
    media: tuple[str, ...]
    ids: bytes | None = None
    """The prompt's token ids, 4 bytes each, little-endian, several prompts one after the other: the client's own,
    or set by whoever has tokenized it."""

    @property
    def response(self) -> str | None:
        """The id that the client gives its response, where workers take it from the body."""
        return _text(self.fields.get("request_id")) if self.surface is Surface.RESPONSES else None

    def forget(self) -> None:
        """The request will not be sent again: let go of all but what is known of it."""
        self.body, self.fields = b"", {}

    @property
    def salt(self) -> str | None:
        """What separates caches of equal prompts, as the client names it."""
        return _text(self.fields.get("cache_salt"))


def parse(surface: Surface, body: bytes) -> ParsedRequest:
    """Read a body. Raises BadRequest in the API's words when routing cannot do with it."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", param="body") from None
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.", param="body")
    priority = _count(fields, "priority")
    fields, body = forwardable(fields, body)
    options = fields.get("stream_options")
    prompt, width, prompts, media = _PROMPTS[surface](fields)
    return ParsedRequest(
        surface=surface,
        body=body,
        fields=fields,
        model=_typed(fields, "model", str),
        stream=_typed(fields, "stream", bool) or False,
        wants_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        max_output_tokens=_max_output(surface, fields),
        sequences=prompts * max(1, _count(fields, "n")),
        priority=priority,
        user=_user(surface, fields),
        session=_text(fields.get("prompt_cache_key")) or _text(fields.get("session_id")),
        previous_response=_text(fields.get("previous_response_id")) if surface is Surface.RESPONSES else None,
        prompt=prompt,
        unit_width=width,
        prompts=prompts,
        media=media,
        ids=prompt if width == _ID_BYTES else None,
    )


# -- single fields


def _typed(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise BadRequest(f"`{name}` must be a {kind.__name__}, not {type(value).__name__}.", param=name)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(fields: dict[str, Any], name: str) -> int:
    """An integer that only helps to route: nonsense is left for the worker to refuse."""
    value = fields.get(name)
    return value if type(value) is int and abs(value) < 1 << 31 else 0


def _max_output(surface: Surface, fields: dict[str, Any]) -> int | None:
    if surface is Surface.EMBEDDINGS:
        return 0
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = fields.get(name)
        if type(value) is int and value >= 0:
            return value
    # vLLM's default for plain completions is 16 tokens; for the others it is what the context leaves.
    return 16 if surface is Surface.COMPLETIONS else None


def _user(surface: Surface, fields: dict[str, Any]) -> str | None:
    if surface is Surface.MESSAGES:
        metadata = fields.get("metadata")
        return _text(metadata.get("user_id")) if isinstance(metadata, dict) else None
    return _text(fields.get("user"))


# -- prompts: (key bytes, unit width, number of prompts, media digests)

_Prompt = tuple[bytes, int, int, tuple[str, ...]]


def _conversation(fields: dict[str, Any], before: tuple[str, ...], turns: str) -> _Prompt:
    parts = [orjson.dumps(fields[name]) for name in before if fields.get(name)]
    conversation = fields.get(turns)
    media: list[str] = []
    if isinstance(conversation, list) and any(_has_parts(turn) for turn in conversation):
        conversation = [_digested(turn, media) for turn in conversation]
    if conversation:
        parts.append(orjson.dumps(conversation))
    key = memoryview(b"\n".join(parts))
    if conversation and isinstance(conversation, list):
        key = key[:-1]  # without the bracket that closes the list: the next turn's key goes on there
    # orjson leaves its bytes in a buffer of up to sixteen times their size; a key lives as long as its request.
    return bytes(key), 1, 1, tuple(media)


def _chat(fields: dict[str, Any]) -> _Prompt:
    before = ("cache_salt", "chat_template", "tools", "chat_template_kwargs", "documents")
    return _conversation(fields, before, "messages")


def _messages(fields: dict[str, Any]) -> _Prompt:
    return _conversation(fields, ("cache_salt", "tools", "system"), "messages")


def _responses(fields: dict[str, Any]) -> _Prompt:
    return _conversation(fields, ("cache_salt", "tools", "previous_response_id", "instructions"), "input")


def _completions(fields: dict[str, Any]) -> _Prompt:
    return _plain(fields.get("prompt"), fields)


def _embeddings(fields: dict[str, Any]) -> _Prompt:
    if "messages" in fields:
        return _chat(fields)
    return _plain(fields.get("input"), fields)


def _plain(prompt: Any, fields: dict[str, Any]) -> _Prompt:
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    salt = (_text(fields.get("cache_salt")) or "").encode()
    if isinstance(prompt, str):
        return salt + prompt.encode(errors="surrogatepass"), 1, 1, ()
    if not isinstance(prompt, list) or not prompt:
        return salt, 1, 1, ()
    if isinstance(prompt[0], int):
        ids = _token_ids(prompt)
        return (ids, _ID_BYTES, 1, ()) if ids is not None else (salt + orjson.dumps(prompt), 1, 1, ())
    # Several prompts: the first one finds the worker; together they are its load.
    text = b"\n".join(p.encode(errors="surrogatepass") if isinstance(p, str) else orjson.dumps(p) for p in prompt)
    return salt + text, 1, len(prompt), ()


def _token_ids(prompt: list[Any]) -> bytes | None:
    try:
        return array("I", prompt).tobytes()
    except (TypeError, OverflowError, ValueError):
        return None


def _has_parts(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("content"), list)


def _digested(turn: Any, media: list[str]) -> Any:
    """A turn whose media parts are replaced by digests, which are appended to `media`."""
    if not _has_parts(turn):
        return turn
    return {**turn, "content": [_digested_part(part, media) for part in turn["content"]]}


def _digested_part(part: Any, media: list[str]) -> Any:
    if not isinstance(part, dict) or str(part.get("type", "text")).endswith("text"):
        return part
    raw = orjson.dumps(part)
    if len(raw) <= _SMALL and not str(part.get("type")).startswith(("image", "input_", "audio", "video", "file")):
        return part
    digest = xxhash.xxh3_128_hexdigest(raw)
    media.append(digest)
    return digest


_PROMPTS: dict[Surface, Callable[[dict[str, Any]], _Prompt]] = {
    Surface.CHAT: _chat,
    Surface.COMPLETIONS: _completions,
    Surface.RESPONSES: _responses,
    Surface.MESSAGES: _messages,
    Surface.EMBEDDINGS: _embeddings,
}
