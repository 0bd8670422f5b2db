"""A vLLM that costs next to nothing: its HTTP surface, answers made beforehand, no engine.

    python -m benchmarks.dataplane.backend COUNT [ADAPTERS]

One process listens on COUNT free ports and prints them; each lists ADAPTERS LoRA adapters (`adapter-0` and so on).
Two fields of a request say how its answer looks: `max_tokens` chunks (or tokens of a whole answer), `seed`
milliseconds between two of them (a whole answer waits as long). Both are of the API, so all routers forward them.
The first event of a stream, which has the role, is sent at once; the last ones (finish, usage, `[DONE]`) leave
together. Without milliseconds the chunks come in bursts, as fast as they are taken.
"""

import asyncio
import json
import re
import sys

import uvloop

from benchmarks.dataplane import kernel

MODEL = "bench"
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')  # the same under two names
_SPACING_MS = re.compile(rb'"seed": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_TOKEN_IDS = re.compile(rb'"return_token_ids": ?true')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)

_BURST = 64
"""Chunks that leave together where there is no time between them."""

_METRICS = b"".join(
    b'%b{engine="0",model_name="%b"} 0\n' % (name, MODEL.encode())
    for name in (
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        b"vllm:kv_cache_usage_perc",
        b"vllm:prefix_cache_queries_total",
        b"vllm:prefix_cache_hits_total",
        b"vllm:num_preemptions_total",
    )
)


def adapter(number: int) -> str:
    """The name of an adapter."""
    return f"adapter-{number}"


def _models(adapters: int) -> bytes:
    base = {"object": "model", "created": 1700000000, "owned_by": "vllm"}
    cards = [{**base, "id": MODEL, "root": MODEL, "parent": None, "max_model_len": 1000000}]
    cards += [
        {**base, "id": name, "root": f"/{name}", "parent": MODEL, "max_model_len": None}
        for name in map(adapter, range(adapters))
    ]
    return json.dumps({"object": "list", "data": cards}).encode()


def whole(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    """A response with this body."""
    head = b"HTTP/1.1 %b\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
    return head % (status, len(body)) + b"content-type: " + content_type + b"\r\n\r\n" + body


PAGES = {
    b"/health": whole(b""),
    b"/version": whole(b'{"version":"0.32.0"}'),
    b"/v1/models": whole(_models(0)),
    b"/metrics": whole(_METRICS, b"text/plain; version=0.0.4; charset=utf-8"),
}
_NO_PAGE = whole(b'{"detail":"Not Found"}', status=b"404 Not Found")

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"' + MODEL.encode() + b'","choices":[%b]%b}\n\n'
)


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


_ROLE = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
_WORD = b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":%b}'
_LAST = (
    b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"token_ids":%b}'
)


def _chunk(choice: bytes, more: bytes = b"") -> bytes:
    return _framed(_EVENT % (choice, more))


CHUNK, _FINISH = _chunk(_WORD % b"null"), _chunk(_LAST % b"null")
_OPENING = _chunk(_ROLE, b',"prompt_token_ids":null,"prompt_text":null')
_PROMPT_IDS = b",".join([b"21134"] * 512)
_WITH_IDS = (
    _chunk(_ROLE, b',"prompt_token_ids":[%b],"prompt_text":null' % _PROMPT_IDS),
    _chunk(_WORD % b"[21134]"),
    _chunk(_LAST % b"[]"),
)
_END = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _usage(tokens: int, prompt_bytes: int) -> bytes:
    prompt = max(1, prompt_bytes // 4)
    counts = (prompt, prompt + tokens, tokens)
    return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % counts


def whole_answer(tokens: int, prompt_bytes: int) -> bytes:
    """The JSON of an answer that is not streamed."""
    return (
        b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1700000000,'
        b'"model":"%b","choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"length"}],%b}'
        % (MODEL.encode(), b" word" * tokens, _usage(tokens, prompt_bytes))
    )


class Backend(asyncio.Protocol):
    """One connection. Requests on it come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received: list[bytes] = []
        self._missing = 0
        """Bytes of the request that are still to come; 0: its head is not known yet."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        if self._missing > len(data):
            self._missing -= len(data)
            return
        request = self._received[0] if len(self._received) == 1 else b"".join(self._received)
        end = _end(request)
        if end is None or end > len(request):
            self._received = [request]
            self._missing = 0 if end is None else end - len(request)
            return
        self._received.clear()
        self._missing = 0
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        pieces = answer_to(request)
        spacing_s = _number(_SPACING_MS, request, 0) / 1000
        if not spacing_s and len(pieces) > _BURST:
            pieces = [b"".join(pieces[at : at + _BURST]) for at in range(0, len(pieces), _BURST)]
        if len(pieces) > 1:
            self._transport.write(pieces[0])
            self._stream(pieces[1:], spacing_s)
        elif spacing_s and request.startswith(b"POST"):
            self._timer = self._loop.call_later(spacing_s, self._transport.write, pieces[0])
        else:
            self._transport.write(pieces[0])

    def _stream(self, pieces: list[bytes], spacing_s: float) -> None:
        """A piece at each multiple of the spacing from now on; a late one does not delay the next."""
        write, call_at = self._transport.write, self._loop.call_at
        due, left = self._loop.time(), iter(pieces)
        piece = next(left)

        def say() -> None:
            nonlocal piece, due
            write(piece)
            following = next(left, None)
            if following is not None:
                piece = following
                due += spacing_s
                self._timer = call_at(due, say)

        due += spacing_s
        self._timer = call_at(due, say)


def answer_to(request: bytes) -> list[bytes]:
    """What is sent for a whole request, in the pieces in which it leaves."""
    method, path, _ = request.split(b" ", 2)
    if method != b"POST":
        return [PAGES.get(path.partition(b"?")[0], _NO_PAGE)]
    tokens = _number(_MAX_TOKENS, request, 16)
    if not _STREAM.search(request):
        return [whole(whole_answer(tokens, len(request)))]
    ids = _TOKEN_IDS.search(request) is not None
    opening, chunk, end = _WITH_IDS if ids else (_OPENING, CHUNK, _FINISH)
    if _USAGE.search(request):
        end += _framed(_EVENT % (b"", b"," + _usage(tokens, len(request))))
    return [_STREAM_HEAD + opening, *[chunk] * tokens, end + _END]


def _end(request: bytes) -> int | None:
    """Where the request ends; None while that cannot be told."""
    head = request.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = _LENGTH.search(request, 0, head)
    if length is not None:
        return head + 4 + int(length.group(1))
    if _CHUNKED.search(request, 0, head):
        return len(request) if request.endswith(b"0\r\n\r\n") else None
    return head + 4


def _number(pattern: re.Pattern[bytes], request: bytes, default: int) -> int:
    found = pattern.search(request)
    return default if found is None else int(found.group(1))


async def serve(count: int, adapters: int = 0) -> None:
    """Listen on a number of ports, say which, and answer until the standard input ends."""
    PAGES[b"/v1/models"] = whole(_models(adapters))
    loop = asyncio.get_running_loop()
    kernel.raise_file_limit()
    servers = [await loop.create_server(Backend, "127.0.0.1", 0, backlog=4096) for _ in range(count)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
