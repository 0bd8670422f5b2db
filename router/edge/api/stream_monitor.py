"""The end of an answer: usage and finish, read without parsing what goes before.

A stream is a sequence of server-sent events, each ending with a blank line. Events pass through unread; only a
usage event (vLLM marks it with an empty `choices`), an error, an abort, or the closing `[DONE]` is looked at,
and each can be told by a substring: inside JSON strings quotes and line breaks are escaped, so `"choices":[]`, and
`data: [DONE]` at the beginning of a line, are always structure. Most pieces are one event in the middle of a
choice (`_is_plain`): none of the others, which is told by one look instead of six.

Lines may end with CRLF, as a proxy may write them; they are passed on with LF: one form to look for.

Nothing is held back but an event that has not fully arrived (at most `_MAX_PARTIAL` bytes), the events that vLLM
sends before its engine has begun (`_OPENING`; another worker may still have to answer, under another id), and,
where the usage event is to be taken out, the chunk that ends the last choice: vLLM names its `system_fingerprint`
in the very last chunk, so it has to move from the usage event, which follows at once, to the chunk that becomes
the last one.

Comment lines, such as those of vLLM's `--sse-keep-alive-interval`, are no part of an answer: those before the
first token are left out, later ones pass.
"""

from typing import Any

import orjson

from policies.model import Usage
from router.edge.api.parsed_request import Surface

_MAX_PARTIAL = 1 << 20
LONGEST_ID = 256
"""Of a stored response: each is remembered, with its worker."""
_MOST_TOKENS = 1 << 27
"""More than that no request has used, whatever a worker reports: it would be charged, and settle who is next."""
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error"'
ABORT = b'"finish_reason":"abort"'
_NO_STOP = b'"type":"message_delta","delta":{"stop_reason":null'
"""How vLLM says abort on `/v1/messages`. On `/v1/responses` it does not say it at all (0.32)."""
_NO_CHOICES = b'"choices":[]'
_FINISHED = b'"finish_reason":"'
_FINGERPRINT = b',"system_fingerprint":'
_OPENING: dict[Surface, tuple[bytes, ...]] = {
    Surface.RESPONSES: (b"event: response.created", b"event: response.queued", b"event: response.in_progress"),
    Surface.MESSAGES: (b"event: message_start", b"event: ping"),
}
"""The events that may come long before the first token, by the line that names them."""
_EVENT = b'data: {"id":'
_USAGE_MEMBER = b'"usage"'
_SPACE = 16
"""Bytes after the name of a member in which its value begins, colon and spaces included."""
_UNFINISHED = b'"finish_reason":null'


