"""Requests of the inference API: what routing has to know of a body, and nothing more.

A body is parsed once, read here, and forwarded as it came, but for the members that `rewrite` changes. Fields that
routing does not read are not looked at: the worker judges them. A field that routing does read and cannot use (a
model that is no string) is refused here, because no worker could be chosen; wrong types elsewhere (`messages: 5`)
go to the worker, whose error is better.

The prefix key is the prompt's token ids where they are known (see `tokenization`). Elsewhere it is the prompt as
the chat template sees it, in the template's order: what separates caches (salt), tools, template arguments,
documents, then the conversation. Equal beginnings of keys mean equal beginnings of prompts. Media stand in it by
digest, so that an image costs 16 bytes and not a megabyte.

What was parsed (`fields`) may be thirty times as large as its text. It is kept until the prompt is tokenized; what
waits in the queue is the body's bytes, and the values named here.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import orjson
import xxhash

from router.edge.api.counts import check_counts
from router.edge.api.identity_fields import named
from router.edge.api.members import Member, changed, members
from router.edge.errors import BadRequest
from router.edge.pieces import Body
from router.edge.trust import reserved, stored_references

if TYPE_CHECKING:
    from router.edge.api.continuable import Continuation, NotContinuable

_ID_BYTES = 4
_SMALL = 512
"""Strings in a media part up to this size stand in the key as they are."""
KEY_BYTES = 4 << 20
"""So much of a prompt is told apart: a million tokens of text. The rest of a longer one is only counted."""
TOUCHED = frozenset(
    (
        *("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "vllm_xargs"),
        *("cache_salt", "return_token_ids"),
    )
)
"""Members that a rewrite may change, besides the reserved ones."""
_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))


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
    body: Body
    """As the client sent it."""
    fields: dict[str, Any] | None
    """What it parses to, until it has been read; None: not here, or not any more."""
    members: list[Member] | None
    """Where its members are; None: to be found when something is changed."""
    present: frozenset[str]
    """Which of the members that a rewrite may change it has."""
    changes: dict[str, bytes | None]
    """What no worker gets as it is: see `members.changed`."""
    model: str | None
    stream: bool
    wants_usage: bool
    """The client asked for the usage chunk itself."""
    continuous_usage: bool
    """It asked for usage in every chunk."""
    max_output_tokens: int | None
    min_tokens: bool
    """It sets a least number of output tokens."""
    sequences: int
    priority: int
    user: str | None
    session: str | None
    previous_response: str | None
    references: tuple[tuple[str, str], ...]
    """What it names of what workers store: field and id."""
    stores: bool
    """The worker keeps the response, unless it is told not to."""
    background: bool
    """A worker may take it for a response in the background: it is not surely told that it is none."""
    request_id: str | None
    """The id that the body names for the request."""
    salt: str | None
    """What separates caches of equal prompts, as the client names it."""
    divisible: bool
    """One worker may compute the prompt and another one go on from there."""
    prompt: bytes
    """The key's bytes, as long as its token ids are not known; at most `KEY_BYTES`."""
    prompt_bytes: int
    """How long the whole key is."""
    all_there: bool
    """The key is all of the prompt but its media, and nothing else: its length says how many tokens that has."""
    unit_width: int
    prompts: int
    media: tuple[str, ...]
    ids: bytes | None = None
    """The prompt's token ids, 4 bytes each, little-endian, several prompts one after the other: the client's own,
    or set once it is tokenized."""
    structure: int = 0
    """An upper bound for the JSON values in a large body."""
    continuation: "Continuation | NotContinuable | None" = None
    """How its stream could go on at another worker; None: that was not asked."""

    @property
    def response(self) -> str | None:
        """The id that the client gives its response, where workers take it from the body."""
        return self.request_id if self.surface is Surface.RESPONSES else None

    def forget(self) -> None:
        """The request will not be sent again: let go of all but what is known of it."""
        self.body, self.fields, self.members, self.changes = b"", None, None, {}


