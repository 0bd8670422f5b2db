"""Thousands of mutated requests, or of mutated answers, through one gateway: what comes of them, what stays.

What has to hold of each is checked while it runs and listed in `Tally.faults`: what a client receives is
HTTP as `strict_http` reads it, errors have their surface's shape, nothing but sound requests reaches a worker, and
no worker's address reaches a client. What has to hold of the whole is looked for at the end: no record of an
exception in any log, no request, connection, task or file left open, and a plain request that is answered.
"""

import asyncio
import gc
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from router.edge.connection import Connection
from router.edge.exchange import Exchange
from router.edge.execution.attempt import Attempt
from router.edge.execution.lifecycle import Lifecycle
from router.edge.trust import TO_WORKERS, Use, find
from tests.end_to_end.gateway_under_test import Running, running_gateway
from tests.end_to_end.wild import sound
from tests.end_to_end.wild.listener import Answer, Listener, listening
from tests.end_to_end.wild.mutated_answers import mutated_answer
from tests.end_to_end.wild.mutated_requests import Leave, Sent, mutated_request
from tests.end_to_end.wild.strict_http import Message, responses

_FILES = Path("/proc/self/fd")
_MOST = 1e10
"""More than any count here can be."""
AT_ONCE = 24
WORKERS = 6
_SILENCE_S = 2.0
"""How long a worker may say nothing in the middle of an answer."""
_ROOMS = ("/router/", "/workers/", "/policies/")
_TRIES = 100
"""How often it is looked whether something is still held, 0.1 s and more apart."""
_QUIET_S = 0.25
"""A client that does not know whether an answer will come stops reading after this."""
_HANGS_S = 30.0
_SOUND_EVERY = 50
_HEALTH = {"probe_every_s": 2.0, "probe_timeout_s": 20.0, "scrape_every_s": 5.0, "stale_after_s": 60}
_SEEN_BY_WORKERS = TO_WORKERS | {b"host", b"content-length", b"x-request-id"}
_COUNTED = (Connection, Exchange, Lifecycle, Attempt)
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class Tally:
    """What came of one storm."""

    what: str
    seed: int
    sent: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    """`nothing`: closed without a word; `cut`: the gateway closed in the middle of an answer."""
    faults: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    leaks: dict[str, object] = field(default_factory=dict)
    serves: bool = False
    """A plain request was answered at the end."""
    seconds: float = 0.0

    def sound(self) -> bool:
        return self.serves and not (self.faults or self.tracebacks or self.leaks)

    def text(self) -> str:
        """The figures, and the first of each kind of trouble."""
        statuses = ", ".join(f"{status} {count}" for status, count in sorted(self.by_status.items()))
        lines = [
            f"{self.what}: {self.sent} from seed {self.seed} in {self.seconds:.1f} s",
            f"  by status: {statuses}",
            f"  faults {len(self.faults)}, tracebacks {len(self.tracebacks)}, leaks {len(self.leaks)}",
            "  a plain request afterwards: " + ("answered" if self.serves else "NOT ANSWERED"),
        ]
        troubles = (*self.faults[:20], *self.tracebacks[:10], *map(str, self.leaks.items()))
        lines += [f"  - {trouble[:2000]}" for trouble in troubles]
        return "\n".join(lines)


# -- mutated requests


async def storm_of_requests(count: int, seed: int, *, only: int | None = None) -> Tally:
    """`count` mutated requests to a gateway whose workers answer as they should."""
    tally = Tally("mutated requests", seed)
    workers = [Listener(sound.MODEL, sound.answer) for _ in range(WORKERS)]
    async with watched_gateway(tally, workers) as gateway:

        async def one(number: int) -> None:
            sent = mutated_request(_chance(seed, "request", number))
            try:
                data, ended = await _send(gateway.port, sent)
                _check_answers_to(sent, data, ended=ended, tally=tally)
            except AssertionError as fault:
                tally.faults.append(f"request {number}: {fault}")
            if number % _SOUND_EVERY == 0 and not await _serves(gateway):
                tally.faults.append(f"request {number}: a sound one beside it is not answered")

        await _all(one, count, only, tally)
        tally.faults += [f"a worker was sent {offence}" for worker in workers for offence in worker.offences]
        tally.faults += unwanted(workers)
    return tally


