"""One client connection on a bare protocol: sends what was made beforehand, and checks that answers are whole."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httptools

from benchmarks.dataplane.backend import MODEL

_TOKEN = b'"content":" word"'
_WORD = 6
_NUMBER = "########"
"""Stands in a template for what is different in every request."""


@dataclass(frozen=True, slots=True)
class Question:
    """What one request asks for."""

    prompt_bytes: int = 2048
    tokens: int = 64
    spacing_ms: int = 20
    stream: bool = True


@dataclass(slots=True)
class Tally:
    """What has happened on all connections together."""

    chunks: int = 0
    """Of streams, as they come."""
    done: int = 0
    failed: int = 0
    left: int = 0
    """Clients that went away on purpose."""
    open: int = 0
    streaming: int = 0
    """Of those open, answers whose body has begun."""
    first_s: list[float] = field(default_factory=list)
    """From sending a request, or from when it was due, to the first byte of its body."""
    whole_s: list[float] = field(default_factory=list)
    """The same to the end of a whole answer."""
    faults: list[str] = field(default_factory=list)

    def fail(self, fault: str) -> None:
        self.failed += 1
        if len(self.faults) < 5:
            self.faults.append(fault)


class Requests:
    """Requests without end, no two of them alike, made of templates so that the client pays next to nothing.

    A template's prompt begins either with one of a few openings, half its length, or with nothing that it shares;
    then comes a number that no other request has. `users`: how many take turns; 0: each request has its own.
    """

    def __init__(self, question: Question, url: str, keys: Sequence[str], users: int, seed: int) -> None:
        self._chance = Random(f"{seed}/{question.prompt_bytes}")
        self._users = users
        self._count = 0
        few = max(4, min(64, (4 << 20) // question.prompt_bytes))
        openings = [self._text(question.prompt_bytes // 2) for _ in range(min(few, 16))]
        self._templates = [
            self._template(
                question, urlsplit(url).netloc, keys[n % len(keys)], openings[n % len(openings)] * (n % 2)
            )
            for n in range(few)
        ]

    def next(self) -> bytes:
        self._count += 1
        before, between, after = self._templates[self._count % len(self._templates)]
        user = self._count % self._users if self._users else self._count
        return b"%b%08d%b%08d%b" % (before, self._count, between, user, after)

    def _template(self, question: Question, host: str, key: str, opening: str) -> tuple[bytes, bytes, bytes]:
        prompt = f"{opening}{_NUMBER}{self._text(question.prompt_bytes - len(opening) - len(_NUMBER))}"
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "user": f"user-{_NUMBER}",
            "max_tokens": question.tokens,
            "seed": question.spacing_ms,
            "stream": question.stream,
        }
        payload = json.dumps(body)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            "accept: */*\r\nuser-agent: bench\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(payload)}\r\n\r\n"
        )
        before, between, after = (head + payload).encode().split(_NUMBER.encode())
        return before, between, after

    def _text(self, size: int) -> str:
        letters = self._chance.randbytes(size // 2 + _WORD).hex()
        return " ".join(letters[at : at + _WORD - 1] for at in range(0, size + _WORD, _WORD))[:size]


class Client(asyncio.Protocol):
    """A connection that is used again and again. One question at a time."""

    def __init__(self, tally: Tally) -> None:
        self.lost = False
        self._left = False
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[None] | None = None
        self._question = Question()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, question: Question, data: bytes, due: float | None = None) -> asyncio.Future[None]:
        """Send a request; the future is done when its answer has ended, in whatever way.

        `due`: since when its times count, on the clock `time.perf_counter`; None: since now.
        """
        self._question = question
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._first = True
        self._answered = self._loop.create_future()
        self._tally.open += 1
        self._due = time.perf_counter() if due is None else due
        self.transport.write(data)
        return self._answered

    def leave(self) -> None:
        """Close in the middle of whatever is under way."""
        self._left = True
        self.transport.abort()

    # asyncio's callbacks

    def data_received(self, data: bytes) -> None:
        if self._answered is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"malformed answer: {error}")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._end("the connection was closed in mid-answer")

    # llhttp's callbacks

    def on_body(self, body: bytes) -> None:
        if self._first:
            self._first = False
            self._tally.streaming += 1
            self._tally.first_s.append(time.perf_counter() - self._due)
        self._pieces.append(body)
        self._tally.chunks += body.count(_TOKEN)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.lost = True
            self.transport.abort()
        self._end(self._fault())

    def _end(self, fault: str) -> None:
        answered, self._answered = self._answered, None
        if answered is None:
            return
        self._tally.open -= 1
        self._tally.streaming -= not self._first
        if self._left:
            self._tally.left += 1
        elif fault:
            self._tally.fail(fault)
        else:
            self._tally.done += 1
            self._tally.whole_s.append(time.perf_counter() - self._due)
        if not answered.done():
            answered.set_result(None)

    def _fault(self) -> str:
        """What is wrong with the answer; nothing, if it is whole."""
        body = b"".join(self._pieces)
        status = self._parser.get_status_code()
        if status != 200:
            return f"status {status}: {body[:200].decode(errors='replace')}"
        wanted = self._question.tokens
        if self._question.stream:
            got = body.count(_TOKEN)
            if not body.rstrip().endswith(b"data: [DONE]"):
                return f"no end after {got} of {wanted} chunks"
        else:
            got = body.count(b" word")
        return "" if got == wanted else f"{got} tokens instead of {wanted}"