def parsed_object(body: bytes) -> dict[str, Any]:
    """The members of a body that must be a JSON object. Raises BadRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", param="body") from None
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.", param="body")
    return fields


def parse(surface: Surface, body: bytes) -> ParsedRequest:
    """Read a body. Raises BadRequest in the API's words when routing cannot do with it."""
    fields = parsed_object(body)
    check_counts(fields, embeds=surface is Surface.EMBEDDINGS)
    stream, options = bool(flag(fields, "stream")), fields.get("stream_options")
    wants_usage = isinstance(options, dict) and lax_bool(options.get("include_usage")) is True
    continuous = isinstance(options, dict) and lax_bool(options.get("continuous_usage_stats")) is True
    changes = kept_back(fields, body)
    readable = options is None or isinstance(options, dict)  # anything else is for the worker to refuse
    if stream and not wants_usage and readable and surface in _USAGE_ON_REQUEST:
        changes["stream_options"] = _with_usage(body, options)
    prompt, width, prompts, media = _PROMPTS[surface](fields)
    sequences = prompts * max(1, _count(fields, "n"))
    user, session = named(surface.value, fields)
    return ParsedRequest(
        surface=surface,
        body=body,
        fields=fields,
        members=None,
        present=present(fields, changes),
        changes=changes,
        model=model_of(fields),
        stream=stream,
        wants_usage=wants_usage,
        continuous_usage=continuous,
        max_output_tokens=_max_output(surface, fields),
        min_tokens=bool(fields.get("min_tokens")),
        sequences=sequences,
        priority=_count(fields, "priority"),
        user=user,
        session=session,
        previous_response=_text(fields.get("previous_response_id")) if surface is Surface.RESPONSES else None,
        references=stored_references(fields) if surface is Surface.RESPONSES else (),
        stores=surface is Surface.RESPONSES and lax_bool(fields.get("store")) is not False,
        background=surface is Surface.RESPONSES and _may_be_true(fields.get("background")),
        request_id=_text(fields.get("request_id")),
        salt=salt_of(fields),
        divisible=_divisible(surface, fields, sequences),
        prompt=prompt if len(prompt) <= KEY_BYTES else prompt[:KEY_BYTES],
        prompt_bytes=len(prompt),
        all_there=_BEYOND_THE_KEY.isdisjoint(fields) or not any(map(fields.get, _BEYOND_THE_KEY)),
        unit_width=width,
        prompts=prompts,
        media=media,
        ids=prompt if width == _ID_BYTES else None,
    )


# -- what is changed on the way to a worker

_USAGE_ON_REQUEST = (Surface.CHAT, Surface.COMPLETIONS)
"""Elsewhere streams bring their usage unasked."""
_USAGE = b'{"include_usage":true}'


def kept_back(fields: dict[str, Any], body: bytes) -> dict[str, bytes | None]:
    """The changes that keep reserved members from workers."""
    found = reserved(fields)
    if not found:
        return {}
    changes: dict[str, bytes | None] = {name: None for name, inner in found.items() if inner is None}
    for name, inner in found.items():
        if inner is not None:
            changes[name] = _changed_inside(body, name, dict.fromkeys(inner))
    return changes


def present(fields: dict[str, Any], changes: dict[str, bytes | None]) -> frozenset[str]:
    """Which of the members that a rewrite may change there are."""
    return frozenset((TOUCHED | changes.keys()) & fields.keys())


def _with_usage(body: bytes, options: dict[str, Any] | None) -> bytes:
    """Stream options that ask for usage at the end."""
    if not options:
        return _USAGE
    wished: dict[str, bytes | None] = {"include_usage": b"true"}
    if "continuous_usage_stats" in options:
        # Without `include_usage` it means nothing; with it every chunk would carry usage.
        wished["continuous_usage_stats"] = b"false"
    return _changed_inside(body, "stream_options", wished)


def _changed_inside(body: bytes, name: str, changes: dict[str, bytes | None]) -> bytes:
    """The value of a member that is an object, with changes of its own."""
    member = next(each for each in reversed(members(body)) if each.name == name)
    value = body[member.value : member.end]
    written = changed(value, members(value), changes)
    return written if isinstance(written, bytes) else b"".join(written)


# -- single fields


def model_of(fields: dict[str, Any]) -> str | None:
    """The model's name. Raises BadRequest where it is no string."""
    value = fields.get("model")
    if value is None or isinstance(value, str):
        return value
    raise BadRequest(f"`model` must be a str, not {type(value).__name__}.", param="model")


def salt_of(fields: dict[str, Any]) -> str | None:
    """What separates caches of equal prompts; a worker refuses what is no text."""
    return _text(fields.get("cache_salt"))


def flag(fields: dict[str, Any], name: str) -> bool | None:
    """A truth value in any of the forms that vLLM takes (pydantic's): 1, 0.0, "yes" ... Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return None
    found = lax_bool(value)
    if found is None:
        shown = f" {value!r:.40}" if isinstance(value, str | int | float) else ""
        message = f"`{name}` must be a boolean (true or false), not {type(value).__name__}{shown}."
        raise BadRequest(message, param=name)
    return found


def _may_be_true(value: Any) -> bool:
    return bool(value) and lax_bool(value) is not False


def lax_bool(value: Any) -> bool | None:
    """The truth value that pydantic takes for one; None: it takes it for none."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None


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


_DIVISIBLE = (Surface.CHAT, Surface.COMPLETIONS, Surface.MESSAGES)
_WHOLE_ONLY = frozenset(("use_beam_search", "echo", "prompt_embeds"))


