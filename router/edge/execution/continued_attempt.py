"""The rest of an answer whose worker has died, from another worker.

    ids of prompt and answer ──► /detokenize: do they say what the client has been told?
             └──► /v1/completions with them as its prompt ──► chunks in the shape of the first leg's

Nothing of the prompt can reach the client: trailing ids that end inside a character are taken back before, as a
detokenizer that is primed with them would let go of its whole prompt with the first token. Text that the first
worker kept back for a stop string is carried over, and stop strings are looked for across the seam. What the
client gets has one id, one role and one usage, in which every token counts once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from policies.model import AttemptFailure, Outcome, Usage
from router.edge.api.continuable import Continuation
from router.edge.api.parsed_request import Surface
from router.edge.api.seam_text import CUT, Seam, StopMatcher, align
from router.edge.api.stream_monitor import error_of_event, read_usage
from router.edge.api.stream_record import Finish, StreamRecord
from router.edge.execution.attempt import GIVEN_UP, Attempt
from router.edge.execution.worker_answer import WHOLE_BYTES, AttemptFailed, excerpt, read_refusal
from workers.http.upstream import Response, Upstream, UpstreamError

TARGET = b"/v1/completions"
DONE = b"data: [DONE]\n\n"
_DETOKENIZE = b"/detokenize"
_DETOKENIZE_S = 20.0
_TAKEN_BACK = 8
"""Ids at the end of an answer that may belong to a character which is not whole; the longest has four bytes."""
_CONTEXT = 8
"""Ids of the prompt that stand before those of the answer, for tokenizers that drop a leading blank."""
_MOST_EVENT = 1 << 20


class SeamFailed(Exception):
    """The answer cannot go on. `why`: a label; `told`: for people; `source`: the first worker's doing."""

    def __init__(self, why: str, told: str, *, source: bool = False) -> None:
        super().__init__(told)
        self.why = why
        self.told = told
        self.source = source


