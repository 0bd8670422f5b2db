"""The inference endpoints of one worker: from a body to queued sequences to what they say."""

import asyncio
import base64
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.bounds.bounded_map import BoundedMap
from workers.simulator import json_body, requests
from workers.simulator.api_errors import ApiError, busy, internal, missing, response_not_found
from workers.simulator.chat import DONE, ChatShape, CompletionShape, Shape, event, usage
from workers.simulator.connector import Fetch, Handover
from workers.simulator.conversations import (
    MessagesShape,
    ResponsesShape,
    anthropic_messages,
    responses_messages,
)
from workers.simulator.exchange import ClientLeft, Exchange
from workers.simulator.real_time import Call, Generation, LiveEngine
from workers.simulator.requests import ApiRequest, Served
from workers.simulator.sequences import EngineRequest, Part, Reason

_KEPT_RESPONSES = 1000
_DIMENSIONS = 64
_STREAM_FAULTS = ("hang", "die_mid_stream", "error_in_stream")


def read_body(exchange: Exchange) -> dict[str, Any]:
    """The checked JSON object of a request."""
    return json_body.read_json(exchange.body, exchange.headers.get("content-type", ""))


@dataclass(slots=True)
class _Stored:
    """A response that can be asked for again."""

    shape: ResponsesShape
    call: Call
    messages: list[dict[str, Any]]
    cancelled: bool = False

    def body(self) -> dict[str, Any]:
        if self.cancelled:
            return {**self.shape.whole(), "status": "cancelled"}
        if self.call.open:
            return self.shape.body("in_progress", [], None)
        return self.shape.whole()


