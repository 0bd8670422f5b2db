"""What has come of one streamed answer: enough to go on with it elsewhere.

A worker that was asked for token ids (`return_token_ids`) sends them with every chunk. `clean` takes a piece of
the stream, notes ids and text, and returns the bytes without them: `null` in their place, as vLLM writes it
unasked, so that the client's lines are those of a stream that was never watched. It is on the way of every token:
the commonest piece, a chunk in the middle of one choice, is known by its first and last bytes: no parser.

What ends a stream early (an error, `finish_reason: "abort"`) is kept back, with all that follows it: what `clean`
has returned is what the client has, to the byte. Memory is bounded: beyond `MOST_BYTES` the record is given up.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from router.edge.api.parsed_request import Surface

MOST_BYTES = 512 << 10
"""Of ids and of text, each: some 80,000 tokens."""
_PARTIAL = 1 << 20
_NEVER = b"\xff"
"""No stream begins like this."""
_DELTA = b'"choices":[{"index":0,"delta":{"content":'
_TEXT = b'"choices":[{"index":0,"text":'
_CHAT_MIDDLE = b',"logprobs":null,"finish_reason":null,"token_ids":'
_TEXT_MIDDLE = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":'
_END = b"]}]}\n\n"
_NULL = b"null}]}\n\n"
_IDS = re.compile(rb'"(prompt_)?token_ids"(\s*:\s*)\[[\d,\s]*\]')
"""Inside a JSON string quotes are escaped: outside it is structure."""
_EMPTY = b'"delta":{}'


@dataclass(frozen=True, slots=True)
class Finish:
    """How the answer ended."""

    reason: str
    stop: Any = None


class StreamRecord:
    """The record of one stream, over all its legs."""

    __slots__ = (
        "_from",
        "_head",
        "_ids",
        "_middle",
        "_null",
        "_partial",
        "_texts",
        "broken",
        "counted",
        "finish",
        "model",
        "opening",
        "prompt",
        "spoiled",
        "surface",
    )

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        chat = surface is Surface.CHAT
        middle = _CHAT_MIDDLE if chat else _TEXT_MIDDLE
        self._middle = middle + b"["
        self._null = middle + _NULL
        self._head = _NEVER
        """How every chunk in the middle of this stream begins, up to its text."""
        self._from = 0
        self._partial = b""
        self._ids = bytearray()
        """Decimal, a comma behind each chunk's."""
        self._texts = bytearray()
        """JSON strings, a line break behind each; of a chat with the bracket that closes its delta."""
        self.prompt: list[int] | None = None
        """The prompt's token ids, as the first worker has them."""
        self.opening: dict[str, Any] = {}
        """Members that every chunk has: id, object, created, model."""
        self.model: str | None = None
        self.finish: Finish | None = None
        self.spoiled: str | None = None
        """Why it is of no use: a word for metrics."""
        self.broken: bytes | None = None
        """The event by which the worker gave up."""
        self.counted = 0
        """Bytes of it that count as held."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self._ids) + len(self._texts) + (0 if self.prompt is None else 8 * len(self.prompt))

    def spoil(self, why: str) -> None:
        """It cannot be used, and is let go; ids are still put back."""
        self.spoiled = self.spoiled or why
        self._ids, self._texts, self.prompt = bytearray(), bytearray(), None

    def clean(self, data: bytes) -> bytes:
        """Note what a piece of the stream brings; return whole events, as the client may see them."""
        if data.startswith(self._head) and not self._partial:
            start = self._from
            at = data.find(self._middle, start)
            if at > 0 and data.endswith(_END) and data.find(b"\n", start) == len(data) - 2:
                ids = self._ids
                ids += data[at + len(self._middle) : -6]
                ids += b","
                texts = self._texts
                texts += data[start:at]
                texts += b"\n"
                if len(texts) > MOST_BYTES or self.spoiled is not None:
                    self.spoil("too_long")
                return data[:at] + self._null
        return self._events(data)

    def _events(self, data: bytes) -> bytes:
        """The same for any other piece: events that have not fully arrived wait."""
        if self.broken is not None:
            return b""
        if self._partial:
            data, self._partial = self._partial + data, b""
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 0 if len(data) <= _PARTIAL else len(data)
        self._partial = data[end:]
        kept: list[bytes] = []
        for event in data[:end].split(b"\n\n"):
            if not event:
                continue
            told = self._look(event)
            if self.broken is not None:
                break
            if told:
                kept.append(told + b"\n\n")
        return b"".join(kept)

    def rest(self) -> bytes:
        """What has come of an event that never ended."""
        rest, self._partial = self._partial, b""
        return rest

    def _look(self, event: bytes) -> bytes:
        """Note what one event says; return it without ids, b"" if it has nothing else."""
        at = event.find(b"data:")
        if at < 0 or event[at + 5 :].strip() == b"[DONE]":
            return event
        try:
            content = orjson.loads(event[at + 5 :])
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            self.spoil("no_json")
            return event
        if content.get("error") is not None:
            self.broken = event
            return b""
        choices = content.get("choices")
        choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        if isinstance(choice, dict):
            if choice.get("finish_reason") == "abort":
                self.broken = event
                return b""
            self._choice(content, choice)
        elif choices:
            self.spoil("several_choices")
        cleaned = _IDS.sub(rb'"\1token_ids"\2null', event)
        if cleaned != event:
            if choice is not None and choice.get("delta") == {} and choice.get("finish_reason") is None:
                return b""  # it would not have been sent
            self._learn(cleaned)
        return cleaned

    def _choice(self, content: dict[str, Any], choice: dict[str, Any]) -> None:
        if not self.opening:
            self.opening = {name: content.get(name) for name in ("id", "object", "created", "model")}
            self.model = content.get("model")
        for holder in (content, choice):
            prompt = holder.get("prompt_token_ids")
            if self.prompt is None and self.spoiled is None and _are_ids(prompt):
                self.prompt = prompt
        delta = choice.get("delta") if self.surface is Surface.CHAT else {"content": choice.get("text")}
        if not isinstance(delta, dict) or choice.get("logprobs"):
            self.spoil("other_content")
            return
        if delta.get("role") and not delta.get("content") and "token_ids" not in choice:
            return
        ids, text = choice.get("token_ids"), delta.get("content")
        if any(value for name, value in delta.items() if name not in ("content", "role")):
            self.spoil("other_content")
        elif not isinstance(ids, list) or not _are_ids(ids):
            self.spoil("no_ids")
        elif text is not None and not isinstance(text, str):
            self.spoil("other_content")
        else:
            self.add(ids, text or "")
        if isinstance(choice.get("finish_reason"), str):
            self.finish = Finish(choice["finish_reason"], choice.get("stop_reason"))

    def add(self, ids: list[int], text: str) -> None:
        """Tokens, and the text that the client has got with them."""
        if self.spoiled is not None:
            return
        self._ids += b"".join(b"%d," % token for token in ids)
        self._texts += orjson.dumps(text) + (b"}\n" if self.surface is Surface.CHAT else b"\n")
        if len(self._texts) > MOST_BYTES or len(self._ids) > MOST_BYTES:
            self.spoil("too_long")

    def _learn(self, cleaned: bytes) -> None:
        """From a chunk in the middle of the stream: how the following ones begin."""
        if self._head is not _NEVER or b"\n" in cleaned or not cleaned.endswith(self._null[:-2]):
            return
        mark = _DELTA if self.surface is Surface.CHAT else _TEXT
        at = cleaned.find(mark)
        if at > 0 and cleaned.startswith(b'data: {"id":'):
            self._head = cleaned[: at + len(mark)]
            self._from = at + len(mark)

    # -- what is there

    def ids(self) -> list[int]:
        """The answer's token ids. Raises ValueError where a chunk had something else in their place."""
        return [int(token) for token in bytes(self._ids).split(b",") if token]

    def text(self) -> str:
        """The text that the client has. Raises ValueError where a chunk had something else in its place."""
        chat = self.surface is Surface.CHAT
        found = [b'{"content":' + each if chat else each for each in bytes(self._texts).split(b"\n")[:-1]]
        texts: list[str] = []
        for each in found:
            value = orjson.loads(each)
            if chat:
                if not isinstance(value, dict) or set(value) != {"content"}:
                    raise ValueError("a delta with more than its content")
                value = value["content"]
            if not isinstance(value, str):
                raise ValueError("a text that is none")  # noqa: TRY004 - one error for what does not fit
            texts.append(value)
        return "".join(texts)

    def keep(self, ids: list[int], text: str) -> None:
        """These are the tokens and the text of the answer so far, in place of what was noted."""
        self._ids, self._texts = bytearray(), bytearray()
        self.broken, self._partial = None, b""
        self.add(ids, text)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
