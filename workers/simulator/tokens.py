"""A tokenizer that needs no vocabulary.

Text is cut, from left to right, into pieces of UTF-8: one white space if there is one, then up to four visible
characters of ASCII; or up to three bytes of anything else. That gives about four bytes per token for English, like
a real tokenizer, and equal beginnings of texts give equal beginnings of token ids. Ids fit into 31 bits, as those
of a real tokenizer do, are the same everywhere and reversible without a table: the characters as an integer, with
the white space in the bits that ASCII leaves free; other bytes as an integer with a 1 in front. Other integers are
accepted as ids, too.
"""

import re
from collections.abc import Iterable
from typing import Any

import orjson

_PIECE = re.compile(rb"\s?[!-~]{1,4}|[^\s!-~]{1,3}|\s")
_MAX_PIECE = 5
_BLANK = 0x20
_BLANK_FLAG = 0x80
_FLAGS = {_BLANK: _BLANK_FLAG, 0x0A: 0x8000, 0x09: 0x8080, 0x0D: 0x80_0000, 0x0C: 0x80_0080, 0x0B: 0x80_8000}
"""What a white space before ASCII adds to an id. Never the highest bit, which keeps ids below 2**31."""
_ALL_FLAGS = 0x80_8080
_SPACES = {0: b""} | {flag: bytes([space]) for space, flag in _FLAGS.items()}


def tokenize(text: str) -> list[int]:
    """Token ids of a text."""
    from_bytes = int.from_bytes
    # The commonest kind of piece, a word after a blank, costs no call.
    return [
        from_bytes(piece[1:], "big") | _BLANK_FLAG if piece[0] == _BLANK and len(piece) > 1 else _token_id(piece)
        for piece in _PIECE.findall(text.encode(errors="replace"))
    ]


def _token_id(piece: bytes) -> int:
    first = piece[0]
    if _visible(first):
        return int.from_bytes(piece, "big")
    flag = _FLAGS.get(first)
    if flag and len(piece) > 1:
        return int.from_bytes(piece[1:], "big") | flag
    return int.from_bytes(b"\x01" + piece, "big")


def _visible(byte: int) -> bool:
    return 0x20 < byte < 0x7F


def at_least(text: str) -> int:
    """A lower bound of the number of tokens of a text, without tokenizing it."""
    return -(-len(text) // _MAX_PIECE)


def token_bytes(token_id: int) -> bytes:
    """The bytes of one token; an id that no text produces stands for the bytes of its number."""
    raw = _big_endian(token_id)
    if raw[0] == 1 and len(raw) > 1:
        return raw[1:]
    space = _SPACES.get(token_id & _ALL_FLAGS)
    characters = _big_endian(token_id & ~_ALL_FLAGS)
    return raw if space is None or not all(map(_visible, characters)) else space + characters


def _big_endian(number: int) -> bytes:
    return max(0, number).to_bytes((max(1, number).bit_length() + 7) // 8, "big")


def detokenize(token_ids: Iterable[int]) -> str:
    """Text of token ids; the inverse of `tokenize`."""
    return b"".join(map(token_bytes, token_ids)).decode(errors="replace")


def chat_tokens(body: dict[str, Any]) -> list[int]:
    """The chat template: tools, then each message between markers, then the start of the answer.

    Markers and contents are tokenized one by one, so that a conversation which grows keeps its token ids.
    """
    ids: list[int] = []
    for part in ("tools", "documents", "chat_template_kwargs"):
        if body.get(part):
            ids += tokenize(f"<|{part}|>")
            ids += tokenize(orjson.dumps(body[part]).decode())
    for message in body["messages"]:
        ids += tokenize(f"<|{message['role']}|>\n")
        for text in message_texts(message):
            ids += tokenize(text)
        ids += tokenize("<|end|>\n")
    if body.get("add_generation_prompt", True):
        ids += tokenize("<|assistant|>\n")
    return ids


def message_texts(message: dict[str, Any]) -> list[str]:
    """What the template reads of one message: texts as they are, all other parts as JSON."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content] if content else []
    texts = [_part_text(part) for part in parts]
    if message.get("tool_calls"):
        texts.append(orjson.dumps(message["tool_calls"]).decode())
    return texts


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else orjson.dumps(part).decode()


def least_value(schema: Any) -> Any:
    """The smallest value that a JSON schema allows, for tool calls and structured answers."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    for choice in ("enum", "anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return schema[choice][0] if choice == "enum" else least_value(schema[choice][0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "array":
        return [least_value(schema.get("items", {"type": "null"}))] * min(16, int(schema.get("minItems", 0)))
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: least_value(properties.get(name, {"type": "string"})) for name in schema.get("required", ())}
    least = {"string": "x" * min(256, int(schema.get("minLength", 1))), "boolean": False}
    return least.get(kind, schema.get("minimum", 0) if kind in ("integer", "number") else None)