class StreamMonitor:
    """Watches one stream of `choices` choices pass. `feed` returns the bytes that the client gets."""

    __slots__ = (
        "_begun",
        "_held",
        "_opening",
        "_partial",
        "_strip",
        "_surface",
        "_unfinished",
        "aborted",
        "done",
        "error",
        "events",
        "over",
        "response_id",
        "usage",
    )

    def __init__(self, surface: Surface, *, strip_usage: bool, choices: int = 1) -> None:
        self._surface = surface
        self._strip = strip_usage
        self._unfinished = choices
        self._partial = b""
        self._held = b""
        self._begun = False
        self._opening = b""
        """Events that have come before the first token."""
        self.events = 0
        """Events so far: a running estimate of output tokens."""
        self.usage: Usage | None = None
        self.done = False
        """The stream came to its proper end."""
        self.aborted = False
        """The worker gave the answer up (it is shutting down)."""
        self.error: bytes | None = None
        """The error event, if the worker sent one inside the stream."""
        self.over = False
        """One of these three."""
        self.response_id: str | None = None

    @property
    def begun(self) -> bool:
        """A token has come, or the end."""
        return self._begun or (self.events > 0 and self._surface not in _OPENING)

    def feed(self, data: bytes) -> bytes:
        if _is_plain(data) and not self._partial and not self._held:
            self.events += 1
            return data
        if self._partial:
            data = self._partial + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end < 2:  # no event has ended
            end = 0 if len(data) <= _MAX_PARTIAL else len(data)
        data, self._partial = data[:end], data[end:]
        if not data:
            return data
        came = b"" if self.begun else data
        self.events += data.count(b"data: ")
        if self._surface is Surface.CHAT or self._surface is Surface.COMPLETIONS:
            data = self._openai(_compacted(data) if _is_spaced(data) else data)
        else:
            self._typed(data)
        self.over = self.done or self.aborted or self.error is not None
        return self._first(came, data) if came else data

    def rest(self) -> bytes:
        """What is left of a stream that ended without a blank line."""
        rest, self._held, self._partial = self._held + self._partial, b"", b""
        return rest

    def _first(self, came: bytes, data: bytes) -> bytes:
        """What the client gets of the events that came while there was no token; `data`: they, without usage."""
        opening = _OPENING.get(self._surface, ())
        brings_data = any(_has_data(event, opening) for event in came.split(b"\n\n"))
        if brings_data or self.over or len(came) > _MAX_PARTIAL:
            self._begun = True
            data, self._opening = self._opening + data, b""
            return data
        if not opening:
            self.events = 0  # comments, whatever they say
        elif _begins_line(b"data:", came) and len(self._opening) <= _MAX_PARTIAL:
            self._opening += data
        return b""

    def _openai(self, data: bytes) -> bytes:
        finished = data.count(_FINISHED) if self._strip else 0
        if self._held:
            data, self._held = self._held + data, b""
        if _NO_CHOICES in data:
            data = self._usage_event(data)
        if _ERROR in data:
            self.error = data[data.index(_ERROR) :]
        if ABORT in data:
            self.aborted = True
        if _begins_line(_DONE, data):
            self.done = True
        if finished:
            self._unfinished -= finished
            if self._unfinished <= 0 and self.usage is None and not self.done:
                data = self._hold(data)
        return data

    def _hold(self, data: bytes) -> bytes:
        """Keep back the event that ends the last choice, and what follows it."""
        before, gap, _ = data[: data.rindex(_FINISHED)].rpartition(b"\n\n")
        self._held = data[len(before) + len(gap) :]
        return before + gap

    def _usage_event(self, data: bytes) -> bytes:
        """Read the usage event among these, and take it out unless the client asked for it."""
        kept: list[bytes] = []
        for event in data.split(b"\n\n")[:-1]:
            if _NO_CHOICES in event:
                content = _parsed(event)
                usage = content.get("usage")
                if usage:
                    self.usage = read_usage(usage)
                    if self._strip:
                        self.events -= 1
                        _sign(kept, content.get("system_fingerprint"))
                        continue
            kept.append(event + b"\n\n")
        return b"".join(kept)

    def _typed(self, data: bytes) -> None:
        """Events with names: `/v1/responses` and `/v1/messages`, which bring their own usage."""
        look = data.replace(b" ", b"") if _is_spaced(data) else data
        if self.response_id is None and self._surface is Surface.RESPONSES:
            self.response_id = find_id(look)
        if b'"usage"' in data:
            for event in data.split(b"\n\n"):
                if b'"usage"' in event:
                    self._named_usage(_parsed(event))
        if b"event: error\n" in data or _ERROR in data or _ERROR.replace(b" ", b"") in look:
            self.error = data
        if _NO_STOP in look:
            self.aborted = True
        if any(_begins_line(mark, data) for mark in _CLOSING):
            self.done = True

    def _named_usage(self, event: dict[str, Any]) -> None:
        within = event.get("response") or event.get("message")
        found = event.get("usage") or (within.get("usage") if isinstance(within, dict) else None)
        usage = read_usage(found)
        if usage is not None:
            # Anthropic's first event carries the input, its last the output: keep the larger of each.
            seen = self.usage or usage
            self.usage = Usage(
                max(seen.input_tokens, usage.input_tokens),
                max(seen.output_tokens, usage.output_tokens),
                usage.cached_tokens if usage.cached_tokens is not None else seen.cached_tokens,
            )


_CLOSING = (
    b"event: response.completed",
    b"event: response.incomplete",
    b"event: response.failed",
    b"event: message_stop",
)


def _begins_line(mark: bytes, events: bytes) -> bool:
    """Whether a line begins like this. Without quotes it may stand in a text too, but not behind a line break."""
    return mark in events and (events.startswith(mark) or b"\n" + mark in events)


def _has_data(event: bytes, opening: tuple[bytes, ...]) -> bool:
    """Whether it brings data, and is not named as one of these."""
    return _begins_line(b"data:", event) and not any(_begins_line(name, event) for name in opening)


def _is_plain(data: bytes) -> bool:
    """Whether it is exactly one event, of a choice that goes on."""
    return (
        data.startswith(_EVENT)
        and data.endswith(b"\n\n")
        and data.find(b"\n") == len(data) - 2
        and _UNFINISHED in data
    )


