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

NO_IDS = "no_ids"
"""Why a record is of no use: the worker does not send any."""
MOST_BYTES = 512 << 10
"""Of ids and of text, each: some 80,000 tokens."""
_PARTIAL = 1 << 20
_NEVER = b"\xff"
"""No stream begins like this."""
_DELTA = b'"choices":[{"index":0,"delta":{"content":'
_TEXT = b'"choices":[{"index":0,"text":'
_CHAT_MIDDLE = b',"logprobs":null,"finish_reason":null,"token_ids":'
_TEXT_MIDDLE = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":'
_NULL = b"null}]}\n\n"
_IDS = re.compile(rb'"token_ids"(\s*:\s*)\[[\d,\s]*\]')
"""Inside a JSON string quotes are escaped: outside it is structure."""
_PROMPT = b'"prompt_token_ids":['
_NO_CHOICES = b'"choices":[]'
_ERROR = b'"error"'
_DONE = b"data: [DONE]"
_BEGINNING = b'data: {"id":'
_ROLE = b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'


@dataclass(frozen=True, slots=True)
class Finish:
    """How the answer ended."""

    reason: str
    stop: Any = None


class StreamRecord:
    """The record of one stream, over all its legs."""

    __slots__ = (
        "_ids",
        "_notes",
        "_opening",
        "_partial",
        "_prompt",
        "_skip",
        "_texts",
        "broken",
        "counted",
        "finish",
        "head",
        "middle",
        "note",
        "null",
        "spoiled",
        "start",
        "surface",
    )

    END = b"]}]}\n\n"
    """How every chunk with ids ends; six bytes."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        chat = surface is Surface.CHAT
        middle = _CHAT_MIDDLE if chat else _TEXT_MIDDLE
        self.middle = middle + b"["
        self.null = middle + _NULL
        self.head = _NEVER
        """How every chunk in the middle of this stream begins, up to its text."""
        self.start = 0
        self._partial = b""
        self._skip = len(self.middle)
        self._notes: list[bytes] = []
        """Of chunks since the last `_pack`: text and ids in turn."""
        self.note = self._notes.append
        self._ids = bytearray()
        """Decimal, a comma behind each chunk's."""
        self._texts = bytearray()
        """JSON strings, a line break behind each; of a chat with the bracket that closes its delta."""
        self._prompt: bytes | None = None
        """The prompt's token ids, as the first worker has them: JSON."""
        self._opening = b""
        """The first chunk."""
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
        self._pack()
        return len(self._ids) + len(self._texts) + len(self._prompt or b"")

    def spoil(self, why: str) -> None:
        """It cannot be used, and is let go; ids are still put back."""
        self.spoiled = self.spoiled or why
        self._ids, self._texts, self._prompt = bytearray(), bytearray(), None
        self._notes.clear()

    def plain(self, data: bytes) -> bytes | None:
        """`clean` for one chunk in the middle of the stream, the commonest piece; None: it is another one.

        The rest of an event that has not fully arrived never begins like one: in a text quotes are escaped.
        """
        start = self.start
        if data.startswith(self.head):
            at = data.find(self.middle, start)
            if at > 0 and data.endswith(self.END) and data.find(b"\n", start) == len(data) - 2:
                self.note(data[start:at])
                self.note(data[at + self._skip : -6])
                return data[:at] + self.null
        return None

    def clean(self, data: bytes) -> bytes:
        """Note what a piece of the stream brings; return whole events, as the client may see them."""
        told = self.plain(data)
        if told is None and self.head is _NEVER and not self._partial and data.endswith(self.END):
            told = self._first_plain(data)
        return self._events(data) if told is None else told

    def _first_plain(self, data: bytes) -> bytes | None:
        """`plain`, once it is known how the chunks of this stream begin; None: not from this piece."""
        mark = _DELTA if self.surface is Surface.CHAT else _TEXT
        at = data.find(mark)
        if at < 0 or not data.startswith(_BEGINNING) or b"\n" in data[:-2] or self._prompt is None:
            return None
        self.start = at + len(mark)
        self.head = data[: self.start]
        told = self.plain(data)
        if told is None:
            self.head, self.start = _NEVER, 0
        return told

    def _pack(self) -> None:
        """Keep what was noted in as little memory as it takes."""
        notes = self._notes.copy()
        self._notes.clear()  # the same list all along: `note` is a method of it
        if not notes or self.spoiled is not None:
            return
        self._texts += b"\n".join(notes[::2]) + b"\n"
        self._ids += b",".join(notes[1::2]) + b","
        if len(self._texts) > MOST_BYTES or len(self._ids) > MOST_BYTES:
            self.spoil("too_long")

    def _events(self, data: bytes) -> bytes:
        """The same for any other piece: events that have not fully arrived wait."""
        if self.broken is not None:
            return b""
        if self.spoiled == NO_IDS and not self._partial:
            return data  # nothing has to be put back
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
        if at < 0 or event.startswith(_DONE, at) or (_NO_CHOICES in event and _ERROR not in event):
            return event
        event = self._without_prompt(event)
        if not self._opening and _ROLE in event and event.startswith(_BEGINNING):
            self._opening = event
            return event
        try:
            content = orjson.loads(event[at + 5 :])
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            self.spoil("no_json")
            return event
        choices = content.get("choices")
        choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        aborted = isinstance(choice, dict) and choice.get("finish_reason") == "abort"
        if aborted or content.get("error") is not None:
            self.broken = event
            return b""
        if isinstance(choice, dict):
            self._choice(content, choice)
            return self._without_ids(event, choice)
        if choices:
            self.spoil("several_choices")
        return _IDS.sub(rb'"token_ids"\1null', event)

    def _without_prompt(self, event: bytes) -> bytes:
        """The event with the prompt's ids taken out and kept: thousands of numbers, which need not be read now."""
        at = event.find(_PROMPT)
        if at < 0:
            return event
        at += len(_PROMPT) - 1
        end = event.find(b"]", at) + 1
        if self.spoiled is None and self._prompt is None:
            self._prompt = event[at:end]
        return event[:at] + b"null" + event[end:]

    def _without_ids(self, event: bytes, choice: dict[str, Any]) -> bytes:
        if choice.get("token_ids") is None:
            return event
        if choice.get("delta") == {} and choice.get("finish_reason") is None:
            return b""  # it would not have been sent
        return _IDS.sub(rb'"token_ids"\1null', event)

    def _begin(self, content: dict[str, Any]) -> None:
        """Keep the first chunk."""
        if not self._opening:
            try:
                self._opening = orjson.dumps(content)
            except orjson.JSONEncodeError:  # nested more deeply than can be written
                self._opening = b"{}"
                self.spoil("other_content")

    def _choice(self, content: dict[str, Any], choice: dict[str, Any]) -> None:
        self._begin(content)
        for holder in (content, choice):  # a proxy may have written it with blanks
            if self._prompt is None and self.spoiled is None and _are_ids(holder.get("prompt_token_ids")):
                self._prompt = orjson.dumps(holder["prompt_token_ids"])
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
            self.spoil(NO_IDS)
        elif text is not None and not isinstance(text, str):
            self.spoil("other_content")
        else:
            self.add(ids, text or "")
        if isinstance(choice.get("finish_reason"), str):
            self.finish = Finish(choice["finish_reason"], choice.get("stop_reason"))

    def add(self, ids: list[int], text: str) -> None:
        """Tokens, and the text that the client has got with them."""
        self._pack()
        if self.spoiled is not None:
            return
        self._ids += b"".join(b"%d," % token for token in ids)
        self._texts += orjson.dumps(text) + (b"}\n" if self.surface is Surface.CHAT else b"\n")
        if len(self._texts) > MOST_BYTES or len(self._ids) > MOST_BYTES:
            self.spoil("too_long")

    # -- what is there

    def opening(self) -> dict[str, Any]:
        """Members that every chunk has: id, object, created, model. Raises ValueError where they are none."""
        found = orjson.loads(self._opening[self._opening.find(b"{") :])
        if not isinstance(found, dict):
            raise ValueError("a chunk that is no object")  # noqa: TRY004 - one error for what does not fit
        members = {name: found.get(name) for name in ("id", "object", "created", "model")}
        if not all(isinstance(value, str | int | None) for value in members.values()):
            raise ValueError("a chunk whose id, object, created or model is none")
        return members

    def prompt(self) -> list[int]:
        """The prompt's token ids; none where the worker has not sent them. Raises ValueError as `ids`."""
        found = orjson.loads(self._prompt or b"[]")
        if not _are_ids(found):
            raise ValueError("a prompt of something else than ids")
        return list(found)

    def ids(self) -> list[int]:
        """The answer's token ids. Raises ValueError where a chunk had something else in their place."""
        self._pack()
        return [int(token) for token in bytes(self._ids).split(b",") if token]

    def text(self) -> str:
        """The text that the client has. Raises ValueError where a chunk had something else in its place."""
        self._pack()
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
        self._notes.clear()
        self.broken, self._partial = None, b""
        self.add(ids, text)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