@dataclass(slots=True)
class ContinuedAttempt(Attempt):
    """An attempt that goes on with what `record` holds, which the client has already."""

    continuation: Continuation = field(default_factory=Continuation)
    max_model_len: int | None = None
    model: str = ""
    """To be asked for."""
    prompt: list[int] = field(default_factory=list)
    opening: dict[str, Any] = field(default_factory=dict)
    before: int = 0
    """Tokens of the answer that came before."""
    seam: Seam = field(default_factory=Seam)
    matcher: StopMatcher | None = None
    finish: Finish | None = None
    last_text: str = ""
    """Told with the finish."""
    fresh: int = 0
    """Tokens that have come since."""
    chunks: int = 0
    straddled: bool = False
    """It ends with a stop string that began before the seam."""
    ask_for_text: Callable[[list[int]], Awaitable[str]] | None = None
    """This worker's detokenizer."""
    worker_usage: dict[str, Any] | None = None
    fingerprint: str | None = None

    @property
    def known(self) -> StreamRecord:
        """What has come before."""
        if self.record is None:
            raise RuntimeError("nothing to go on with")
        return self.record

    async def run(self, upstream: Upstream, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Go on at this worker. Raises AttemptFailed, or SeamFailed where that can not be done anywhere."""
        try:
            ids = await self._meet(upstream, headers)
        except UpstreamError as error:
            raise AttemptFailed.of(error) from error
        self.before = len(ids)
        left = self._left(ids)
        if left < 1:
            self.finish = Finish("length")
            await self._end()
            return
        prompt = [*self.prompt, *ids]
        self.body = orjson.dumps(completion(self.continuation, self.model, prompt, left, self.before))
        await Attempt.run(self, upstream, target, headers)

    # -- the seam

    async def _meet(self, upstream: Upstream, headers: list[tuple[bytes, bytes]]) -> list[int]:
        """The ids to go on from, once they are known to say what the client has. Raises SeamFailed."""
        known = self.known
        try:
            self.opening = known.opening()
            self.prompt, ids, emitted = known.prompt(), known.ids(), known.text()
        except ValueError as error:
            raise SeamFailed("text", f"its chunks do not say what they are: {error}", source=True) from None
        may_hold = bool(self.continuation.stops)
        taken_back = 0
        self.ask_for_text = partial(self._text_of, upstream, headers)
        decoded = await self._text_of(upstream, headers, ids)
        while ids and decoded.endswith(CUT) and taken_back < _TAKEN_BACK:
            ids = ids[:-1]
            taken_back += 1
            decoded = await self._text_of(upstream, headers, ids)
        seam = None if decoded.endswith(CUT) else align(decoded, emitted, may_hold=may_hold)
        if seam is None:
            context = self.prompt[-_CONTEXT:]
            shown = await self._text_of(upstream, headers, context)
            decoded = await self._text_of(upstream, headers, context + ids)
            if decoded.startswith(shown) and not decoded.endswith(CUT):
                seam = align(decoded[len(shown) :], emitted, may_hold=may_hold)
        if seam is None:
            raise SeamFailed("text", "its token ids do not say what its text says", source=True)
        known.keep(ids, emitted)
        self.seam = seam
        if may_hold:
            wanted = self.continuation
            self.matcher = StopMatcher(wanted.stops, shows=wanted.shows_stop, before=emitted)
        return ids

    async def _text_of(self, upstream: Upstream, headers: list[tuple[bytes, bytes]], ids: list[int]) -> str:
        """The text of some ids, as the worker's tokenizer has it."""
        if not ids:
            return ""
        body = orjson.dumps({"model": self.model, "tokens": ids})
        exchange: Response | None = None
        try:
            async with asyncio.timeout(_DETOKENIZE_S):
                exchange = await upstream.send(b"POST", _DETOKENIZE, headers, body, whole=True)
                await exchange.head()
                if exchange.status >= 400:
                    refusal = await read_refusal(exchange)
                    raise SeamFailed("detokenize", f"/detokenize answered {refusal.status}")
                answer = await exchange.read_all(WHOLE_BYTES)
        except TimeoutError:
            why = f"no answer of /detokenize within {_DETOKENIZE_S:g} s"
            raise AttemptFailed(AttemptFailure.TIMEOUT, why) from None
        finally:
            if exchange is not None:
                exchange.abort()
        try:
            text = orjson.loads(answer)["prompt"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise SeamFailed("detokenize", "/detokenize answered with something else than a text")
        return text

    def _left(self, ids: list[int]) -> int:
        """How many tokens may still come."""
        prompt, most = len(self.prompt), self.continuation.max_tokens
        limits = [] if most is None else [most - len(ids)]
        if self.max_model_len is not None:
            limits.append(self.max_model_len - prompt - len(ids))
        if not limits:
            raise SeamFailed("no_limit", "neither the request nor the worker says how long the answer may get")
        return min(limits)

    # -- what comes

    async def _refused(self, exchange: Response) -> None:
        refusal = await read_refusal(exchange)
        told = f"another worker refuses to go on: {excerpt(refusal.body)}"
        raise SeamFailed("refused", told)

    async def _whole(self, _: Response) -> None:
        raise AttemptFailed(AttemptFailure.LOST, "the worker does not stream what was to be streamed")

    async def _stream(self, exchange: Response) -> None:
        partial = b""
        try:
            while piece := await exchange.read():
                partial = (partial + piece).replace(b"\r\n", b"\n") if b"\r" in piece else partial + piece
                *events, partial = partial.split(b"\n\n")
                if len(partial) > _MOST_EVENT:
                    raise AttemptFailed(AttemptFailure.LOST, "an event that does not end")
                for event in events:
                    told = self._take(event)
                    if self.straddled:
                        self.fresh = await self._until_stop() - self.before
                        told = self._closing()
                    if self.outcome is not None:
                        await self.answer.body(told, more=False)
                        return
                    if told:
                        await self.answer.body(told, more=True)
                if self.chunks >= self.tell_after or self.clock() >= self.tell_at:
                    self._report_output(self.chunks)
        finally:
            if self.outcome is None and self.chunks > self.told:
                self.control.output(self.request, self.chunks - self.told)
        raise AttemptFailed(AttemptFailure.LOST, "the stream ended before its end")

    def _take(self, event: bytes) -> bytes:
        """What the client hears of one event. Raises AttemptFailed, SeamFailed."""
        at = event.find(b"data:")
        if at < 0:
            return b""
        data = event[at + 5 :].strip()
        if data == b"[DONE]":
            if self.finish is None:
                raise AttemptFailed(AttemptFailure.LOST, "the stream ended without a finish")
            return self._closing()
        try:
            content = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise AttemptFailed(AttemptFailure.LOST, "an event that is no JSON") from None
        if not isinstance(content, dict) or content.get("error") is not None:
            code, _ = error_of_event(event)
            failure = AttemptFailed(AttemptFailure.ERROR, f"an error inside the stream: {excerpt(event)}")
            failure.code = code
            raise failure
        fingerprint = content.get("system_fingerprint")
        if isinstance(fingerprint, str):
            self.fingerprint = fingerprint
        usage, choices = content.get("usage"), content.get("choices")
        if isinstance(usage, dict):
            self.worker_usage = content
        choice = choices[0] if isinstance(choices, list) and choices else None
        return self._choice(content, choice) if isinstance(choice, dict) else b""

    def _choice(self, content: dict[str, Any], choice: dict[str, Any]) -> bytes:
        known = self.known
        if choice.get("finish_reason") == "abort":
            raise AttemptFailed(AttemptFailure.SHUTDOWN, GIVEN_UP)
        if content.get("model") != self.opening["model"]:
            raise SeamFailed("model", f"the other worker calls its model {content.get('model')!r:.100}")
        ids, text = choice.get("token_ids"), choice.get("text")
        if not (isinstance(ids, list) and all(type(token) is int for token in ids) and isinstance(text, str)):
            raise SeamFailed("no_ids", "the other worker gives no token ids")
        if not self.chunks:
            self._has_begun()
        self.chunks += 1
        self.fresh += len(ids)
        finish = choice.get("finish_reason")
        told = self._told(text, last=finish is not None)
        known.add(ids, told)
        if self.matcher is not None and self.matcher.found is not None:
            self.finish = Finish("stop", self.matcher.found)
            self.last_text = told
            # It began before the seam, so that the worker has not seen all of it and goes on.
            self.straddled = finish is None or self.matcher.beyond > 0
            return b""
        if finish is not None:
            reason = choice.get("stop_reason")
            if not isinstance(finish, str) or not isinstance(reason, str | int | None):
                raise AttemptFailed(AttemptFailure.LOST, "a finish that is none")
            self.finish = Finish(finish, reason)
            self.last_text = told
            return b""
        return chunk(known, told, None, None) if told else b""

    def _has_begun(self) -> None:
        now = self.clock()
        self.output_at, self.tell_after, self.tell_at = now, self.told + 32, now + 0.25
        self.control.first_token(self.request)
        if self.on_begun is not None:
            self.on_begun()

    def _told(self, text: str, *, last: bool) -> str:
        """What of a text is told now: less what the client has, with what was kept back before it."""
        seam = self.seam
        if seam.overlap:
            same = min(len(text), len(seam.overlap))
            if text[:same] != seam.overlap[:same]:
                raise SeamFailed("overlap", "the character at which it broke off goes on as another one")
            text, self.seam = text[same:], Seam(overlap=seam.overlap[same:])
        elif seam.held:
            text, self.seam = seam.held + text, Seam()
        return text if self.matcher is None else self.matcher.feed(text, last=last)

    async def _until_stop(self) -> int:
        """With how many tokens of the answer the stop string was complete."""
        ids, beyond = self.known.ids(), 0 if self.matcher is None else self.matcher.beyond
        if self.ask_for_text is None or not beyond:
            return len(ids)
        least = len(await self.ask_for_text(ids)) - beyond
        low, high = self.before, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len((await self.ask_for_text(ids[:middle])).rstrip(CUT)) >= least:
                high = middle
            else:
                low = middle + 1
        return low

    # -- the end

    async def _end(self) -> None:
        """No token may follow: say so, without a worker."""
        self.last_text = self._told("", last=True)
        if self.on_begun is not None:
            self.on_begun()
        await self.answer.body(self._closing(), more=False)

    def _closing(self) -> bytes:
        """The last chunk, the usage if it was asked for, and the end. The request is settled."""
        known, finish = self.known, self.finish or Finish("stop")
        usage, details = self._usage()
        self._settle(Outcome.COMPLETED, usage, exact=True)
        sign = None if self.ask.wants_usage else self.fingerprint
        return chunk(known, self.last_text, finish, sign) + closing(
            known, usage, details, wanted=self.ask.wants_usage, fingerprint=self.fingerprint
        )

    def _usage(self) -> tuple[Usage, dict[str, Any]]:
        """Of the whole answer; and what a worker says beside the counts."""
        reported = (self.worker_usage or {}).get("usage")
        counted = read_usage(reported)
        fresh = self.fresh if counted is None or self.straddled else counted.output_tokens
        prompt = len(self.prompt)
        cached = None if counted is None or counted.cached_tokens is None else min(prompt, counted.cached_tokens)
        details = {}
        if isinstance(reported, dict) and isinstance(reported.get("prompt_tokens_details"), dict):
            told = reported["prompt_tokens_details"].items()
            counts = {name: value for name, value in told if type(value) is int}
            details["prompt_tokens_details"] = {**counts, "cached_tokens": cached}
        return Usage(prompt, self.before + fresh, cached), details


def completion(wanted: Continuation, model: str, prompt: list[int], left: int, before: int) -> dict[str, Any]:
    """The body that asks for the rest: at most `left` tokens, `before` of the answer being in the prompt."""
    body: dict[str, Any] = {
        **wanted.passed,
        "model": model,
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": left,
    }
    if wanted.min_tokens > before:
        body["min_tokens"] = min(left, wanted.min_tokens - before)
    if wanted.stops:
        # Nothing is kept back then, and the text is all there for the gateway to look at.
        body |= {"stop": list(wanted.stops), "include_stop_str_in_output": True}
    return body


def chunk(known: StreamRecord, text: str, finish: Finish | None, fingerprint: str | None) -> bytes:
    """One chunk of a stream, as its first worker would have written it."""
    said = {"delta": {"content": text}} if known.surface is Surface.CHAT else {"text": text}
    choice: dict[str, Any] = {"index": 0, **said, "logprobs": None, "finish_reason": finish and finish.reason}
    if known.surface is Surface.COMPLETIONS:
        choice |= {"stop_reason": finish and finish.stop, "prompt_token_ids": None}
    elif finish is not None:
        choice["stop_reason"] = finish.stop
    choice["token_ids"] = None
    content = {**known.opening(), "choices": [choice]}
    if fingerprint is not None:
        content["system_fingerprint"] = fingerprint
    return b"data: " + orjson.dumps(content) + b"\n\n"


def closing(
    known: StreamRecord, usage: Usage, details: dict[str, Any], *, wanted: bool, fingerprint: str | None = None
) -> bytes:
    """The end of a stream, with the usage of all its legs if it is `wanted`."""
    if not wanted:
        return DONE
    counts = {
        "prompt_tokens": usage.input_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "completion_tokens": usage.output_tokens,
    }
    content = {**known.opening(), "choices": [], "usage": {**counts, **details}}
    if fingerprint is not None:
        content["system_fingerprint"] = fingerprint
    return b"data: " + orjson.dumps(content) + b"\n\n" + DONE