def _divisible(surface: Surface, fields: dict[str, Any], sequences: int) -> bool:
    """Whether two workers can share the request. If not, one of them does all of it:

    - `/v1/responses`: each of the two would store a response, and go through tool calls of its own;
    - embeddings: nothing is decoded;
    - several sequences, beams: each would have to fetch the KV, which can be fetched once;
    - log probabilities of the prompt (also with `echo`): only who computes it has them;
    - prompts given as embeddings;
    - a tool call or function that is forced: one token of it is no valid call, which vLLM may refuse.
    """
    return (
        surface in _DIVISIBLE
        and sequences == 1
        and (_WHOLE_ONLY.isdisjoint(fields) or not any(map(fields.get, _WHOLE_ONLY)))
        and fields.get("prompt_logprobs") is None
        and not _forced(fields.get("tool_choice"))
    )


def _forced(choice: Any) -> bool:
    kind = choice.get("type") if isinstance(choice, dict) else choice
    return kind not in (None, "auto", "none")


# -- prompts: (key bytes, unit width, number of prompts, media digests)

_Prompt = tuple[bytes, int, int, tuple[str, ...]]

_BEYOND_THE_KEY = frozenset(
    (
        *("previous_response_id", "conversation", "previous_input_messages", "prompt_embeds", "suffix"),
        *("truncate_prompt_tokens", "truncation", "chat_template", "chat_template_kwargs", "mm_processor_kwargs"),
    )
)
"""With one of these the prompt has tokens that its key does not have, or the key has bytes that are no prompt."""


def _written(name: str, value: Any) -> bytes:
    """A part of the key. Raises BadRequest for what is nested beyond what can be written (254 levels)."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        message = f"`{name}` is nested too deeply: at most 254 levels are possible."
        raise BadRequest(message, param=name) from None


def _conversation(fields: dict[str, Any], before: tuple[str, ...], turns: str) -> _Prompt:
    parts = [_written(name, fields[name]) for name in before if fields.get(name)]
    conversation = fields.get(turns)
    media: list[str] = []
    if isinstance(conversation, list) and any(_has_parts(turn) for turn in conversation):
        conversation = [_digested(turn, turns, media) for turn in conversation]
    if conversation:
        parts.append(_written(turns, conversation))
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
    return _plain("prompt", fields)


def _embeddings(fields: dict[str, Any]) -> _Prompt:
    if "messages" in fields:
        return _chat(fields)
    return _plain("input", fields)


def _plain(name: str, fields: dict[str, Any]) -> _Prompt:
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    prompt = fields.get(name)
    salt = (_text(fields.get("cache_salt")) or "").encode()
    if isinstance(prompt, str):
        return salt + prompt.encode(errors="surrogatepass"), 1, 1, ()
    if not isinstance(prompt, list) or not prompt:
        return salt, 1, 1, ()
    if isinstance(prompt[0], int):
        ids = _token_ids(prompt)
        return (ids, _ID_BYTES, 1, ()) if ids is not None else (salt + _written(name, prompt), 1, 1, ())
    # Several prompts: the first one finds the worker; together they are its load.
    texts = (p.encode(errors="surrogatepass") if isinstance(p, str) else _written(name, p) for p in prompt)
    return salt + b"\n".join(texts), 1, len(prompt), ()


def _token_ids(prompt: list[Any]) -> bytes | None:
    try:
        return array("I", prompt).tobytes()
    except (TypeError, OverflowError, ValueError):
        return None


_PART_LISTS = ("content", "output")
"""Where a turn or a tool's result has its parts."""
_WORDS = frozenset(
    (
        *("text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"),
        *("thinking", "redacted_thinking", "reasoning", "message", "mcp_tool_use", "mcp_tool_result"),
        *("tool_use", "tool_result", "server_tool_use", "function_call", "function_call_output"),
    )
)
"""Parts that a template writes into the prompt as text, however long they are."""
_MEDIA = ("image", "input_", "audio", "video", "file", "computer_screenshot")
"""How the types of the others begin, where they are media even if they are short (a URL)."""
_PARTS_WITHIN = 4
"""Parts are looked for so deep: in a turn, in a tool's result in a turn ..."""


def _has_parts(turn: Any) -> bool:
    return isinstance(turn, dict) and any(isinstance(turn.get(name), list) for name in _PART_LISTS)


def _digested(turn: Any, name: str, media: list[str], within: int = _PARTS_WITHIN) -> Any:
    """A turn whose media parts are replaced by digests, which are appended to `media`."""
    if not _has_parts(turn) or not within:
        return turn
    parts = {
        each: [_digested_part(part, name, media, within) for part in turn[each]]
        for each in _PART_LISTS
        if isinstance(turn.get(each), list)
    }
    return {**turn, **parts}


def _digested_part(part: Any, name: str, media: list[str], within: int) -> Any:
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if isinstance(kind, str) and kind in _WORDS:
        return _digested(part, name, media, within - 1)
    source = part.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") in ("text", "content"):
        return part
    raw = _written(name, part)
    if len(raw) <= _SMALL and not str(kind).startswith(_MEDIA):
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