async def _send(port: int, sent: Sent) -> tuple[bytes, bool]:
    """Write a request and read what comes; whether the gateway has ended the connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return b"", True
    data = b""
    try:
        for piece in sent.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if sent.leave is Leave.VANISH:
            return b"", False
        if sent.leave is Leave.HALF_CLOSE:
            writer.write_eof()
        while True:
            async with asyncio.timeout(_HANGS_S if sent.leave is Leave.HALF_CLOSE else _QUIET_S):
                piece = await reader.read(_READ_BYTES)
            data += piece
            if not piece or sent.leave is Leave.VANISH_MIDWAY:
                return data, not piece
    except TimeoutError:
        if sent.leave is Leave.HALF_CLOSE:
            raise AssertionError("the connection stays open although the client has closed its side") from None
        return data, False
    except OSError:  # the gateway has closed already
        return data, True
    finally:
        writer.transport.abort()


def _check_answers_to(sent: Sent, data: bytes, *, ended: bool, tally: Tally) -> None:
    if sent.leave in (Leave.VANISH, Leave.VANISH_MIDWAY):
        tally.by_status["left"] += 1
        return
    asked = b"".join(sent.pieces)
    found = responses(data, ended=ended, head_requests=b"HEAD" in asked)
    if not found:
        tally.by_status["nothing"] += 1
    for message in found:
        tally.by_status[str(message.status) if message.complete else "cut"] += 1
        if message.complete and message.status >= 400 and b"HEAD" not in asked:
            check_error(message)
        assert message.status != 500, f"500 {message.body[:200]!r} to {asked[:300]!r}"
        assert message.status // 100 != 3, f"{message.status} to {asked[:300]!r}"


def unwanted(workers: list[Listener]) -> Iterator[str]:
    """What reached a worker and stands on no list."""
    for worker in workers:
        for method, target in worker.seen:
            path = target.partition(b"?")[0]
            known = find(path.decode("latin-1"), target)
            if known is None or known.use is Use.REFUSED or method not in known.methods:
                yield f"a worker was sent {method} {target[:200]!r}"


# -- mutated answers


async def storm_of_answers(count: int, seed: int, *, only: int | None = None) -> Tally:
    """`count` mutated answers to sound requests."""
    tally = Tally("mutated answers", seed)
    said: dict[int, Answer] = {}

    def answer(message: Message) -> Answer:
        fields = sound.fields_of(message)
        number = fields.get("case")
        if number is None:
            return sound.answer(message)
        path = message.target.decode()
        usage = "stream_options" in fields
        made = mutated_answer(
            _chance(seed, "answer", number), path, stream=bool(fields.get("stream")), usage=usage
        )
        said[number] = made
        return made

    workers = [Listener(sound.MODEL, answer) for _ in range(WORKERS)]
    async with watched_gateway(tally, workers) as gateway:
        free: list[_Client] = [_Client(gateway.port) for _ in range(AT_ONCE)]
        hidden = [worker.url.rpartition("/")[2].encode() for worker in workers] + [b"10.9.8.7"]

        async def one(number: int) -> None:
            chance = _chance(seed, "asked", number)
            path, fields = chance.choice(sound.BODIES)
            client = free.pop()
            try:
                message = await client.ask(sound.ask(path, {**fields, "case": number}))
                _check_answer_of(message, path, said.pop(number, None), hidden, tally)
            except (AssertionError, TimeoutError) as fault:
                tally.faults.append(f"answer {number} ({path}): {fault or 'no end'}")
                client.leave()
            finally:
                free.append(client)

        await _all(one, count, only, tally)
        for client in free:
            client.leave()
    return tally


class _Client:
    """A client that keeps its connection as long as the gateway does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Message | None:
        """The answer; None: the connection ended without one. Raises TimeoutError and Malformed."""
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port, limit=_READ_BYTES)
        reader, writer = self._stream
        data = b""
        with suppress(ConnectionError):
            writer.write(request)
            async with asyncio.timeout(_HANGS_S):
                while piece := await reader.read(_READ_BYTES):
                    data += piece
                    [message, *more] = responses(data, ended=False)
                    assert not more, "two answers to one request"
                    if message.complete:
                        return message
        self.leave()
        found = responses(data, ended=True)
        return found[0] if found else None

    def leave(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None


def _check_answer_of(
    message: Message | None, path: str, said: Answer | None, hidden: list[bytes], tally: Tally
) -> None:
    worker_said = b"" if said is None else b"".join(said.pieces)
    routed = (find(path, b"") or _NOWHERE).use is Use.SCHEDULED
    tally.by_status["nothing" if message is None else str(message.status) if message.complete else "cut"] += 1
    if message is None or not message.complete:
        assert not routed, f"an answer without its end, of {worker_said[:300]!r}"
        return
    assert message.status // 100 in (2, 4, 5), f"status {message.status} of {worker_said[:300]!r}"
    for address in hidden:
        found = any(address in value for _, value in message.headers) or (
            address in message.body and address not in worker_said
        )
        assert not found, f"the address {address!r} in {message.headers} {message.body[:300]!r}"
    if message.status >= 400 and not _is_said(message.body, worker_said):
        check_error(message, anthropic=path == "/v1/messages")
    kind = message.values(b"content-type")[:1]
    if message.status < 300 and routed and kind and kind[0].startswith(b"text/event-stream"):
        _check_last_words(message.body, path)
    elif message.status < 300:
        assert _is_said(message.body, worker_said), (
            f"{message.body[-300:]!r} was never said: {worker_said[:300]!r}"
        )


def _is_said(body: bytes, worker_said: bytes) -> bool:
    """Whether a body is the worker's own, which may have come in chunks: its bytes in their order, with gaps."""
    rest = iter(worker_said)
    return all(byte in rest for byte in body)


_NOWHERE = find("/pause", b"")
_LAST_WORDS = {
    "/v1/messages": (b"event: message_stop", b"event: error"),
    "/v1/responses": (
        b"event: response.completed",
        b"event: response.incomplete",
        b"event: response.failed",
        b"event: error",
    ),
}


def _check_last_words(body: bytes, path: str) -> None:
    """A stream that has come to its end says so, or says why it has not."""
    words = _LAST_WORDS.get(path, (b"data: [DONE]",))
    assert any(word in body for word in words), f"a stream without last words: {body[-300:]!r}"


# -- both


def check_error(message: Message, *, anthropic: bool = False) -> None:
    """An error in the shape of its surface."""
    assert message.value(b"content-type") == b"application/json", f"{message.status} {message.headers}"
    content = json.loads(message.body)
    error = content.get("error") if isinstance(content, dict) else None
    assert isinstance(error, dict), f"{message.status} {message.body[:300]!r}"
    if anthropic or "type" in content:
        assert content["type"] == "error", content
        assert set(error) == {"type", "message"}, content
    else:
        assert set(error) == {"message", "type", "param", "code"}, content
        assert error["code"] == message.status, content
    assert error["message"], content


def _chance(seed: int, what: str, number: int) -> Random:
    """Each case has a source of its own, so that it can be made again without those before it."""
    return Random(f"{seed} {what} {number}")


async def _all(one: Callable[[int], Any], count: int, only: int | None, tally: Tally) -> None:
    """Each case once, some at a time."""
    numbers = iter(range(count) if only is None else [only])

    async def client() -> None:
        for number in numbers:
            tally.sent += 1
            await one(number)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


@asynccontextmanager
async def watched_gateway(
    tally: Tally, workers: list[Listener], *, silence_s: float = _SILENCE_S, **settings: Any
) -> AsyncIterator[Running]:
    """A gateway before these workers; what has to hold of it at the end is written to `tally`.

    One of the workers has to answer as it should for the model `sound.MODEL`. Each may be silent for `silence_s`.
    """
    timeouts = {"connect_s": 20.0, **dict.fromkeys(("first_byte_s", "idle_s", "whole_answer_s"), silence_s)}
    limits = {"attempts": 1, "queue_wait_s": 20.0, **settings.pop("limits", {})}
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(listening(worker))
        urls = [worker.url for worker in workers]
        settings = {"health": _HEALTH, "timeouts": timeouts, "limits": limits, **settings}
        gateway = await stack.enter_async_context(running_gateway(urls, **settings))
        with _exceptions(tally.tracebacks):
            await _serves(gateway)
            before, files = _tasks(), _open_files()
            yield gateway
            with suppress(TimeoutError):
                async with asyncio.timeout(_HANGS_S):
                    while not tally.serves:
                        tally.serves = await _serves(gateway)
                        await asyncio.sleep(0 if tally.serves else 0.5)
            _check_metrics(gateway, tally)
            await gateway.http.aclose()
            await _check_nothing_left(gateway, before, files, tally)
            gateway.lines()  # each is JSON
        tally.seconds = time.monotonic() - started


def _check_metrics(gateway: Running, tally: Tally) -> None:
    """Nothing that was said makes a series that is no number, or a count that cannot be."""
    for family in text_string_to_metric_families(gateway.gateway.metrics.page.now().decode()):
        for sample in family.samples:
            is_count = family.type != "gauge" and not sample.name.endswith("_created")
            if not (0 <= sample.value < _MOST if is_count else math.isfinite(sample.value)):
                tally.faults.append(f"/metrics says {sample.name}{sample.labels} {sample.value}")


async def _serves(gateway: Running) -> bool:
    asked = {"model": sound.MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    answer = await gateway.http.post("/v1/chat/completions", json=asked)
    return answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "hello"


async def _check_nothing_left(gateway: Running, before: Counter[str], files: int, tally: Tally) -> None:
    def remains() -> dict[str, object]:
        left: dict[str, object] = {what: amount for what, amount in gateway.held().items() if amount}
        left.update(_tasks() - before)
        pooled = sum(upstream.open for upstream in _pools(gateway)) * 2  # both ends are in this process
        if _open_files() > files + pooled:
            left["open files"] = _open_files() - files - pooled
        return left or _alive()

    for _ in range(_TRIES):
        if not remains():
            break
        await asyncio.sleep(0.1)
    tally.leaks |= remains()


def _alive() -> dict[str, object]:
    """Objects of the edge that live as long as a connection or a request."""
    if any(isinstance(each, _COUNTED) for each in gc.get_objects()):
        gc.collect()
    return dict(
        Counter(f"{type(each).__name__} objects" for each in gc.get_objects() if isinstance(each, _COUNTED))
    )


def _pools(gateway: Running) -> list[Any]:
    connections = gateway.gateway.connections
    return [connections.get(worker.id).upstream for worker in gateway.gateway.fleet.workers()]


def _tasks() -> Counter[str]:
    """The router's own tasks by the function that they run."""
    counted: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and any(room in code.co_filename for room in _ROOMS):
            counted[f"task {code.co_qualname}"] += 1
    return counted


def _open_files() -> int:
    return sum(1 for _ in _FILES.iterdir()) if _FILES.is_dir() else 0


@contextmanager
def _exceptions(into: list[str]) -> Iterator[None]:
    """Every record of an error, or with an exception, by whatever logger."""

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = logging.Formatter().format(record)
            is_error = record.exc_info is not None or record.levelno >= logging.ERROR
            if is_error and (record.name != "asyncio" or any(room in text for room in _ROOMS)):
                into.append(text)  # asyncio also tells of the clients and workers of this test

    handler = Catch()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        gc.collect()  # a task that failed unseen says so when it is collected
        root.removeHandler(handler)
