"""How many of a thing one request may bring. Bodies are bounded in bytes; this bounds what is made of them.

A body of 32 MiB may hold eleven million lists, or a million prompts of which each becomes a request inside the
engine. Every bound here is far above what any model or API of today takes. A body beyond one is refused with what,
where, how many and how many are possible.
"""

from collections.abc import Mapping
from typing import Any

from router.edge.errors import BadRequest

VALUES = 1 << 21
"""JSON values in one body, names of members not counted: a prompt of two million token ids fits."""
TOKEN_IDS = VALUES
FIELDS = 1024
"""Members of the body itself."""
ITEMS = 16_384
"""Of any list that is not named below: messages, content parts of all messages together, documents, pairs."""
_MOST = {
    "prompt": ("prompts", 2048),
    "tools": ("tools", 2048),
    "functions": ("functions", 2048),
    "stop": ("stop strings", 256),
    "stop_sequences": ("stop strings", 256),
    "stop_token_ids": ("token ids", 4096),
    "bad_words": ("strings", 4096),
    "messages": ("messages", ITEMS),
    "documents": ("documents", ITEMS),
}
"""By the name of the field: what its items are, and how many there may be."""
_EMBEDDED = ("inputs", 2048)
_VOCABULARY = frozenset(("allowed_token_ids", "logit_bias", "tokens"))
"""As long as a vocabulary or a prompt."""
_TEXTS_LISTS = ("messages", "input")
"""Fields whose items have `content` of their own."""


def structure(body: bytes) -> int:
    """An upper bound for the values in a JSON body; commas and brackets in strings count as well."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def check_values(body: bytes) -> None:
    """Raises BadRequest if a body, valid JSON or not, has too many values. Much cheaper than to parse it."""
    if structure(body) <= VALUES:
        return
    # Some of these may stand in strings: look outside of them. Two characters for two keep every quote in place.
    plain = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    if plain.count(b'"') <= 4 * VALUES:
        outside = b"".join(plain.split(b'"')[::2])
        if structure(outside) <= VALUES:
            return
    raise BadRequest(f"The request body has more than {VALUES} JSON values, which is the limit.", param="body")


def check_counts(fields: Mapping[str, Any], *, embeds: bool = False) -> None:
    """Raises BadRequest for a body with too many fields, or a field with too many items. `embeds`: see `input`."""
    if len(fields) > FIELDS:
        raise _too_many("The request body", "fields", len(fields), FIELDS, None)
    for name, value in fields.items():
        if (isinstance(value, list) and value) or (isinstance(value, dict) and len(value) > ITEMS):
            _check_field(name, value, embeds=embeds)


def _check_field(name: str, value: list[Any] | dict[str, Any], *, embeds: bool) -> None:
    what, most = _EMBEDDED if embeds and name == "input" else _MOST.get(name, ("items", ITEMS))
    shown = f"`{name[:64]}`"
    if name in _VOCABULARY or _is_ids(name, value):
        what, most = "token ids", TOKEN_IDS
    if len(value) > most:
        raise _too_many(shown, what, len(value), most, name)
    if name in _TEXTS_LISTS:
        parts = sum(map(_parts, value))
        if parts > ITEMS:
            raise _too_many(shown, "content parts", parts, ITEMS, name)
    if name in ("prompt", "input"):
        ids = sum(len(item) for item in value if isinstance(item, list))
        if ids > TOKEN_IDS:
            raise _too_many(shown, "token ids", ids, TOKEN_IDS, name)


def _parts(item: Any) -> int:
    content = item.get("content") if isinstance(item, dict) else None
    return len(content) if isinstance(content, list) else 0


def _is_ids(name: str, value: list[Any] | dict[str, Any]) -> bool:
    return name in ("prompt", "input") and isinstance(value, list) and type(value[0]) is int


def _too_many(where: str, what: str, count: int, most: int, name: str | None) -> BadRequest:
    param = "body" if name is None else name[:64]
    return BadRequest(f"{where} has {count} {what}; at most {most} are possible.", param=param)