def _is_spaced(data: bytes) -> bool:
    """Whether its JSON may have blanks between names and values, which vLLM's has not."""
    return b'": ' in data or b'" :' in data


def _compacted(data: bytes) -> bytes:
    """Whole events, of which those that are more than a piece of a choice are written without blanks."""
    *events, rest = data.split(b"\n\n")
    return b"\n\n".join([*map(_compact, events), rest])


def _compact(event: bytes) -> bytes:
    # Without blanks, what is looked for is structure as ever: quotes inside a string are escaped.
    look = event.replace(b" ", b"")
    if not any(mark in look for mark in (_NO_CHOICES, _FINISHED, b'data:{"error"')):
        return event
    content = _parsed(event)
    try:
        return event[: event.find(b"data:")] + b"data: " + orjson.dumps(content) if content else event
    except orjson.JSONEncodeError:  # nested more deeply than can be written
        return event


def _sign(events: list[bytes], fingerprint: object) -> None:
    """Put the fingerprint into the last of these chunks, if that is the end of a choice and has none."""
    if (
        fingerprint
        and isinstance(fingerprint, str)
        and events
        and _FINISHED in events[-1]
        and _FINGERPRINT not in events[-1]
    ):
        signature = _FINGERPRINT + orjson.dumps(fingerprint)
        events[-1] = events[-1].removesuffix(b"}\n\n") + signature + b"}\n\n"


def whole_usage(body: bytes) -> Usage | None:
    """The usage of an answer that is one JSON object, read from its end: bodies are long, usage stands last."""
    at = body.rfind(_USAGE_MEMBER)
    start = body.find(b"{", at, at + len(_USAGE_MEMBER) + _SPACE)
    if at < 0 or body[at + len(_USAGE_MEMBER) : start].strip() != b":":
        return None
    depth, end = 0, start
    while (after := body.find(b"}", end, start + 4096) + 1) > 0:
        depth += body.count(b"{", end, after) - 1
        end = after
        if depth == 0:
            try:
                return read_usage(orjson.loads(body[start:end]))
            except orjson.JSONDecodeError:
                return None
    return None


def whole_aborted(body: bytes, *, anthropic: bool = False) -> bool:
    """Whether the worker gave the answer up because it is shutting down."""
    if anthropic:
        return b'"type":"message"' in body and b'"stop_reason":"' not in body
    return ABORT in body


def find_id(data: bytes) -> str | None:
    """The id of a stored response, from the first bytes that name it."""
    at = data.find(b'"id":"resp_')
    if at < 0:
        return None
    end = data.find(b'"', at + 6, at + 6 + LONGEST_ID)
    return data[at + 6 : end].decode("ascii", "replace") if end > 0 else None


def error_of_event(event: bytes) -> tuple[int | None, bytes]:
    """The HTTP status in an error event of a stream, as vLLM puts it there (None if it has none), and its JSON."""
    parsed = (_parsed(one) for one in event.split(b"\n\n"))
    content = next((one for one in parsed if one.get("error")), {})
    error = content.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    try:
        written = orjson.dumps(content)
    except orjson.JSONEncodeError:
        written = orjson.dumps({"error": {"message": "The worker's error is nested too deeply.", "type": "error"}})
    return (code if type(code) is int and 400 <= code < 600 else None), written


def read_usage(usage: object) -> Usage | None:
    """Usage in any of the API's dialects; None where a worker reports anything but counts."""
    if not isinstance(usage, dict):
        return None
    if "prompt_tokens" in usage:
        counts = [usage["prompt_tokens"], usage.get("completion_tokens")]
        details, cached = usage.get("prompt_tokens_details"), None
    else:
        # /v1/messages counts what was cached, and what is cached now, beside its input tokens, not among them.
        cached = usage.get("cache_read_input_tokens")
        more = (cached, usage.get("cache_creation_input_tokens"))
        counts = [usage.get("input_tokens"), usage.get("output_tokens"), *more]
        details = usage.get("input_tokens_details")
    if isinstance(details, dict):
        cached = details.get("cached_tokens", cached)
    if not all(count is None or _is_count(count) for count in (*counts, cached)):
        return None
    prompt, output, *beside = (count or 0 for count in counts)
    prompt += sum(beside)
    return Usage(prompt, output, cached if cached is None or cached <= prompt else None)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def _parsed(event: bytes) -> dict[str, Any]:
    """The JSON of an event's data line; an empty object if it is not JSON."""
    at = event.find(b"data:")
    try:
        value = orjson.loads(event[at + 5 :])
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