class Inference:
    """Calls of one worker, from admission to the last byte."""

    def __init__(
        self, served: Served, live: LiveEngine, max_num_queued_reqs: int | None, handover: Handover
    ) -> None:
        self.served = served
        self.live = live
        self.handover = handover
        self.started = self.gone = 0
        """Calls that reached the engine, and those whose client left before the end."""
        self.draining = False
        self._max_queued = max_num_queued_reqs
        self._unblocked = asyncio.Event()
        self._stored: BoundedMap[str, _Stored] = BoundedMap(_KEPT_RESPONSES)
        self._serial = 0

    def unblock(self) -> None:
        """Let go what hangs in a fault; it goes on as if nothing had been."""
        self._unblocked.set()
        self._unblocked = asyncio.Event()

    async def blocked(self, exchange: Exchange) -> None:
        """Hang until `unblock`. Raises ClientLeft where the client does not wait for it."""
        await exchange.unless_gone(self._unblocked.wait())

    def _request(
        self, exchange: Exchange, read: Callable[[dict[str, Any], Served, dict[str, str]], ApiRequest]
    ) -> ApiRequest:
        """What a body asks for. Raises ApiError, after the worker that holds its KV has been told."""
        body = read_body(exchange)
        try:
            return read(body, self.served, exchange.headers)
        except ApiError:
            self.handover.turned_down(body.get("kv_transfer_params"))
            raise

    def _begin(self, request: ApiRequest, call_id: str, part: Part) -> Call:
        """Queue the sequences of a request. Raises the errors of a full queue or a server that shuts down."""
        if self.draining:
            raise internal("cannot schedule new futures after shutdown")
        engine = self.live.engine
        if self._max_queued is not None and engine.running + engine.waiting >= self._max_queued:
            raise busy()
        generations: list[Generation] = []
        requests: list[EngineRequest] = []
        for prompt in request.prompts:
            for choice in range(request.n):
                reply = request.reply(self.served, prompt, choice)
                generations.append(Generation(len(generations), reply, prompt))
                self._serial += 1
                requests.append(
                    EngineRequest(
                        id=f"{call_id}-{self._serial}",
                        prompt=prompt,
                        max_tokens=request.max_tokens,
                        output_tokens=reply.total,
                        priority=request.priority,
                        cache_salt=request.cache_salt,
                        lora=request.lora,
                        reply=reply.ids,
                        part=part,
                    )
                )
        call = Call(call_id, generations, request.stream)
        self.live.start(call, requests)
        self.started += 1
        return call

    async def _run(
        self, exchange: Exchange, request: ApiRequest, call_id: str, make: Callable[[ApiRequest, Call], Shape]
    ) -> None:
        params: dict[str, Any] = request.body.get("kv_transfer_params") or {}
        part = self.handover.part(params)
        try:
            if part == "decode":
                part = await self._claim(request, params)
            call = self._begin(request, call_id, part)
        except ApiError as error:
            self.handover.turned_down(params)
            if error.status != 503 or not request.stream:
                raise
            await exchange.start(200, b"text/event-stream; charset=utf-8")
            await exchange.send_body(event(error.body()) + DONE, more=False)
            return
        if part == "decode":
            call.on_first = lambda: self.handover.release(params)
        await self._serve(exchange, request, call, make(request, call))

    async def _claim(self, request: ApiRequest, params: Mapping[str, Any]) -> Part:
        """Get hold of the prompt's KV; what this worker has to do itself afterwards."""
        found = await self.handover.claim(params)
        request.spoiled = found is Fetch.GONE
        if found is not Fetch.UNREACHABLE:
            return "decode"
        if self.handover.config is None or self.handover.config.load_failure == "fail":
            raise internal()
        return "whole"

    async def _serve(self, exchange: Exchange, request: ApiRequest, call: Call, shape: Shape) -> None:
        def leave() -> None:
            call.gone = True
            if call.open:
                self.gone += 1
            self.live.abort(call)

        exchange.on_gone(leave)
        try:
            if request.stream:
                await self._stream(exchange, call, shape)
            else:
                await self._whole(exchange, call, shape)
        finally:
            self.live.abort(call)
            if all(one.sequence is None or one.sequence.first_at is None for one in call.generations):
                call.on_first()  # what was to be fetched is not wanted any more

    async def _whole(self, exchange: Exchange, call: Call, shape: Shape) -> None:
        while call.open and not call.gone:
            await call.wait()
        if call.gone:
            raise ClientLeft
        fault = exchange.fault
        if fault is not None:
            if fault.kind in ("die_mid_stream", "crash"):
                await exchange.cut()
            elif fault.kind == "hang":
                await self.blocked(exchange)
            elif fault.kind == "error_in_stream":
                raise internal()
        first = call.generations[0]
        if first.sequence is not None and first.finish != Reason.ABORT.value:
            call.hand_out = self.handover.hand_out(first.sequence)
        await exchange.json(200, shape.whole())

    async def _stream(self, exchange: Exchange, call: Call, shape: Shape) -> None:
        await exchange.start(200, b"text/event-stream; charset=utf-8")
        fault, opened = exchange.fault, False
        limit = fault.after_tokens if fault is not None and fault.kind in _STREAM_FAULTS else None
        if limit == 0:
            await self._break_stream(exchange)
        while not call.gone:
            ended = not call.open
            parts = self._news(call, shape, limit)
            if parts or ended:
                if not opened:
                    opened = True
                    parts.insert(0, shape.opening())
                over = limit is not None and (ended or sum(one.sent for one in call.generations) >= limit)
                if ended and not over:
                    parts.append(shape.closing())
                if data := b"".join(parts):
                    await exchange.send_body(data, more=over or not ended)
                if over:
                    await self._break_stream(exchange)
                    limit = None
                elif ended:
                    return
            else:
                await call.wait()
        raise ClientLeft

    def _news(self, call: Call, shape: Shape, limit: int | None) -> list[bytes]:
        """The chunks for what has been generated since the last look, up to `limit` tokens per sequence."""
        parts = []
        for one in call.generations:
            if one.told:
                continue
            seen = self.live.progress(one)
            if limit is not None and seen > limit:
                seen = limit
            finished = one.finish is not None and seen == one.final
            if seen > one.sent or finished:
                parts.append(shape.delta(one, one.sent, seen))
                one.sent, one.told = seen, finished
        return parts

    async def _break_stream(self, exchange: Exchange) -> None:
        """The fault strikes in the middle of a stream; returns only where the stream may go on."""
        fault = exchange.fault
        if fault is not None and fault.kind == "hang":
            await self.blocked(exchange)
            return
        if fault is not None and fault.kind == "error_in_stream":
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            await exchange.send_body(event(internal(message).body()) + DONE, more=False)
            raise ClientLeft
        await exchange.cut()

    async def chat(self, exchange: Exchange) -> None:
        request = self._request(exchange, requests.chat_request)
        await self._run(exchange, request, f"chatcmpl-{exchange.request_id}", ChatShape)

    async def completion(self, exchange: Exchange) -> None:
        request = self._request(exchange, requests.completion_request)
        await self._run(exchange, request, f"cmpl-{exchange.request_id}", CompletionShape)

    async def messages(self, exchange: Exchange) -> None:
        request = self._request(exchange, _messages_request)
        await self._run(exchange, request, f"chatcmpl-{exchange.request_id}", MessagesShape)

    async def responses(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        earlier: list[dict[str, Any]] = []
        if previous := body.get("previous_response_id"):
            stored = self._find(str(previous))
            text = "".join(one.reply.text(0, one.final, ended=True) for one in stored.call.generations)
            earlier = [*stored.messages, {"role": "assistant", "content": text}]
        messages = responses_messages(body, earlier)
        request = requests.conversation_request(body, messages, self.served, exchange.headers)
        call = self._begin(request, f"resp_{exchange.request_id}", "whole")
        shape = ResponsesShape(request, call)
        if body.get("store", True):
            kept = [message for message in messages if message["role"] != "system"]
            self._stored[call.id] = _Stored(shape, call, kept)
        if body.get("background") and not request.stream:
            await exchange.json(200, shape.body("queued", [], None))
            return
        await self._serve(exchange, request, call, shape)

    async def embeddings(self, exchange: Exchange) -> None:
        request = requests.embedding_request(read_body(exchange), self.served, exchange.headers)

        def make(_: ApiRequest, call: Call) -> Shape:
            return _Embeddings(request, call)

        await self._run(exchange, request, f"embd-{exchange.request_id}", make)

    def _find(self, response_id: str) -> _Stored:
        stored = self._stored.get(response_id)
        if stored is None:
            raise response_not_found(response_id)
        return stored

    async def get_response(self, exchange: Exchange) -> None:
        await exchange.json(200, self._find(exchange.path.removeprefix("/v1/responses/")).body())

    async def cancel_response(self, exchange: Exchange) -> None:
        path = exchange.path.removeprefix("/v1/responses/").removesuffix("/cancel")
        stored = self._find(path)
        if not stored.shape.request.body.get("background"):
            message = "Cannot cancel a synchronous response."
            raise ApiError(400, message, "invalid_request_error", "response_id")
        if stored.call.open:
            self.live.abort(stored.call)
            stored.cancelled = True
        await exchange.json(200, stored.body())


def _messages_request(body: dict[str, Any], served: Served, headers: dict[str, str]) -> ApiRequest:
    messages = anthropic_messages(body)
    if body.get("max_tokens") is None:
        raise missing("body.max_tokens")
    return requests.conversation_request(body, messages, served, headers)


class _Embeddings:
    """The answer of `/v1/embeddings`; never streamed."""

    def __init__(self, request: ApiRequest, call: Call) -> None:
        self.request = request
        self.call = call

    def opening(self) -> bytes:
        return b""

    def delta(self, generation: Generation, start: int, stop: int) -> bytes:
        del generation, start, stop
        return b""

    def closing(self) -> bytes:
        return b""

    def whole(self) -> dict[str, Any]:
        size = self.request.body.get("dimensions") or _DIMENSIONS
        data = []
        for one in self.call.generations:
            values: Any = requests.vector(one.prompt, size)
            if self.request.body.get("encoding_format") == "base64":
                values = base64.b64encode(struct.pack(f"<{size}f", *values)).decode()
            data.append({"index": one.index, "object": "embedding", "embedding": values})
        spent = {**usage(self.request, self.call, 0), "prompt_tokens_details": None}
        return {
            "id": self.call.id,
            "object": "list",
            "created": int(time.time()),
            "model": self.request.line,
            "data": data,
            "usage": spent,
        }
